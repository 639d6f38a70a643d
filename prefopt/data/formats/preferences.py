"""Layouts that compare responses: pairs and rankings."""

from __future__ import annotations

import difflib
import re

from prefopt.data.formats.columns import (
    ANSWER,
    INPUT,
    LABEL,
    MESSAGES,
    NUMBER,
    NUMBERS,
    PLAIN,
    SIDE,
    TEXT,
    TEXTS,
    TRANSCRIPT,
    BadRow,
    number,
    one_of,
    records,
    truth,
)
from prefopt.data.formats.conversation import (
    Content,
    Fields,
    alpaca,
    from_rank,
    last_turn,
    ordered,
    pair,
    ranking,
    scores,
    split_chat,
    text_or_turns,
    transcript,
    turns,
    user,
    with_system,
)
from prefopt.data.formats.layout import PROMPTS, preference


def has_no_prompt_column(row: Fields) -> bool:
    """No column but the two could hold the prompt: to train on an empty one is the error to prevent."""
    others = {name: v for name, v in row.items() if name not in ("chosen", "rejected") and v is not None}
    named = any(name in PROMPTS or difflib.get_close_matches(name, ["prompt"]) for name in map(str.lower, others))
    return not named and not any(isinstance(v, str) and " " in v.strip() for v in others.values())


def text_answers_text(row: Fields) -> bool:
    """Not so in ``ultrafeedback-binarized``, which has the same columns."""
    return not isinstance(row["prompt"], str) or isinstance(row["chosen"], str)


@preference(
    "preference",
    "TRL: prompt, chosen and rejected, as text that is used as it is, or as messages",
    guess=text_answers_text,
    prompt=TEXT | MESSAGES,
    chosen=ANSWER,
    rejected=ANSWER,
)
def _(row: Fields) -> Content:
    return pair(text_or_turns(row["prompt"], "prompt"), row["chosen"], row["rejected"], scores(row))


@preference(
    "preference-implicit",
    "TRL: chosen and rejected, two texts, the prompt is what both begin with",
    guess=has_no_prompt_column,
    chosen=PLAIN,
    rejected=PLAIN,
)
def _(row: Fields) -> Content:
    """Cut before white space, so that no word is halved."""
    chosen, rejected = row["chosen"], row["rejected"]
    differs = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    shared = next(differs, min(len(chosen), len(rejected)))
    cut = max((space.start() for space in re.finditer(r"\s+", chosen[:shared])), default=0)
    if not cut:
        raise BadRow("no-prompt", "the two sides share no beginning that could be the prompt")
    return pair(chosen[:cut], chosen[cut:], rejected[cut:], scores(row))


@preference(
    "preference-implicit-chat",
    "TRL: chosen and rejected, two conversations, the prompt is what both begin with",
    chosen=MESSAGES,
    rejected=MESSAGES,
)
def _(row: Fields) -> Content:
    return split_chat(turns(row["chosen"], "chosen"), turns(row["rejected"], "rejected"), scores(row))


@preference(
    "ultrafeedback-binarized",
    "prompt as text, chosen and rejected as messages with or without it",
    prompt=TEXT,
    chosen=MESSAGES,
    rejected=MESSAGES,
)
def _(row: Fields) -> Content:
    chosen, rejected = turns(row["chosen"], "chosen"), turns(row["rejected"], "rejected")
    if chosen[0].role == rejected[0].role == "assistant":
        return pair(user(row["prompt"]), row["chosen"], row["rejected"], scores(row))
    return split_chat(chosen, rejected, scores(row))


@preference("hh", "Anthropic HH: chosen and rejected, two whole transcripts", chosen=TRANSCRIPT, rejected=TRANSCRIPT)
def _(row: Fields) -> Content:
    """The prompt ends before the last Assistant turn; a conversation that forks earlier has none."""
    chosen, rejected = transcript(row["chosen"]), transcript(row["rejected"])
    if chosen[:-1] != rejected[:-1] and chosen[-1].role == rejected[-1].role == "assistant":
        raise BadRow("prompt-differs", "the two sides differ before the last Assistant turn")
    return split_chat(chosen, rejected)


@preference(
    "messages-pair",
    "two conversations: chosen_messages, rejected_messages",
    chosen_messages=MESSAGES,
    rejected_messages=MESSAGES,
)
def _(row: Fields) -> Content:
    return split_chat(
        turns(row["chosen_messages"], "chosen_messages"), turns(row["rejected_messages"], "rejected_messages")
    )


@preference(
    "openai",
    "input.messages, preferred_output, non_preferred_output",
    input=INPUT,
    preferred_output=ANSWER,
    non_preferred_output=ANSWER,
)
def _(row: Fields) -> Content:
    return pair(turns(row["input"]["messages"], "input.messages"), row["preferred_output"], row["non_preferred_output"])


@preference(
    "sharegpt-ranking",
    "LLaMA-Factory: conversations, chosen, rejected",
    optional="system",
    conversations=MESSAGES,
    chosen=ANSWER,
    rejected=ANSWER,
)
def _(row: Fields) -> Content:
    return pair(with_system(row, "conversations"), row["chosen"], row["rejected"])


@preference(
    "alpaca-ranking",
    "LLaMA-Factory: instruction, input, chosen, rejected",
    optional="input system history",
    instruction=TEXT,
    chosen=TEXT,
    rejected=TEXT,
)
def _(row: Fields) -> Content:
    return pair(alpaca(row), row["chosen"], row["rejected"], scores(row))


@preference(
    "swift",
    "ms-swift: messages with the chosen answer, and rejected_response",
    messages=MESSAGES,
    rejected_response=TEXT,
)
def _(row: Fields) -> Content:
    prompt, (chosen,) = last_turn(turns(row["messages"], "messages"), "messages")
    return pair(prompt, chosen.content[-1].content, row["rejected_response"])  # type: ignore[union-attr]


@preference(
    "swift-messages",
    "ms-swift: messages and rejected_messages, two conversations",
    messages=MESSAGES,
    rejected_messages=MESSAGES,
)
def _(row: Fields) -> Content:
    return split_chat(turns(row["messages"], "messages"), turns(row["rejected_messages"], "rejected_messages"))


@preference(
    "ultrafeedback",
    "instruction and completions, ranked by overall_score",
    instruction=TEXT,
    completions=records("response", "overall_score"),
)
def _(row: Fields) -> Content:
    return ranking(
        user(row["instruction"]), ((c["response"], c["overall_score"]) for c in row["completions"]), "completions"
    )


@preference("nectar", "prompt and answers, ranked from 1", prompt=TEXT, answers=records("answer", "rank"))
def _(row: Fields) -> Content:
    prompt = transcript(row["prompt"]) if TRANSCRIPT.holds(row["prompt"]) else user(row["prompt"])
    if prompt[-1].role == "assistant" and not prompt[-1].content.strip():
        prompt = prompt[:-1]
    return ranking(prompt, ((a["answer"], from_rank(a["rank"])) for a in row["answers"]), "answers")


@preference(
    "nemo-rl",
    "context and completions, ranked from 0",
    context=MESSAGES,
    completions=records("rank", "completion"),
)
def _(row: Fields) -> Content:
    completions = ((c["completion"], from_rank(c["rank"])) for c in row["completions"])
    return ranking(turns(row["context"], "context"), completions, "completions")


@preference(
    "distilabel",
    "instruction, generations and their ratings",
    optional="system_prompt",
    instruction=TEXT,
    generations=TEXTS,
    ratings=NUMBERS,
)
def _(row: Fields) -> Content:
    if len(row["generations"]) != len(row["ratings"]):
        raise BadRow("type", f"{len(row['generations'])} generations, but {len(row['ratings'])} ratings")
    answers = zip(row["generations"], row["ratings"], strict=True)
    return ranking(user(row["instruction"], row.get("system_prompt")), answers, "generations")


@preference(
    "distilabel-orca",
    "system, input, chosen, rejected",
    system=TEXT,
    input=TEXT,
    chosen=TEXT,
    rejected=TEXT,
)
def _(row: Fields) -> Content:
    return pair(user(row["input"], row["system"]), row["chosen"], row["rejected"], scores(row))


@preference(
    "argilla",
    "instruction, chosen_response, rejected_response",
    instruction=TEXT,
    chosen_response=TEXT,
    rejected_response=TEXT,
)
def _(row: Fields) -> Content:
    return pair(user(row["instruction"]), row["chosen_response"], row["rejected_response"], scores(row))


@preference(
    "orca",
    "system, question, chosen, rejected",
    optional="system",
    guess=lambda row: "system" in row,
    question=TEXT,
    chosen=TEXT,
    rejected=TEXT,
)
def _(row: Fields) -> Content:
    return pair(user(row["question"], row.get("system")), row["chosen"], row["rejected"])


@preference(
    "stackexchange",
    "question, response_j the better answer and response_k the worse",
    question=TEXT,
    response_j=TEXT,
    response_k=TEXT,
)
def _(row: Fields) -> Content:
    return pair(user(row["question"]), row["response_j"], row["response_k"])


@preference(
    "shp",
    "Stanford: history, human_ref_A, human_ref_B; labels 1 prefers A",
    history=TEXT,
    human_ref_A=TEXT,
    human_ref_B=TEXT,
    labels=LABEL,
)
def _(row: Fields) -> Content:
    return ordered(user(row["history"]), row["human_ref_A"], row["human_ref_B"], bool(truth(row["labels"])))


@preference(
    "pku-saferlhf",
    "prompt, response_0, response_1, better_response_id",
    prompt=TEXT,
    response_0=TEXT,
    response_1=TEXT,
    better_response_id=LABEL,
)
def _(row: Fields) -> Content:
    return ordered(user(row["prompt"]), row["response_0"], row["response_1"], not truth(row["better_response_id"]))


@preference(
    "pku-saferlhf-safer",
    "prompt, response_0, response_1, safer_response_id",
    guess=lambda row: False,
    prompt=TEXT,
    response_0=TEXT,
    response_1=TEXT,
    safer_response_id=LABEL,
)
def _(row: Fields) -> Content:
    return ordered(user(row["prompt"]), row["response_0"], row["response_1"], not truth(row["safer_response_id"]))


@preference(
    "helpsteer3",
    "context, response1, response2; overall_preference < 0 prefers 1",
    context=MESSAGES,
    response1=TEXT,
    response2=TEXT,
    overall_preference=NUMBER,
)
def _(row: Fields) -> Content:
    strength = number(row["overall_preference"]) or 0.0  # -3 … 3; 0 is a tie
    answers = ((row["response1"], max(-strength, 0.0)), (row["response2"], max(strength, 0.0)))
    return ranking(turns(row["context"], "context"), answers, "response")


@preference(
    "halos-pairs",
    "HALOs: prompt, output_A, output_B; label 1 prefers A",
    prompt=MESSAGES,
    output_A=ANSWER,
    output_B=ANSWER,
    label=LABEL,
)
def _(row: Fields) -> Content:
    return ordered(turns(row["prompt"], "prompt"), row["output_A"], row["output_B"], bool(truth(row["label"])))


@preference(
    "arena",
    "Chatbot Arena: conversation_a, conversation_b; winner is model_a, model_b or a tie",
    conversation_a=MESSAGES,
    conversation_b=MESSAGES,
    winner=TEXT,
)
def _(row: Fields) -> Content:
    a, b = (turns(row[name], name) for name in ("conversation_a", "conversation_b"))
    winner = row["winner"].strip().lower()
    if winner in ("model_a", "model_b"):
        return split_chat(a, b) if winner == "model_a" else split_chat(b, a)
    if winner.startswith(("tie", "both")):
        return split_chat(a, b, (0.0, 0.0))
    raise BadRow("label", f'"winner" is {row["winner"]!r}, not model_a, model_b or a tie')


@preference(
    "auto-j",
    "Auto-J: prompt, response 1, response 2; label 0 prefers the first, 1 the second, 2 is a tie",
    prompt=TEXT,
    **{"response 1": TEXT, "response 2": TEXT},
    label=one_of(0, 1, 2),
)
def _(row: Fields) -> Content:
    answers = ((row[f"response {i + 1}"], float(number(row["label"]) == i)) for i in (0, 1))
    return ranking(user(row["prompt"]), answers, "response")


@preference(
    "llmbar",
    "LLMBar: input, output_1, output_2; label is 1 or 2",
    input=TEXT,
    output_1=TEXT,
    output_2=TEXT,
    label=one_of(1, 2),
)
def _(row: Fields) -> Content:
    return ordered(user(row["input"]), row["output_1"], row["output_2"], number(row["label"]) == 1)


@preference(
    "pandalm",
    "PandaLM: instruction, input, response1, response2; annotator1, annotator2, annotator3 say 1, 2 or 0, a tie",
    optional="input",
    instruction=TEXT,
    response1=TEXT,
    response2=TEXT,
    annotator1=one_of(0, 1, 2),
    annotator2=one_of(0, 1, 2),
    annotator3=one_of(0, 1, 2),
)
def _(row: Fields) -> Content:
    """What two of the three say."""
    votes = [number(row[f"annotator{i}"]) for i in (1, 2, 3)]
    answers = ((row[f"response{i}"], float(votes.count(i) > 1)) for i in (1, 2))
    return ranking(alpaca(row), answers, "response")


@preference(
    "alpaca-eval",
    "AlpacaEval: instruction, input, output_1, output_2; preference from 1 for the first to 2 for the second",
    optional="input",
    instruction=TEXT,
    output_1=TEXT,
    output_2=TEXT,
    preference=SIDE,
)
def _(row: Fields) -> Content:
    """The probability that either one is preferred."""
    second = (number(row["preference"]) or 0.0) - 1
    return ranking(alpaca(row), ((row["output_1"], 1 - second), (row["output_2"], second)), "output")
