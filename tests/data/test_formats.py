"""Every layout: told from its columns, read as it means, and its bad rows named."""

from __future__ import annotations

import contextlib
import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.formats import LAYOUTS, detect, named
from prefopt.data.formats.conversation import transcript
from prefopt.data.read import Row
from prefopt.errors import UserError
from prefopt.types import Example, Finding, Message, Response


def say(*said, dialect="role"):
    """Messages of alternating roles: user, assistant, user, ..."""
    roles = {"role": ("user", "assistant"), "from": ("human", "gpt")}[dialect]
    text = {"role": "content", "from": "value"}[dialect]
    return [{dialect: roles[i % 2], text: content} for i, content in enumerate(said)]


def reply(content, dialect="role"):
    return say("", content, dialect=dialect)[1]


def parts(content):
    return [{"type": "text", "text": content}]


HH = "\n\nHuman: 2+2? \n\nAssistant: Let me see.\n\nHuman: Well?\n\nAssistant: "

# layout -> a row of it, its prompt, its responses best first
ROWS = {
    "preference": (dict(prompt="2+2=", chosen="4", rejected="5"), "2+2=", ["4", "5"]),
    "preference-chat": (
        dict(prompt=say("2+2?"), chosen=[reply("4")], rejected=[reply("5")]),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "preference-implicit": (
        dict(chosen="The sky is blue.", rejected="The sky is blank.", source="a"),
        "The sky is",
        [" blue.", " blank."],
    ),
    "preference-implicit-chat": (
        dict(chosen=say("2+2?", "4"), rejected=say("2+2?", "5")),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "ultrafeedback-binarized": (
        dict(
            prompt="2+2?", prompt_id="x", messages=say("2+2?", "4"),
            chosen=say("2+2?", "4"), rejected=say("2+2?", "5"), score_chosen=8.5, score_rejected=3,
        ),
        [("user", "2+2?")],
        [("4", 8.5), ("5", 3.0)],
    ),
    "hh": (
        dict(chosen=HH + "4", rejected=HH + "5"),
        [("user", "2+2? "), ("assistant", "Let me see."), ("user", "Well?")],
        ["4", "5"],
    ),
    "messages-pair": (
        dict(
            chosen_messages=say(parts("2+2?"), parts("4")),
            rejected_messages=say(parts("2+2?"), parts("5")),
        ),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "openai": (
        dict(
            input={"messages": say("2+2?"), "tools": []},
            preferred_output=[reply("4")], non_preferred_output=[reply("5")],
        ),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "sharegpt-ranking": (
        dict(
            conversations=say("2+2?", dialect="from"), system="Be brief.",
            chosen=reply("4", "from"), rejected=reply("5", "from"),
        ),
        [("system", "Be brief."), ("user", "2+2?")],
        ["4", "5"],
    ),
    "alpaca-ranking": (
        dict(instruction="Add.", input="2+2", output="4", chosen="4", rejected="5"),
        [("user", "Add.\n2+2")],
        ["4", "5"],
    ),
    "swift": (dict(messages=say("2+2?", "4"), rejected_response="5"), [("user", "2+2?")], ["4", "5"]),
    "swift-messages": (
        dict(messages=say("2+2?", "4"), rejected_messages=say("2+2?", "5")),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "ultrafeedback": (
        dict(
            source="flan", instruction="2+2?", models=["a", "b"],
            completions=[{"response": r, "overall_score": s} for r, s in (("5", 2), ("4", 9.0), ("four", 9))],
        ),
        [("user", "2+2?")],
        [("4", 9.0), ("four", 9.0), ("5", 2.0)],
    ),
    "nectar": (
        dict(
            prompt="\n\nHuman: 2+2?\n\nAssistant: ", source=["x"],
            answers=[{"answer": "5", "model": "m", "rank": 2.0}, {"answer": "4", "model": "n", "rank": 1.0}],
        ),
        [("user", "2+2?")],
        [("4", -1.0), ("5", -2.0)],
    ),
    "nemo-rl": (
        dict(
            context=say("2+2?"),
            completions=[{"rank": 1, "completion": [reply("5")]}, {"rank": 0, "completion": [reply("4")]}],
        ),
        [("user", "2+2?")],
        [("4", 0.0), ("5", -1.0)],
    ),
    "distilabel": (
        dict(instruction="2+2?", generations=["5", "4"], ratings=[1, 5], model_names=["a", "b"]),
        [("user", "2+2?")],
        [("4", 5.0), ("5", 1.0)],
    ),
    "distilabel-orca": (
        dict(system="", input="2+2?", chosen="4", rejected="5", chosen_score=9, rejected_score=8, status="unchanged"),
        [("user", "2+2?")],
        [("4", 9.0), ("5", 8.0)],
    ),
    "argilla": (
        dict(
            instruction="2+2?", chosen_response="4", rejected_response="5",
            chosen_avg_rating=5.0, rejected_avg_rating=2.0,
        ),
        [("user", "2+2?")],
        [("4", 5.0), ("5", 2.0)],
    ),
    "orca": (
        dict(system="Be brief.", question="2+2?", chosen="4", rejected="5"),
        [("system", "Be brief."), ("user", "2+2?")],
        ["4", "5"],
    ),
    "stackexchange": (dict(question="2+2?", response_j="4", response_k="5"), [("user", "2+2?")], ["4", "5"]),
    "shp": (
        dict(history="2+2?", human_ref_A="5", human_ref_B="4", labels=0, score_A=2, score_B=9),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "pku-saferlhf": (
        dict(prompt="2+2?", response_0="5", response_1="4", better_response_id=1, safer_response_id=0),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "pku-saferlhf-safer": (
        dict(prompt="2+2?", response_0="5", response_1="4", safer_response_id=1),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "helpsteer3": (
        dict(domain="code", context=say("2+2?"), response1="4", response2="5", overall_preference=-2),
        [("user", "2+2?")],
        [("4", 2.0), ("5", 0.0)],
    ),
    "halos-pairs": (
        dict(prompt=say("2+2?"), output_A=[reply("5")], output_B=[reply("4")], label=0, type="pairwise_feedback"),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "arena": (
        dict(model_a="x", winner="model_b", conversation_a=say("2+2?", "5"), conversation_b=say("2+2?", "4")),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "kto": (dict(prompt="2+2=", completion="5", label=False), "2+2=", [("5", 0.0)]),
    "kto-chat": (dict(prompt=say("2+2?"), completion=[reply("4")], label=True), [("user", "2+2?")], [("4", 1.0)]),
    "kto-messages": (dict(messages=say("2+2?", "4"), label=True), [("user", "2+2?")], [("4", 1.0)]),
    "kto-sharegpt": (
        dict(conversations=say("2+2?", "5", dialect="from"), kto_tag=False),
        [("user", "2+2?")],
        [("5", 0.0)],
    ),
    "kto-alpaca": (dict(instruction="2+2?", input="", output="4", kto_tag=True), [("user", "2+2?")], [("4", 1.0)]),
    "halos": (
        dict(prompt=say("2+2?"), output=[reply("5")], label=0, reward=-3.0, type="binary_feedback"),
        [("user", "2+2?")],
        [("5", 0.0)],
    ),
    "prompt-completion": (dict(prompt="2+2=", completion="4"), "2+2=", [("4", None)]),
    "prompt-completion-chat": (dict(prompt=say("2+2?"), completion=[reply("4")]), [("user", "2+2?")], [("4", None)]),
    "messages": (
        dict(messages=say("Hi", "Hello", "2+2?", "4")),
        [("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?")],
        [("4", None)],
    ),
    "sharegpt": (
        dict(conversations=[{"from": "system", "value": "Be brief."}, *say("2+2?", "4", dialect="from")]),
        [("system", "Be brief."), ("user", "2+2?")],
        [("4", None)],
    ),
    "alpaca": (
        dict(instruction="And 2+2?", input=None, output="4", system="S", history=[["1+1?", "2"]], text="all of it"),
        [("system", "S"), ("user", "1+1?"), ("assistant", "2"), ("user", "And 2+2?")],
        [("4", None)],
    ),
    "text": (dict(text="2+2=4"), "", [("2+2=4", None)]),
}  # fmt: skip
GUESSED = [name for name in ROWS if name != "pku-saferlhf-safer"]


def example(name):
    """What the row above must become."""
    _, prompt, responses = ROWS[name]
    chat = not isinstance(prompt, str)
    if all(isinstance(response, str) for response in responses):
        responses = [*zip(responses, (1.0, 0.0), strict=True)]
    return Example(
        tuple(Message(*turn) for turn in prompt) if chat else prompt,
        tuple(Response((Message("assistant", said),) if chat else said, score) for said, score in responses),
        "a.jsonl:1",
    )


def read(name, row):
    return LAYOUTS[name].read(Row(row, "a.jsonl:1"))


def finding(name, row):
    found = read(name, row)
    assert isinstance(found, Finding), found
    assert found.drops
    return f"{found.kind}: {found.message}"


def test_every_layout_is_tested():
    assert set(ROWS) == set(LAYOUTS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_means_what_its_layout_says(name):
    row = copy.deepcopy(ROWS[name][0])
    assert read(name, row) == example(name)
    assert row == ROWS[name][0], "reading must not change the row"


@pytest.mark.parametrize("name", GUESSED)
def test_the_layout_is_told_from_the_columns(name):
    assert detect([Row(ROWS[name][0], "a.jsonl:1")], "a.jsonl").name == name


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_null_or_wrong_column_is_a_finding(name):
    for column in LAYOUTS[name].columns:
        row = ROWS[name][0]
        assert finding(name, {k: v for k, v in row.items() if k != column}).startswith(f'missing: no "{column}"')
        assert finding(name, {**row, column: None}) == f'null: "{column}" is null'
        assert finding(name, {**row, column: {"odd": 1}}).startswith(f'type: "{column}" is an object, not ')


# ---------------------------------------------------------------- the guess


def rows(*many):
    return [Row(row, f"a.jsonl:{i}") for i, row in enumerate(many, 1)]


def refusal(*many):
    with pytest.raises(UserError) as caught:
        detect(rows(*many), "a.jsonl")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_question_column_does_not_become_an_empty_prompt():
    said = refusal({"question": "2+2?", "chosen": "It is 4", "rejected": "It is 5"})
    assert '"question" (text), "chosen" (text), "rejected" (text)' in said
    assert 'column "question": did you mean "prompt"?' in said
    assert "--format orca" in said
    assert "implicit" not in said


@pytest.mark.parametrize("column", ["Q", "instructions", "user_query"])
def test_nor_does_any_other_column_of_text(column):
    refusal({column: "What is 2+2?", "chosen": "It is 4", "rejected": "It is 5"})


def test_nor_does_a_prompt_column_with_a_typing_error():
    assert 'column "promt": did you mean "prompt"?' in refusal({"promt": "2+2=", "chosen": "4", "rejected": "5"})


def test_a_column_that_is_missing_throughout_is_named():
    assert refusal({"prompt": "a", "chosen": "b"}).endswith('as preference it lacks "rejected"')


def test_prompts_alone_are_sent_to_where_they_are_of_use():
    assert "prompts alone are for prefopt sample and prefopt ppo" in refusal({"prompt": "2+2=", "id": 3})
    assert "prompts alone" not in refusal({"prompt": "2+2=", "answr": "4"})


def test_a_typing_error_in_a_column_gets_the_right_name():
    assert 'column "choosen": did you mean "chosen"?' in refusal({"prompt": "a", "choosen": "b", "rejected": "c"})


def test_unknown_columns_get_the_names_of_the_formats():
    said = refusal({"a": "x", "b": 1})
    assert '"a" (text), "b" (a number)' in said
    assert "stackexchange" in said


def test_two_layouts_that_fit_equally_are_an_error():
    said = refusal({"prompt": "a", "instruction": "a", "chosen": "b", "rejected": "c"})
    assert "--format preference (" in said
    assert "--format alpaca-ranking (" in said


def test_a_layout_that_reads_all_of_another_and_more_is_taken():
    """distilabel's Orca has the same four columns, and would leave the instruction out."""
    row = {"system": "Be kind.", "instruction": "Add.", "input": "2+2", "chosen": "4", "rejected": "5", "history": []}
    assert detect(rows(row), "a.jsonl").name == "alpaca-ranking"
    orca = {column: row[column] for column in ("system", "input", "chosen", "rejected")}
    assert detect(rows(orca), "a.jsonl").name == "distilabel-orca"
    refused = refusal({"prompt": "a", "instruction": "b", "chosen": "c", "rejected": "d", "system": "e"})
    assert (
        "--format preference (" in refused and "--format alpaca-ranking (" in refused
    )  # one optional column decides not


def test_a_few_bad_rows_do_not_hide_the_layout():
    good, bad = {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": None, "rejected": "c"}
    assert detect(rows(bad, good, good), "a.jsonl").name == "preference"


def test_an_unknown_format_suggests_the_nearest():
    with pytest.raises(UserError, match=r"there is no format orka; did you mean orca\?"):
        named("orka")


# ---------------------------------------------------------------- what a single row can have


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("preference", {"chosen": 4}, 'type: "chosen" is a number, not text'),
        ("preference", {"chosen": "\ud800"}, "encoding: the text holds \\ud800, half a character"),
        ("ultrafeedback-binarized", {"score_chosen": 1}, "order: its scores say the contrary: chosen 1, rejected 3"),
        ("hh", {"rejected": "\n\nHuman: 3+3?\n\nAssistant: 6"}, "prompt-differs: the two sides differ before the last"),
        ("hh", {"rejected": HH.removesuffix("\n\nAssistant: ")}, 'role: "rejected" ends with a user turn'),
        ("preference-implicit", {"rejected": "Else"}, "no-prompt: the two sides share no beginning"),
        ("preference-implicit-chat", {"rejected": say("3+3?", "5")}, "no-prompt: the two sides share"),
        ("preference-implicit-chat", {"chosen": say("2+2?")}, 'role: "chosen" ends with a user turn'),
        ("preference-chat", {"chosen": say("2+2?", "4")}, 'role: "chosen" must begin and end with an assistant'),
        ("messages", {"messages": say("Hi", "Hello", "2+2?")}, 'role: "messages" ends with a user turn'),
        ("messages", {"messages": [reply("4")]}, 'no-prompt: "messages" has no turn before the response'),
        ("messages", {"messages": say(None)}, 'null: "messages"[0] has no content'),
        ("messages", {"messages": [{"role": "pilot", "content": "x"}]}, 'role: "messages"[0] has the unknown role'),
        ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, 'role: "messages"[0] has the unknown role'),
        ("messages", {"messages": say([{"type": "image"}])}, 'type: "messages"[0] has a part that is not text'),
        ("messages", {"messages": say(5)}, 'type: the content of "messages"[0] is a number'),
        ("messages", {"messages": [{**reply(""), "tool_calls": [1]}]}, 'type: "messages"[0] holds a tool call'),
        ("alpaca", {"input": 5}, 'type: "input" is a number, not text'),
        ("alpaca", {"history": ["x"]}, 'type: "history" is no list of'),
        ("alpaca", {"history": 5}, 'type: "history" is no list of'),
        ("alpaca", {"system": 5}, "type: the system message is a number"),
        (
            "ultrafeedback",
            {"completions": [{"response": "4", "overall_score": "N/A"}]},
            "score: \"completions\"[0] has the score 'N/A', which is no number",
        ),
        ("ultrafeedback", {"completions": [{"response": None, "overall_score": 1}]}, 'null: "completions"[0] is null'),
        ("nectar", {"answers": [{"answer": "4", "rank": None}]}, 'score: "answers"[0] has the score None'),
        ("distilabel", {"ratings": [1]}, "type: 2 generations, but 1 ratings"),
        ("kto", {"label": "good"}, 'type: "label" is text, not a true or false label'),
        ("pku-saferlhf", {"better_response_id": 2}, 'type: "better_response_id" is a number, not a true or false'),
    ],
)  # fmt: skip
def test_a_bad_row_says_what_is_amiss(name, change, said):
    assert finding(name, {**ROWS[name][0], **change}).startswith(said)


def test_a_ranking_of_one_is_none():
    row = {"prompt": "Hi", "answers": [{"answer": "Yes?", "rank": 1}]}
    assert str(LAYOUTS["nectar"].read(Row(row, "n.jsonl:1"))) == (
        'n.jsonl:1: "answers" holds 1 response: there is nothing to rank'
    )


def test_a_near_name_is_suggested():
    assert finding("preference", {"prompt": "a", "chosen": "b", "reject": "c"}) == (
        'missing: no "rejected"; if "reject" is meant, rename it'
    )


def test_a_label_from_csv_is_text():
    texts = {"True": 1, "0": 0, "yes": 1, "No": 0}
    rows = [{"prompt": "a", "completion": "b", "label": text} for text in texts]
    assert [read("kto", row).responses[0].score for row in rows] == [*texts.values()]


@pytest.mark.parametrize("name", ["kto", "kto-chat", "prompt-completion", "prompt-completion-chat"])
def test_a_row_says_whether_its_response_has_ended(name):
    row = ROWS[name][0]
    for value, ended in [(True, True), (False, False), ("False", False), (0.0, False), (None, True)]:
        assert read(name, row | {"ended": value}).responses[0].ended is ended
    assert read(name, row).responses[0].ended
    assert "ended" not in LAYOUTS[name].unread(row | {"ended": False})
    said = 'type: "ended" is text, not true or false (was the response cut off?): rename it if it means something else'
    assert finding(name, row | {"ended": "2026-11-03"}) == said


def test_a_helpsteer_preference_of_zero_is_a_tie():
    tie = read("helpsteer3", {**ROWS["helpsteer3"][0], "overall_preference": 0})
    assert [response.score for response in tie.responses] == [0.0, 0.0]


def test_a_battle_has_a_winner_or_is_a_tie():
    row = ROWS["arena"][0]
    first = read("arena", {**row, "winner": "model_a"})
    assert [response.content[0].content for response in first.responses] == ["5", "4"]
    for word in ("tie", "tie (bothbad)", "both_bad"):
        assert [response.score for response in read("arena", {**row, "winner": word}).responses] == [0.0, 0.0]
    assert "not model_a, model_b or a tie" in str(read("arena", {**row, "winner": "x"}))
    longer = {
        **row,
        "conversation_b": say("2+2?", "4", "sure?", "yes"),
        "conversation_a": say("2+2?", "5", "sure?", "no"),
    }
    assert [len(response.content) for response in read("arena", longer).responses] == [3, 3]


def test_responses_of_several_turns_are_all_that_follows_the_prompt():
    pair = read("preference-implicit-chat", {"chosen": say("a", "b", "c", "d"), "rejected": say("a", "B")})
    assert pair.prompt == (Message("user", "a"),)
    assert [len(response.content) for response in pair.responses] == [3, 1]


def test_equal_conversations_keep_their_last_turn_as_the_response():
    pair = read("preference-implicit-chat", {"chosen": say("a", "b", "c", "d"), "rejected": say("a", "b", "c", "d")})
    assert len(pair.prompt) == 3


def test_a_nectar_prompt_that_is_no_transcript_is_one_question():
    assert read("nectar", {**ROWS["nectar"][0], "prompt": "2+2?"}).prompt == (Message("user", "2+2?"),)


def test_columns_that_are_not_read_are_known():
    assert LAYOUTS["ultrafeedback-binarized"].unread(ROWS["ultrafeedback-binarized"][0]) == ["prompt_id", "messages"]


# ---------------------------------------------------------------- laws

said = st.text(st.sampled_from("ab \n:é") | st.characters(codec="utf-8"), max_size=12)


@given(st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), said), min_size=1, max_size=5))
def test_a_transcript_is_given_back_by_its_turns(turns):
    text = "".join(f"\n\n{who}: {content}" for who, content in turns)
    who = {"user": "Human", "assistant": "Assistant"}
    assert "".join(f"\n\n{who[turn.role]}: {turn.content}" for turn in transcript(text)) == text


keys = st.sampled_from(["role", "content", "from", "value", "type", "text", "messages"])
plain = st.none() | st.booleans() | st.integers(-3, 3) | st.floats()
plain |= st.sampled_from(["", "a b", "user", "gpt", HH, "\ud800"])
junk = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": inner})
        | st.fixed_dictionaries({"response": inner, "overall_score": inner})
        | st.fixed_dictionaries({"answer": inner, "rank": inner, "completion": inner})
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ROWS)
@given(data=st.data())
def test_any_row_gives_an_example_or_a_finding(name, data):
    row = dict(ROWS[name][0])
    for column in data.draw(st.lists(st.sampled_from([*row, *LAYOUTS[name].optional]), min_size=1, max_size=2)):
        row[column] = data.draw(junk)
    assert isinstance(read(name, row), Example | Finding)
    with contextlib.suppress(UserError):
        detect(rows(row), "a.jsonl")


def test_of_many_columns_some_are_named():
    with pytest.raises(UserError) as caught:
        detect([Row({f"column {i}": 1 for i in range(50_000)}, "a.json:1")], "a.json")
    assert "and 49,980 more" in str(caught.value) and len(str(caught.value)) < 3000
