"""What a run leaves of single examples: pairs.jsonl, samples.jsonl, and the page that shows them."""

from __future__ import annotations

import json
import shutil

import pytest

from prefopt.data.encode import Encoder
from prefopt.model.load import load_model, load_tokenizer
from prefopt.train import evidence
from tests.train import tiny


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model, data = tiny.model(folder / "base"), tiny.pairs(folder / "pairs.jsonl")
    assert tiny.cli("train", model, data, folder / "out", eval_fraction=0.25) == 0
    return folder / "out"


def test_every_scored_pair_is_there_with_its_text_and_figures(run):
    found, results = rows(run / "pairs.jsonl"), tiny.results(run)
    for split, key in (("eval", "held_out"), ("training", "training")):
        of_split = [row for row in found if row["split"] == split]
        after = results[key]["after"]
        assert len(of_split) == after["pairs"]
        for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "weights"):
            assert sum(row[name] for row in of_split) / len(of_split) == pytest.approx(after[name], abs=1e-5)
    written = {line["prompt"]: line for line in rows(run.parent / "pairs.jsonl")}
    for row in found:
        line = written[row["prompt"]]
        assert (row["chosen"], row["rejected"]) == (line["chosen"], line["rejected"])


def test_samples_are_the_start_models_and_the_tuned_ones_answers(run):
    """Each answer again, from the models in their folders."""
    found = rows(run / "samples.jsonl")
    assert len(found) == evidence.SAMPLES
    held_out = {row["prompt"] for row in rows(run / "pairs.jsonl") if row["split"] == "eval"}
    assert {row["prompt"] for row in found} <= held_out
    for folder, when in ((run.parent / "base", "before"), (run / "model", "after")):
        encoder = Encoder(load_tokenizer(str(folder)))
        make = evidence.TransformersGenerator(load_model(str(folder)), encoder, temperature=0, max_new_tokens=64)
        assert [a[: evidence.TEXT] for (a,) in make([row["prompt"] for row in found])] == [row[when] for row in found]


def test_the_report_shows_them(run):
    assert "What it answers" in (run / "report.html").read_text()


def test_a_resumed_run_still_knows_the_answers_before(run, tmp_path):
    model, data, out = str(run.parent / "base"), str(run.parent / "pairs.jsonl"), tmp_path / "out"
    shutil.copytree(run, out)
    assert tiny.cli("train", model, data, out, eval_fraction=0.25, resume=True) == 0
    before, again = ([row["before"] for row in rows(folder / "samples.jsonl")] for folder in (run, out))
    assert before == again


def test_demonstrations_leave_samples_and_no_pairs(tmp_path):
    model, data = tiny.model(tmp_path / "base"), tiny.pairs(tmp_path / "pairs.jsonl")
    assert tiny.cli("sft", model, data, tmp_path / "out", max_steps=2) == 0
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    assert rows(tmp_path / "out" / "samples.jsonl")


def test_a_model_that_cannot_generate_costs_the_samples_and_not_the_run(tmp_path, monkeypatch, capfd):
    def refuse(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(evidence.TransformersGenerator, "ids", refuse)
    model, data = tiny.model(tmp_path / "base"), tiny.pairs(tmp_path / "pairs.jsonl")
    assert tiny.cli("train", model, data, tmp_path / "out", max_steps=2) == 0
    assert "no samples: the model cannot generate (RuntimeError: no such operator)" in capfd.readouterr().err
    assert (tmp_path / "out" / "results.json").exists() and not (tmp_path / "out" / "samples.jsonl").exists()
