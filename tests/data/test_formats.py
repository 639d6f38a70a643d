"""Every layout: read as it means, and its bad rows named."""

from __future__ import annotations

import contextlib
import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.formats import LAYOUTS, detect
from prefopt.data.formats.conversation import transcript
from prefopt.data.read import Row
from prefopt.errors import UserError
from prefopt.types import Example, Finding, Message, Response
from tests.data.rows import HH, ROWS, reply, say


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


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_said_of_a_layout_names_its_columns(name):
    assert [column for column in LAYOUTS[name].columns if column not in LAYOUTS[name].about] == []


@pytest.mark.parametrize("name", ROWS)
def test_a_row_means_what_its_layout_says(name):
    row = copy.deepcopy(ROWS[name][0])
    assert read(name, row) == example(name)
    assert row == ROWS[name][0], "reading must not change the row"


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_null_or_wrong_column_is_a_finding(name):
    for column in LAYOUTS[name].columns:
        row = ROWS[name][0]
        assert finding(name, {k: v for k, v in row.items() if k != column}).startswith(f'missing: no "{column}"')
        assert finding(name, {**row, column: None}) == f'null: "{column}" is null'
        assert finding(name, {**row, column: {"odd": 1}}).startswith(f'type: "{column}" is an object, not ')


# ---------------------------------------------------------------- what a single row can have


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("preference", {"chosen": 4}, 'type: "chosen" is 4, not text'),
        ("preference", {"chosen": "\ud800"}, "encoding: the text holds \\ud800, half a character"),
        ("ultrafeedback-binarized", {"score_chosen": 1}, "order: its scores say the contrary: chosen 1, rejected 3"),
        ("hh", {"rejected": "\n\nHuman: 3+3?\n\nAssistant: 6"}, "prompt-differs: the two sides differ before the last"),
        ("hh", {"rejected": HH.removesuffix("\n\nAssistant: ")}, 'role: "rejected" ends with a user turn'),
        ("preference-implicit", {"rejected": "Else"}, "no-prompt: the two sides share no beginning"),
        ("preference-implicit-chat", {"rejected": say("3+3?", "5")}, "no-prompt: the two sides share"),
        ("preference-implicit-chat", {"chosen": say("2+2?")}, 'role: "chosen" ends with a user turn'),
        ("preference", {"prompt": say("Hi"), "chosen": say("a", "b")}, 'role: "chosen" must begin and end with an'),
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
        ("preference", {"rejected": [reply("5")]}, 'type: "rejected" is a list of messages, but its prompt is text'),
        ("kto", {"completion": reply("5")}, 'type: "completion" is a message, but its prompt is text'),
        ("preference-implicit", {"chosen": HH}, 'type: "chosen" is a "\\n\\nHuman: … \\n\\nAssistant: …" transcript, '),
        ("auto-j", {"label": 3}, 'type: "label" is 3, not 0 or 1 or 2'),
        ("llmbar", {"label": 0}, 'type: "label" is 0, not 1 or 2'),
        ("pandalm", {"annotator2": "two"}, "type: \"annotator2\" is 'two', not 0 or 1 or 2"),
        ("alpaca-eval", {"preference": 0}, 'type: "preference" is 0, not a number from 1 to 2'),
        ("kto", {"label": "good"}, "type: \"label\" is 'good', not a true or false label"),
        ("pku-saferlhf", {"better_response_id": 2}, 'type: "better_response_id" is 2, not a true or false'),
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


@pytest.mark.parametrize("name", ["kto", "prompt-completion"])
def test_a_row_says_whether_its_response_has_ended(name):
    row = ROWS[name][0]
    for value, ended in [(True, True), (False, False), ("False", False), (0.0, False), (None, True), ("", True)]:
        assert read(name, row | {"ended": value}).responses[0].ended is ended
    assert read(name, row).responses[0].ended
    assert "ended" not in LAYOUTS[name].unread(row | {"ended": False})
    said = "type: \"ended\" is '2026-11-03', not true or false (was the response cut off?): rename it if"
    assert finding(name, row | {"ended": "2026-11-03"}).startswith(said)


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


@pytest.mark.parametrize(
    ("name", "verdict", "scores"),
    [
        ("auto-j", {"label": 0}, {"5": 1.0, "4": 0.0}),
        ("auto-j", {"label": "2"}, {"5": 0.0, "4": 0.0}),
        ("llmbar", {"label": 1.0}, {"5": 1.0, "4": 0.0}),
        ("pandalm", {"annotator1": 1, "annotator3": 1}, {"5": 1.0, "4": 0.0}),
        ("pandalm", {"annotator1": 0}, {"5": 0.0, "4": 0.0}),  # two of three: a tie
        ("pandalm", {"annotator1": 1}, {"5": 0.0, "4": 0.0}),  # 1, 0 and 2
        ("alpaca-eval", {"preference": 1}, {"5": 1.0, "4": 0.0}),
        ("alpaca-eval", {"preference": 1.5}, {"5": 0.5, "4": 0.5}),
    ],
)
def test_of_two_answers_one_is_preferred_or_they_are_tied(name, verdict, scores):
    responses = read(name, {**ROWS[name][0], **verdict}).responses
    assert [(response.content[0].content, response.score) for response in responses] == [*scores.items()]


@pytest.mark.parametrize("name", ["preference", "kto", "prompt-completion"])
def test_each_row_may_be_text_or_messages(name):
    text, _, responses = ROWS[name]
    bare = {**text, "prompt": say("2+2=")}
    full = {column: [reply(v)] if column in ("chosen", "rejected", "completion") else v for column, v in bare.items()}
    assert read(name, bare) == read(name, full)
    assert read(name, full).prompt == (Message("user", "2+2="),)
    said = [response.content for response in read(name, full).responses]
    assert said == [(Message("assistant", r if isinstance(r, str) else r[0]),) for r in responses]


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
        detect([Row(row, "a.jsonl:1")], "a.jsonl")
