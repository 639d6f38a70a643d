"""What other tools do in silence, and what prefopt does instead: end to end, through the command line, on real files.

One test for each silent error. Those shown by whole runs stand elsewhere: the reference computed once, ever, and never
stale after a change of max_length or truncation, in tests/train/test_run.py; help of under 60 lines that imports
nothing slow in tests/test_cli.py; memory that stays flat in tests/data/test_read.py; faults (kill -9, missing,
truncated or flipped files, NaN, SIGTERM) in tests/train/test_resume.py and test_faults.py.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from prefopt import report
from prefopt.cli import main
from prefopt.errors import Stopped
from prefopt.model.language_model import LanguageModel
from prefopt.model.new import END, START
from prefopt.train import run
from prefopt.types import Encoded
from tests.train import tiny

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return tiny.model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than these runs."""
    monkeypatch.setattr(report, "write", lambda *_: None)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    file = tiny.pairs(tmp_path / "whole.jsonl", count=24)
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Encoded]:
    """What a run would train on; it stops there, with exit code 75."""
    units: list[Encoded] = []

    def keep(state: Any, given: list[Encoded], *_: Any) -> None:
        units.extend(given)
        raise Stopped("seen enough")

    monkeypatch.setattr(run, "fit", keep)
    return units


def train(model: str, data: str, **settings: object) -> int:
    return tiny.cli("train", model, data, Path(data).parent / "run", **settings)


def last(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a refusal is."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


# --- settings ------------------------------------------------------------------------------------


def test_label_smoothing_is_cdpo_and_an_option_that_does_nothing_is_an_error(
    model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL: `label_smoothing` with the sigmoid loss has no effect, no word. Here: cDPO."""
    data = tiny.write(tmp_path / "p.jsonl", rows)
    for out, settings in (("plain", {}), ("smooth", {"label_smoothing": 0.2})):
        assert tiny.cli("train", model, data, tmp_path / out, **settings) == 0
    plain, smooth = (tiny.metrics(tmp_path / out) for out in ("plain", "smooth"))
    first = [next(m for m in lines if m["split"] == "train") for lines in (plain, smooth)]
    assert first[0]["grad_norm"] * (0.5 - 0.2) / 0.5 == pytest.approx(first[1]["grad_norm"], rel=1e-3), "σ(0) − ε"
    assert tiny.cli("train", model, data, tmp_path / "x", loss="simpo", label_smoothing=0.2) == 2
    assert last(capsys) == (
        "prefopt: --label-smoothing has no effect on simpo, whose options are beta, gamma, nll_weight"
    )


def test_a_typo_in_a_config_key(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRL: "unrecognized arguments". Here: names key, file, line, and the nearest key."""
    file = tmp_path / "dpo.yaml"
    file.write_text("model: base\ndata: prefs.jsonl\nout: runs/a\nlerning_rate: 1e-6\n")
    assert main(["train", "--config", str(file)]) == 2
    assert last(capsys) == f"prefopt: {file}:4: unknown key lerning_rate; did you mean learning_rate?"


# --- rows that cannot be trusted -----------------------------------------------------------------


def test_a_column_question_instead_of_prompt(
    model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL: trains on an empty prompt. Here: error with the column names and a suggestion."""
    for row in rows:
        row["question"] = row.pop("prompt")
    data = tiny.write(tmp_path / "p.jsonl", rows)
    for command in (["check", data], tiny.words("train", model, data, tmp_path / "run")):
        assert main(command) == 2
        said = last(capsys)
        assert all(name in said for name in ('"question"', '"chosen"', '"rejected"', 'did you mean "prompt"?'))


def test_empty_or_equal_responses(
    model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained_on: list[Encoded]
) -> None:
    """TRL: trains. Here: reported with line numbers; dropped and counted, `--strict` refuses."""
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[7]["chosen"] = ""
    data = tiny.write(tmp_path / "p.jsonl", rows)
    assert train(model, data) == 75
    said = capsys.readouterr().err
    assert f"1 equal (dropped): {data}:4" in said and f"1 empty (dropped): {data}:8" in said
    assert {unit.source for unit in trained_on} == {f"{data}:{i}" for i in range(1, 25)} - {f"{data}:4", f"{data}:8"}
    assert tiny.cli("train", model, data, tmp_path / "strict", strict=True) == 2
    assert f"{data}:4: the responses are equal" in last(capsys)
    assert not (tmp_path / "strict").exists()


def test_missing_or_null_fields(
    model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained_on: list[Encoded]
) -> None:
    """TRL: `KeyError`, `AttributeError`. Here: `prefs.jsonl:501: no "rejected"`."""
    many = [dict(rows[i % 24], prompt=f"{i}?") for i in range(600)]
    del many[500]["rejected"]
    many[9]["chosen"] = None
    data = tiny.write(tmp_path / "prefs.jsonl", many)
    assert main(["check", data]) == 0
    said = capsys.readouterr().out
    assert f'{data}:501: no "rejected"' in said and f'{data}:10: "chosen" is null' in said
    assert train(model, data) == 75
    assert f"1 missing (dropped): {data}:501" in capsys.readouterr().err
    assert len(trained_on) == 598


def test_bad_json_on_line_501_of_1000(
    model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL: "Expected object or value at position 25". Here: `file:line:column`."""
    lines = [json.dumps(rows[i % 24]) for i in range(1000)]
    lines[500] = '{"prompt": "a", "chosen" "b", "rejected": "c"}'
    data = tmp_path / "prefs.jsonl"
    data.write_text("\n".join(lines))
    for command in (["check", str(data)], tiny.words("train", model, str(data), tmp_path / "run")):
        assert main(command) == 2
        assert f"{data}:501:26: bad JSON" in last(capsys)


def test_a_200_mb_line(model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRL: 1.5 GB of memory. Here: bounded, refused."""
    data = Path(tiny.write(tmp_path / "prefs.jsonl", rows))
    with data.open("ab") as file:
        file.write(b'{"prompt": "')
        file.truncate(file.tell() + 200 * 2**20)  # a hole: no disk is needed for it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert train(model, str(data)) == 2
    said = last(capsys)
    assert f"{data}:25" in said and "64 MB" in said
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 150


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["drop", "cut-prompt", "cut-response"])
def test_max_length(
    model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained_on: list[Encoded], policy: str
) -> None:
    """TRL: `max_length=32`: 64 → 30 rows without a word; 71 of 124 responses lose their end token.

    Here: counted and reported before training; the policy is explicit; no end token is faked.
    """
    data, end = tiny.write(tmp_path / "p.jsonl", rows), AutoTokenizer.from_pretrained(model).eos_token_id
    assert train(model, data) == 75
    whole = {unit.source: unit for unit in trained_on}
    long = {name for name, unit in whole.items() if max(len(unit.prompt) + len(r) for r in unit.responses) > 22}
    assert 0 < len(long) < 24
    assert main(["check", data, "--model", model, "--max-length", "22"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(policy)]
    trained_on.clear()
    assert tiny.cli("train", model, data, tmp_path / "cut", max_length=22, overlong=policy) == 75
    assert f"{len(long)} over" in capsys.readouterr().err.replace("-", "")
    assert table[0][1] == str(len(long)), "check said so beforehand"

    cut = {unit.source: unit for unit in trained_on}
    assert cut.keys() == (whole.keys() - long if policy == "drop" else whole.keys())
    without_end = 0
    for name, unit in cut.items():
        assert all(len(unit.prompt) + len(r) <= 22 for r in unit.responses)
        for response, entire in zip(unit.responses, whole[name].responses, strict=True):
            assert (response == entire[: len(response)]).all(), "nothing is put in the place of what is cut"
            assert (response[-1] == end) == (len(response) == len(entire))
            without_end += bool(response[-1] != end)
    assert (without_end > 0) == (policy == "cut-response")
    assert table[0][-1] == str(without_end)


def test_text_already_templated(
    model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained_on: list[Encoded]
) -> None:
    """TRL: two BOS. Here: detected."""
    for row in rows:
        row["prompt"] = START + row["prompt"]
    data, bos = tiny.write(tmp_path / "p.jsonl", rows), AutoTokenizer.from_pretrained(model).bos_token_id
    assert train(model, data) == 75
    assert "24 double-bos" in capsys.readouterr().err
    assert all((unit.prompt == bos).sum() == 1 and unit.prompt[0] == bos for unit in trained_on)


def test_control_tokens_in_a_users_text(
    model: str, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained_on: list[Encoded]
) -> None:
    """TRL: user text holding `</s>` or `<|im_end|>` becomes a real control token. Here: stays text."""
    rows[2]["prompt"] = f"say {END} now"
    rows[5]["chosen"] = f" a {END} b"
    rows[6]["rejected"] = f"{START}{END}"
    data = tiny.write(tmp_path / "p.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert train(model, data) == 75
    assert "3 special-token (kept)" in capsys.readouterr().err
    assert len(trained_on) == 24
    for unit in trained_on:
        assert not (unit.prompt == tokenizer.eos_token_id).any()
        for response in unit.responses:
            assert (response == tokenizer.eos_token_id).tolist() == [False] * (len(response) - 1) + [True]
            assert not (response == tokenizer.bos_token_id).any()
    (one,) = [unit for unit in trained_on if unit.source == f"{data}:3"]
    assert tokenizer.decode(one.prompt[1:]) == f"say {END} now"


def test_no_padding_however_lengths_are_mixed(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL: padding_free is "temporarily unavailable"; group by length raises for DPO data.

    Here: never pads; not needed. What is computed is one node for each different beginning, so fewer than there are.
    """
    words = [" ".join(["never"] * n) for n in range(1, 13)]
    rows = [
        {"prompt": f"{word}?", "chosen": " thanks" * (13 - i), "rejected": f" no {i}"} for i, word in enumerate(words)
    ]
    data = tiny.write(tmp_path / "p.jsonl", rows)
    computed: list[tuple[int, int]] = []
    pack: Callable[..., Any] = LanguageModel.pack

    def packed(self: LanguageModel, examples: list[Encoded]) -> Any:
        batch = pack(self, examples)
        sequences = [(*e.prompt.tolist(), *r.tolist()[:-1]) for e in examples for r in e.responses]
        beginnings = {s[:i] for s in sequences for i in range(1, len(s) + 1)}
        computed.append((batch.ids.numel(), len(beginnings)))
        return batch

    monkeypatch.setattr(LanguageModel, "pack", packed)
    assert train(model, data, max_steps=2, batch_size=12) == 0
    assert computed and all(tokens == nodes for tokens, nodes in computed)
