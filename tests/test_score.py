"""What ``prefopt score`` writes, and what is left of one that was stopped."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model, load_tokenizer
from prefopt.model.scoring import scored
from tests.train import tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return tiny.model(folder / "policy"), tiny.model(folder / "reference", seed=1)


def score(policy: str, reference: str | None, data: str, out: Path | None = None, *more: str) -> int:
    against = ["--reference", reference] if reference else []
    to = ["--out", str(out)] if out else []
    return main(["score", "--policy", policy, *against, "--data", data, *to, *more])


def read(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_row_for_each_response_in_the_order_of_the_data(models, tmp_path, capsys):
    data, out = tiny.rankings(tmp_path / "rankings.jsonl"), tmp_path / "new" / "out.jsonl"
    assert score(*models, data, out, "--beta", "0.5", "--tokens-per-microbatch", "64") == 0
    examples = encoded([data], None, Encoder(load_tokenizer(models[0]), 128)).examples
    ours, theirs = (scored(load_model(name), examples) for name in models)
    rows = iter(read(out))
    for i, example in enumerate(examples):
        for r, better in enumerate(example.scores):
            row = next(rows)
            assert (row["source"], row["response"], row["score"]) == (example.source, r, better)
            assert row["length"] == ours[i][1][r] == int(example.scored[r].sum())
            assert row["logp"] == pytest.approx(ours[i][0][r], abs=1e-4)
            assert row["reference_logp"] == pytest.approx(theirs[i][0][r], abs=1e-4)
            assert row["reward"] == 0.5 * (row["logp"] - row["reference_logp"])
    assert next(rows, None) is None
    said = capsys.readouterr().err
    assert "36 responses of 12 examples scored" in said
    assert "the better response has the higher reward in " in said


def stop_after(patched: pytest.MonkeyPatch, asked: list[int], responses: int) -> None:
    counting = LanguageModel.score

    def stopped(*arguments):
        if sum(asked) > responses:
            raise KeyboardInterrupt
        return counting(*arguments)

    patched.setattr(LanguageModel, "score", stopped)


def test_what_was_stopped_goes_on_where_it_was(models, tmp_path, asked, monkeypatch, capsys):
    data, out, whole = tiny.pairs(tmp_path / "p.jsonl"), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    small = ["--tokens-per-microbatch", "64"]
    with monkeypatch.context() as patched:
        stop_after(patched, asked, 10)
        assert score(*models, data, out, *small) == 75
    assert "what was done is kept: continue with the same command" in capsys.readouterr().err
    assert 10 < sum(asked) < 48 and not out.exists()
    assert score(*models, data, out, *small) == 0
    assert sum(asked) == 96
    assert score(*models, data, whole, *small) == 0
    assert sum(asked) == 96, "nothing is computed twice"
    assert out.read_bytes() == whole.read_bytes()


def test_what_was_stopped_without_a_cache_does_not_promise_to_go_on(models, tmp_path, asked, monkeypatch, capsys):
    data, file = tiny.pairs(tmp_path / "p.jsonl"), tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("PREFOPT_CACHE", str(file / "cache"))
    stop_after(monkeypatch, asked, 10)
    assert score(*models, data, None, "--tokens-per-microbatch", "64") == 1
    said = capsys.readouterr().err
    assert "stopped; without a cache nothing was kept: the same command begins anew" in said and "is kept" not in said


def test_what_training_asked_is_known(models, tmp_path, asked):
    data = tiny.pairs(tmp_path / "p.jsonl")
    assert tiny.cli("train", models[1], data, tmp_path / "run", max_steps=None, epochs=1, eval_fraction=0) == 0
    assert sum(asked) == 48
    assert score(*models, data) == 0
    assert sum(asked) == 96


def test_a_model_beside_itself(models, tmp_path, capsys):
    data = tiny.pairs(tmp_path / "p.jsonl")
    assert score(models[0], models[0], data) == 0
    told = capsys.readouterr()
    assert "both responses of every pair have the same reward" in told.err
    assert [json.loads(line)["reward"] for line in told.out.splitlines()] == [0.0] * 48


def test_without_a_reference_there_are_logprobs_only(models, tmp_path, capsys):
    assert score(models[0], None, tiny.pairs(tmp_path / "p.jsonl")) == 0
    told = capsys.readouterr()
    assert "the better response has the higher logp in" in told.err
    assert set(json.loads(told.out.splitlines()[0])) == {"source", "response", "score", "length", "logp"}


def test_a_disk_that_is_full_costs_nothing_that_was_computed(models, tmp_path, asked, capsys):
    data = tiny.pairs(tmp_path / "p.jsonl")
    assert score(*models, data, Path("/dev/full")) == 1
    said = capsys.readouterr().err
    assert "/dev/full: cannot be written (No space left on device); what was computed is kept" in said
    assert Path("/dev/full").is_char_device() and sum(asked) == 96
    assert score(*models, data, tmp_path / "out.jsonl") == 0
    assert sum(asked) == 96


def test_a_link_and_a_pipe_are_written_as_they_are(models, tmp_path):
    data, link, pipe = tiny.pairs(tmp_path / "p.jsonl"), tmp_path / "link.jsonl", tmp_path / "pipe"
    link.symlink_to(tmp_path / "target.jsonl")
    assert score(*models, data, link) == 0
    assert link.is_symlink() and len(read(tmp_path / "target.jsonl")) == 48
    os.mkfifo(pipe)
    read_by = threading.Thread(target=lambda: (tmp_path / "got.jsonl").write_text(pipe.read_text()))
    read_by.start()
    assert score(*models, data, pipe) == 0
    read_by.join()
    assert read(tmp_path / "got.jsonl") == read(tmp_path / "target.jsonl")


def test_an_out_that_cannot_be_written_is_told_before_anything_is_computed(models, tmp_path, asked, capsys):
    data = tiny.pairs(tmp_path / "p.jsonl")
    assert score(*models, data, tmp_path) == 2
    assert score(*models, data, tmp_path / "p.jsonl" / "out.jsonl") == 2
    assert capsys.readouterr().err.count("cannot be written") == 1 and not asked


def by_reward(reward: str, data: str, out: Path, *more: str) -> int:
    return main(["score", "--reward", reward, "--data", data, "--out", str(out), *more])


def test_a_reward_scores_what_a_policy_does(models, tmp_path, capsys):
    data, ours, theirs = tiny.rankings(tmp_path / "r.jsonl"), tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    assert score(*models, data, theirs, "--beta", "0.3") == 0
    capsys.readouterr()
    assert by_reward("implicit:{}@{}:0.3".format(*models), data, ours) == 0
    said = capsys.readouterr().err
    assert "read as" in said and "36 responses of 12 examples scored" in said
    for mine, other in zip(read(ours), read(theirs), strict=True):
        assert mine == {key: other[key] for key in ("source", "response", "score")} | {"reward": mine["reward"]}
        assert mine["reward"] == pytest.approx(other["reward"], abs=1e-4)


def test_a_function_as_a_reward_and_rows_that_can_not_be_used(tmp_path, capsys):
    file, data, out = tmp_path / "mine.py", tmp_path / "chat.jsonl", tmp_path / "out.jsonl"
    file.write_text("def longer(prompts, responses):\n    return [len(r) for r in responses]\n")
    user = [{"role": "user", "content": "Hi"}]

    def says(text):
        return [*user, {"role": "assistant", "content": text}]

    rows = [{"chosen": says("Hello there"), "rejected": says("Hm")}, {"chosen": says("no"), "rejected": says("no")}]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert by_reward(f"{file}:longer", str(data), out) == 0
    assert [(row["response"], row["reward"]) for row in read(out)] == [(0, 11.0), (1, 2.0)]
    said = capsys.readouterr().err
    assert "1 equal (dropped)" in said and "higher reward in 1.000" in said
    data.write_text(json.dumps(rows[1]) + "\n")
    assert by_reward(f"{file}:longer", str(data), tmp_path / "none.jsonl") == 2
    assert "nothing is left to score" in capsys.readouterr().err and not (tmp_path / "none.jsonl").exists()


def test_without_pairs_there_is_a_mean(tmp_path, capsys):
    file, data = tmp_path / "mine.py", tmp_path / "answers.jsonl"
    file.write_text("def longer(prompts, responses):\n    return [len(r) for r in responses]\n")
    rows = [{"prompt": prompt, "completion": "a" * n} for prompt, n in (("p", 1), ("p", 2), ("q", 3), ("r", 6))]
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert by_reward(f"{file}:longer", str(data), tmp_path / "out.jsonl") == 0
    said = capsys.readouterr().err
    assert "mean reward 3.000 (95 % interval 1.500 to 6.000)" in said and "the better" not in said
    paired = tiny.pairs(tmp_path / "pairs.jsonl")
    assert by_reward(f"{file}:longer", f"{paired}", tmp_path / "paired.jsonl") == 0
    assert "the better" in (said := capsys.readouterr().err) and "mean reward" not in said


def test_it_is_a_policy_or_a_reward(models, tmp_path, capsys):
    data = tiny.pairs(tmp_path / "p.jsonl")
    assert main(["score", "--data", data]) == 2
    assert "--policy or --reward: name one of them" in capsys.readouterr().err
    assert by_reward("x.py:f", data, tmp_path / "o", "--reference", models[0]) == 2
    assert "--reference has no effect on a --reward" in capsys.readouterr().err
    assert by_reward("x.py:f", data, tmp_path / "o", "--beta", "2") == 2
    assert "--beta has no effect on a --reward" in capsys.readouterr().err
    (tmp_path / "x.py").write_text("def f(pairs):\n    return [0.0 for _ in pairs]\n")
    assert by_reward(f"{tmp_path / 'x.py'}:f", data, Path("/dev/full")) == 1
    assert "make room, and begin again" in capsys.readouterr().err  # nothing was kept
    assert by_reward(models[0], data, tmp_path / "o") == 2
    assert "is no sequence classifier" in capsys.readouterr().err and not (tmp_path / "o").exists()
