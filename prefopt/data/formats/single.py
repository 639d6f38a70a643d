"""Layouts of one response, desirable or not (KTO), or a demonstration (SFT); and of none."""

from __future__ import annotations

from typing import Any

from prefopt.data.formats.columns import ANSWER, LABEL, MESSAGES, TEXT, truth
from prefopt.data.formats.conversation import (
    Content,
    Fields,
    Turns,
    alpaca,
    answer,
    has_ended,
    last_turn,
    reply,
    text_or_turns,
    turns,
    with_system,
)
from prefopt.data.formats.layout import PROMPT, Layout, demonstration, unpaired
from prefopt.types import Response


def desirable(value: Any) -> float:
    return 1.0 if truth(value) else 0.0


def judged(prompt: str | Turns, response: Any, column: str, label: Any, ended: bool = True) -> Content:
    return prompt, (Response(reply(prompt, response, column), desirable(label), ended),)


@unpaired(
    "kto",
    "TRL: prompt and completion, as text that is used as it is, or as messages, and label",
    optional="ended",
    prompt=TEXT | MESSAGES,
    completion=ANSWER,
    label=LABEL,
)
def _(row: Fields) -> Content:
    prompt = text_or_turns(row["prompt"], "prompt")
    return judged(prompt, row["completion"], "completion", row["label"], has_ended(row))


@unpaired("kto-messages", "LLaMA-Factory, ms-swift: messages and label", messages=MESSAGES, label=LABEL)
def _(row: Fields) -> Content:
    return last_turn(turns(row["messages"], "messages"), "messages", desirable(row["label"]))


@unpaired(
    "kto-sharegpt",
    "LLaMA-Factory: conversations and kto_tag",
    optional="system",
    conversations=MESSAGES,
    kto_tag=LABEL,
)
def _(row: Fields) -> Content:
    return last_turn(with_system(row, "conversations"), "conversations", desirable(row["kto_tag"]))


@unpaired(
    "kto-alpaca",
    "LLaMA-Factory: instruction, input, output, kto_tag",
    optional="input system history",
    instruction=TEXT,
    output=TEXT,
    kto_tag=LABEL,
)
def _(row: Fields) -> Content:
    return judged(alpaca(row), row["output"], "output", row["kto_tag"])


@unpaired("halos", "HALOs: prompt, output and label", prompt=MESSAGES, output=ANSWER, label=LABEL)
def _(row: Fields) -> Content:
    return judged(turns(row["prompt"], "prompt"), row["output"], "output", row["label"])


@demonstration(
    "prompt-completion",
    "TRL: prompt and completion, as text that is used as it is, or as messages",
    optional="ended",
    prompt=TEXT | MESSAGES,
    completion=ANSWER,
)
def _(row: Fields) -> Content:
    prompt = text_or_turns(row["prompt"], "prompt")
    return prompt, (Response(reply(prompt, row["completion"], "completion"), ended=has_ended(row)),)


@demonstration("messages", "messages, a conversation; its last turn is the response", messages=MESSAGES)
def _(row: Fields) -> Content:
    return last_turn(turns(row["messages"], "messages"), "messages")


@demonstration("sharegpt", "a conversation in the column conversations", optional="system", conversations=MESSAGES)
def _(row: Fields) -> Content:
    return last_turn(with_system(row, "conversations"), "conversations")


@demonstration(
    "alpaca",
    "instruction, input, output",
    optional="input system history",
    instruction=TEXT,
    output=TEXT,
)
def _(row: Fields) -> Content:
    return alpaca(row), (Response(answer(row["output"], "output")),)


@demonstration("text", "plain text, all of it to be learned", text=TEXT)
def _(row: Fields) -> Content:
    return "", (Response(row["text"]),)


ALONE = Layout(
    PROMPT,
    "prompt",
    "prompts alone, for prefopt sample and prefopt ppo",
    {"prompt": TEXT | MESSAGES},
    lambda row: (text_or_turns(row["prompt"], "prompt"), ()),
)
"""None of the table's, since there is nothing to train on."""
