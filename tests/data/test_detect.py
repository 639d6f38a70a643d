"""The layout is guessed from the columns, and where none fits, what might have been meant."""

from __future__ import annotations

import difflib

import pytest

from prefopt.data.formats import LAYOUTS, detect, named
from prefopt.data.formats.layout import ALL_OF_THEM
from prefopt.data.read import Row
from prefopt.errors import UserError
from tests.data.rows import ROWS, say


def rows(*many):
    return [Row(row, f"a.jsonl:{i}") for i, row in enumerate(many, 1)]


def refusal(*many):
    with pytest.raises(UserError) as caught:
        detect(rows(*many), "a.jsonl")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "pku-saferlhf-safer"])
def test_the_layout_is_told_from_the_columns(name):
    assert detect(rows(ROWS[name][0]), "a.jsonl").name == name


@pytest.mark.parametrize("name", ["preference", "kto", "prompt-completion"])
def test_a_file_may_hold_text_and_messages(name):
    text = ROWS[name][0]
    chat = {**text, "prompt": say("2+2=")}
    for mixed in ((text, chat), (chat, chat, text), (text, text, chat)):
        assert detect(rows(*mixed), "a.jsonl").name == name


def test_a_question_column_does_not_become_an_empty_prompt():
    said = refusal({"question": "2+2?", "chosen": "It is 4", "rejected": "It is 5"})
    assert '"question" (text), "chosen" (text), "rejected" (text)' in said
    assert 'column "question": did you mean "prompt"?' in said
    assert "Then rename it; or say --format orca (" in said
    assert "implicit" not in said


@pytest.mark.parametrize("column", ["Q", "instructions", "user_query"])
def test_nor_does_any_other_column_of_text(column):
    refusal({column: "What is 2+2?", "chosen": "It is 4", "rejected": "It is 5"})


def test_nor_does_a_prompt_column_with_a_typing_error():
    assert 'column "promt": did you mean "prompt"?' in refusal({"promt": "2+2=", "chosen": "4", "rejected": "5"})


def test_a_column_that_is_missing_throughout_is_named():
    said = refusal({"prompt": "a", "chosen": "b"})
    assert 'they come nearest to preference (no "rejected"), ' in said and said.endswith(ALL_OF_THEM)


def test_so_is_one_of_another_type():
    said = refusal({"prompt": "a", "chosen": "b", "rejected": 5})
    assert 'nearest to preference ("rejected" is 5, not text or a message or a list of messages)' in said
    said = refusal({"prompt": "a", "chosen": say("a", "b"), "rejected": "c"})
    assert "nearest to ultrafeedback-binarized (\"rejected\" is 'c', not a list of messages)" in said
    assert "--format" not in said, "no layout would read such a row"


def test_and_columns_of_which_none_is_of_its_type():
    said = refusal({"prompt": ["a"], "chosen": ["b"], "rejected": None})
    assert 'nearest to preference ("prompt" is a list, not text or a list of messages, "chosen" is a list, ' in said
    assert '"rejected" is null)' in said
    assert "no layout fits its columns (none); " in refusal({})


def test_three_layouts_are_named_at_most():
    said = refusal({"prompt": "q", "response_0": "a", "response_1": "b", "winner": 1})
    near = said.partition("nearest to ")[2]
    assert near.startswith('pku-saferlhf (no "better_response_id"), pku-saferlhf-safer (no "safer_response_id"), ')
    assert sum(f"{name} (" in near for name in LAYOUTS) == 3


def test_prompts_alone_are_sent_to_where_they_are_of_use():
    for row in {"id": 3}, {"id": "q3"}, {"category": "maths", "score": ""}:
        assert "prompts alone are for prefopt sample and prefopt ppo" in refusal({"prompt": "2+2="} | row)
    for row in {"answr": "4"}, {"said": "It is 4"}, {"said": ["4"]}:
        assert "prompts alone" not in refusal({"prompt": "2+2="} | row)


def test_a_typing_error_in_a_column_gets_the_right_name():
    assert 'column "choosen": did you mean "chosen"?' in refusal({"prompt": "a", "choosen": "b", "rejected": "c"})


def test_unknown_columns_are_told_where_the_layouts_are_listed():
    said = refusal({"a": "x", "b": 1})
    assert '"a" (text), "b" (a number)' in said
    assert "rename them to prompt, chosen and rejected" in said and said.endswith(ALL_OF_THEM)
    assert len(said) < 250


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
    for name in ("orka", "Orca"):
        with pytest.raises(UserError, match=rf"there is no format {name}; did you mean orca\? {ALL_OF_THEM}"):
            named(name)
    with pytest.raises(UserError, match=f"there is no format zzz; {ALL_OF_THEM}"):
        named("zzz")


def test_of_many_columns_some_are_named(monkeypatch):
    """And none is compared with the names in layouts that share no column, which would take many seconds."""
    monkeypatch.setattr(difflib, "get_close_matches", None)
    said = refusal({f"column {i}": 1 for i in range(50_000)})
    assert "and 49,980 more" in said and len(said) < 3000
