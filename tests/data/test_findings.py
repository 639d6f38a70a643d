"""What examples tell about themselves and about each other; sources mixed with their weights."""

from __future__ import annotations

import json

import pytest

from prefopt.data.findings import Said, inspected
from prefopt.data.mix import brief, load, open_source, open_sources, read_all, split_weight
from prefopt.errors import UserError
from prefopt.types import Example, Message, Response


def pair(prompt, *responses, source="a.jsonl:1", scores=(1.0, 0.0)):
    return Example(prompt, tuple(map(Response, responses, scores)), source)


def inspect_examples(examples):
    """Those of single examples, then those of examples among others."""
    said = Said()
    return [finding for _, findings in inspected(examples, said) for finding in findings] + said.findings()


def found(*examples):
    return [(f.kind, f.message, f.drops) for f in inspect_examples(examples)]


def test_a_sound_pair_has_no_findings():
    assert found(pair("2+2=", "4", "5")) == []


@pytest.mark.parametrize(
    ("example", "kind", "said", "drops"),
    [
        (pair("2+2=", "", "5"), "empty", "chosen is empty", True),
        (pair("2+2=", "4", " \n"), "empty", "rejected is empty", True),
        (pair("", "4", "5"), "empty", "the prompt is empty", True),
        (pair("2+2=", "4", "4"), "equal", "the responses are equal", True),
        (pair("2+2=", "4", "5", scores=(2.0, 2.0)), "tie", "a tie: every response has the score 2", True),
        (pair("p", "a", "b", "c", scores=(2, 1, 1)), "tie", "some of the ranked responses are tied", False),
        (pair("p", "a", "b", "b", scores=(3, 2, 1)), "equal", "some of the ranked responses are equal", False),
        (pair("p", "a", "b", "", scores=(3, 2, 1)), "empty", "response 3 is empty", True),
        (pair("2+2=", "2+2=4", "2+2=5"), "repeats-prompt", "the responses repeat the prompt", False),
        (pair('[{"role": "user"}]', "a", "b"), "messages-as-text", "messages written out as text", False),
        (pair("q", "[{'content': 'a'}\n]", "b"), "messages-as-text", "messages written out as text", False),
        (Example("", (Response(" "),)), "empty", "the response is empty", True),
        (Example("", (Response(" ", ended=False),)), "empty", "the response is empty", True),
        (Example("", (Response("a", ended=False),)), "unended", "the response was cut off when it was sampled", False),
        (Example((Message("user", "q"),), (Response((Message("assistant", ""),)),)), "empty", "the response is", True),
    ],
)
def test_what_one_example_tells(example, kind, said, drops):
    ((got_kind, got_said, got_drops),) = found(example)
    assert (got_kind, got_drops) == (kind, drops)
    assert got_said.startswith(said)


def test_plain_text_needs_no_prompt():
    assert found(Example("", (Response("all of it"),))) == []


def test_twice_the_same_and_the_contrary():
    examples = [
        pair("2+2=", "4", "5", source="a.jsonl:1"),
        pair("2+2=", "4", "5", source="a.jsonl:2", scores=(9.0, 7.0)),
        pair("2+2=", "5", "4", source="a.jsonl:3"),
        pair("2+3=", "5", "4", source="a.jsonl:4"),
    ]
    assert [str(f) for f in inspect_examples(examples)] == [
        "a.jsonl:2: the same as a.jsonl:1",
        "a.jsonl:3: a.jsonl:1 prefers the other side",
    ]


def test_rankings_can_contradict_in_one_pair():
    one = pair("p", "a", "b", "c", source="x", scores=(3, 2, 1))
    other = pair("p", "a", "c", "b", source="y", scores=(3, 2, 1))
    assert found(one, other) == [("contradiction", "x prefers the other side", False)]


def test_a_repeated_example_contradicts_nothing_again_and_later_ones_are_named_after_the_first():
    a, b = pair("p", "a", "b", source="x"), pair("p", "b", "a", source="y")
    again = Example("p", b.responses, "z")
    assert [str(f) for f in inspect_examples([a, b, again, pair("p", "a", "b", source="w")])] == [
        "y: x prefers the other side",
        "z: the same as y",
        "w: the same as x",
    ]
    ranked = pair("p", "b", "a", "c", source="r", scores=(3, 2, 1))
    assert [str(f) for f in inspect_examples([ranked, a, b])] == [
        "x: r prefers the other side",
        "y: x prefers the other side",
    ]


def test_a_row_that_is_read_twice_is_not_called_the_same_as_itself():
    assert found(*[pair("p", "a", "b", source="x")] * 2) == [
        ("duplicate", "read twice: two of the data named hold it", False)
    ]


def test_a_response_that_was_cut_off_is_another_one():
    whole, cut = (Example("p", (Response("a", ended=ended),), f"a.jsonl:{1 + ended}") for ended in (True, False))
    assert [kind for kind, *_ in found(whole, cut)] == ["unended"]
    assert [kind for kind, *_ in found(whole, cut, cut)] == ["unended", "unended", "duplicate"]


def test_unpaired_answers_that_are_both_good_and_bad():
    good, bad = Example("p", (Response("a", 1.0),), "x"), Example("p", (Response("a", 0.0),), "y")
    assert found(good, bad) == [("contradiction", "x prefers the other side", False)]
    assert found(good, Example("p", (Response("b", 0.0),), "y")) == []


def test_texts_are_told_apart_wherever_they_are_cut():
    assert found(pair("ab", "c", "d", source="x"), pair("a", "bc", "d", source="y")) == []
    chat = Example((Message("user", "ab"),), (Response((Message("assistant", "c"),), 1.0),), "z")
    assert found(chat, Example("userab", (Response("assistantc", 1.0),), "w")) == []


def test_examples_without_a_place_are_numbered():
    assert [str(f) for f in inspect_examples([pair("p", "a", "b", source="")] * 2)] == [
        "example 2: the same as example 1"
    ]


# ---------------------------------------------------------------- sources together


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


GOOD = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}


def test_sources_are_mixed_with_their_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [GOOD, {"prompt": "2+2=", "chosen": "4"}, {**GOOD, "id": 3}])
    write(tmp_path / "b.jsonl", [{"question": "q", "response_j": "j", "response_k": "k"}])
    sources, findings = open_sources(["a.jsonl", "b.jsonl=0.5"]), []
    assert [example.source for example in read_all(sources, findings)] == ["a.jsonl:1", "a.jsonl:3", "b.jsonl:1"]
    assert [source.weight for source in sources] == [1.0, 0.5]
    assert [str(finding) for finding in findings] == ['a.jsonl:2: no "rejected"']
    assert [(s.name, s.layout.name, s.guessed) for s in sources] == [
        ("a.jsonl", "preference", True),
        ("b.jsonl", "stackexchange", True),
    ]
    assert sources[0].unread == ("id",)
    assert brief(sources[1].sample)[:2] == ["  prompt      q", "  response 1  j"]


def test_a_source_that_is_named_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [GOOD])
    with pytest.raises(UserError, match=r"a\.jsonl=2 if it shall count twice"):
        load(["a.jsonl", "a.jsonl=2"])


def test_a_source_streams_and_can_be_read_again(tmp_path):
    source = open_source(write(tmp_path / "a.jsonl", [GOOD] * 300))
    assert [sum(1 for _ in source) for _ in range(2)] == [300, 300]


def test_the_format_can_be_told(tmp_path):
    name = write(tmp_path / "a.jsonl", [{"question": "2+2?", "chosen": "4", "rejected": "5"}])
    with pytest.raises(UserError, match="--format orca"):
        load([name])
    assert load([name], format="orca")[0].prompt == (Message("user", "2+2?"),)
    assert not open_source(name, "orca").guessed
    with pytest.raises(UserError, match=r"no row of .* can be read as hh: .*a\.jsonl:1: \"chosen\" is '4', not"):
        load([name], format="hh")


def test_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lr=2", [GOOD])
    assert split_weight("lr=2") == ("lr=2", 1.0), "a file of that very name"
    assert split_weight("a.jsonl=2") == ("a.jsonl", 2.0)
    for bad in ("0", "-1", "nan", "inf", "1e9", "two", ""):
        with pytest.raises(UserError, match=f"--data a.jsonl={bad}: the weight must be a number above 0"):
            split_weight(f"a.jsonl={bad}")
