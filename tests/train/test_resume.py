"""A run that was killed, stopped or damaged, and resumed, ends as one that was not: to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.cli import main
from prefopt.train import checkpoint, loop, run
from tests.train import tiny

LONG = dict(max_steps=8, save_every=3, eval_every=2, eval_fraction=0.25)


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert tiny.cli("train", given.model, given.pairs, out, **LONG) == 0
    return out


@pytest.fixture
def halfway(given, tmp_path, monkeypatch):
    """A run that failed at step 7; its newest checkpoint is that of step 6."""
    out = tmp_path / "run"
    fail_at(monkeypatch, 7)
    assert tiny.cli("train", given.model, given.pairs, out, **LONG) == 1
    monkeypatch.undo()
    assert tiny.steps_saved(out) == [3, 6]
    return out


def fail_at(monkeypatch, step: int) -> None:
    take = loop.train_step

    def failing(state, *rest):
        if state.step + 1 == step:
            raise RuntimeError("the power went")
        return take(state, *rest)

    monkeypatch.setattr(loop, "train_step", failing)


def assert_the_same(out: Path, whole: Path) -> None:
    assert tiny.same(tiny.weights(out), tiny.weights(whole))
    assert tiny.metrics(out) == tiny.metrics(whole)
    differ = {"seconds", "peak_memory"}
    one, other = ({k: v for k, v in tiny.results(run).items() if k not in differ} for run in (out, whole))
    assert one["training"] == other["training"] and one["held_out"] == other["held_out"]


def test_the_same_command_twice(given, whole, tmp_path):
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **LONG) == 0
    assert_the_same(tmp_path / "run", whole)


@pytest.mark.parametrize("step", range(1, 9))
def test_a_failure_at_any_step(given, whole, tmp_path, monkeypatch, step):
    """From no checkpoint at all (steps 1 to 3) as from any other."""
    with monkeypatch.context() as patched:
        fail_at(patched, step)
        assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **LONG) == 1
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **LONG, resume=True) == 0
    assert_the_same(tmp_path / "run", whole)


def test_killed_and_stopped_from_outside(given, whole, tmp_path):
    """kill -9 at three steps, SIGTERM at two and in two evaluations, the last of them after the last step."""
    deaths = [("kill", 2), ("kill", 5), ("kill", 8), ("term", 1), ("term", 7), ("eval-term", 1), ("eval-term", 5)]
    jobs = [
        [kind, at, tiny.words("train", given.model, given.pairs, tmp_path / f"{kind}-{at}", **LONG)]
        for kind, at in deaths
    ]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.train.tiny", json.dumps(jobs)]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=300)
    statuses = json.loads(done.stdout.splitlines()[-1])
    for (kind, at), status in zip(deaths, statuses, strict=True):
        out = tmp_path / f"{kind}-{at}"
        assert status == (-signal.SIGKILL if kind == "kill" else 75), done.stderr
        assert not (out / "model").exists()
        if kind == "term":
            assert tiny.steps_saved(out)[-1] == at, "saved within the step"
        assert tiny.cli("train", given.model, given.pairs, out, **LONG, resume=True) == 0
        assert_the_same(out, whole)


def test_stopped_says_how_to_go_on(given, tmp_path, monkeypatch, capsys):
    take = loop.train_step

    def told(state, *rest):
        signal.raise_signal(signal.SIGTERM)
        return take(state, *rest)

    monkeypatch.setattr(loop, "train_step", told)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run") == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "prefopt: stopped by SIGTERM at step 1 of 4; all is saved: continue with the same command and --resume"
    )


@pytest.mark.parametrize("at", ["reference_sums", "verify_step_zero"])
def test_stopped_before_the_first_step(given, whole, tmp_path, monkeypatch, capsys, at):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, at, interrupted)
        assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **LONG) == 75
    assert "what was done is kept: continue with the same command and --resume" in capsys.readouterr().err
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **LONG, resume=True) == 0
    assert_the_same(tmp_path / "run", whole)


def test_resuming_a_finished_run_is_harmless(given, whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    assert tiny.cli("train", given.model, given.pairs, out, **LONG, resume=True) == 0
    assert_the_same(out, whole)
    assert tiny.steps_saved(out) == tiny.steps_saved(whole)


def test_a_finished_run_says_how_to_train_its_result_further(given, whole, tmp_path, capsys):
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    assert tiny.cli("train", given.model, given.pairs, out, **{**LONG, "max_steps": 90}, resume=True) == 2
    further = f", from --model {out}/model --reference {given.model} to train its result further"
    assert capsys.readouterr().err.rstrip().endswith(further)
    assert tiny.cli("train", given.model, given.pairs, out, **LONG, seed=9, resume=True) == 2
    assert "further" not in capsys.readouterr().err


def test_the_time_before_a_stop_counts(given, tmp_path, monkeypatch):
    take = loop.train_step

    def told(state, *rest):
        signal.raise_signal(signal.SIGTERM)
        return take(state, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", told)
        assert tiny.cli("train", given.model, given.pairs, tmp_path / "run") == 75
    load = checkpoint.load_newest

    def long_ago(folder):
        found = load(folder)
        assert 0 < found.state["seconds"] < 1000
        found.state["seconds"] += 1000
        return found

    monkeypatch.setattr(checkpoint, "load_newest", long_ago)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", resume=True) == 0
    assert 1000 < json.loads((tmp_path / "run" / "results.json").read_text())["seconds"] < 2000


def test_a_folder_may_be_moved(given, whole, halfway, tmp_path):
    moved = halfway.rename(tmp_path / "elsewhere")
    assert tiny.cli("train", given.model, given.pairs, moved, **LONG, resume=True) == 0
    assert_the_same(moved, whole)


def test_what_only_changes_how_it_is_computed_may_change(given, whole, halfway):
    free = dict(LONG, save_every=1, keep=3, tokens_per_microbatch=40)
    assert tiny.cli("train", given.model, given.pairs, halfway, **free, resume=True) == 0
    assert tiny.apart(tiny.weights(halfway), tiny.weights(whole)) < 1e-6
    assert tiny.steps_saved(halfway) == [6, 7, 8]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(given, whole, halfway, capsys, damage, name):
    """PEERS: a missing, truncated or flipped file is detected, and the checkpoint before is used."""
    file = halfway / "checkpoints" / "step-00000006" / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[-1] ^= 1
        file.write_bytes(content)
    assert tiny.cli("train", given.model, given.pairs, halfway, **LONG, resume=True) == 0
    said = capsys.readouterr().err
    assert f"step-00000006 is damaged ({name}: " in said and "resumed from" in said and "at step 3" in said
    assert_the_same(halfway, whole)


# --- refusals: one sentence, exit code 2, nothing touched ----------------------------------------


def refused(capsys, code: int, *said: str) -> None:
    assert code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prefopt: ")]
    for part in said:
        assert part in line


def test_a_run_is_not_overwritten(given, whole, capsys):
    before = tiny.metrics(whole)
    code = tiny.cli("train", given.model, given.pairs, whole, **LONG)
    refused(capsys, code, "holds a run already", "--resume")
    assert tiny.metrics(whole) == before


def test_a_run_is_not_continued_by_another_command(given, whole, capsys):
    code = tiny.cli("sft", given.model, given.pairs, whole, **LONG, resume=True)
    refused(capsys, code, "holds a run of another command: choose another folder")


def test_nor_is_any_other_folder(given, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(capsys, tiny.cli("train", given.model, given.pairs, tmp_path), "exists and is no run")
    refused(capsys, tiny.cli("train", given.model, given.pairs, tmp_path, resume=True), "exists and is no run")
    refused(capsys, tiny.cli("train", given.model, given.pairs, tmp_path / "thesis.txt"), "exists and is no run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(learning_rate=2e-2), "--learning-rate is 0.02 and was 0.01"),
        (dict(beta=0.2), "--beta is 0.2 and was 0.1"),
        (dict(loss="ipo"), "--loss is ipo and was dpo"),
        (dict(seed=4), "--seed is 4 and was 3"),
        (dict(max_steps=9), "--max-steps is 9 and was 8"),
        (dict(warmup_steps=2), "--warmup-steps is 2 and was 1"),
        (dict(max_length=100), "--max-length is 100 and was 128"),
        (dict(optimizer="rmsprop"), "--optimizer is rmsprop and was adamw"),
    ],
)
def test_other_settings_are_refused(given, halfway, capsys, change, said):
    before = tiny.metrics(halfway)
    refused(capsys, tiny.cli("train", given.model, given.pairs, halfway, **LONG | change, resume=True), said)
    assert tiny.metrics(halfway) == before and tiny.steps_saved(halfway) == [3, 6]


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ("learning_rate: 0.01", "learning_rate: 0.02", "--learning-rate is 0.02 and was 0.01"),
        ("# beta: 0.1", "beta: 0.2", "--beta is 0.2 and was 0.1"),
        ("seed: 3", "", "--seed is 0 and was 3"),
        ("loss: dpo", "loss: ipo", "--loss is ipo and was dpo"),
    ],
)
def test_an_edited_config_yaml_is_refused_as_a_flag_is(halfway, capsys, line, instead, said):
    file = halfway / "config.yaml"
    edited = file.read_text().replace(f"{line}\n", f"{instead}\n")
    file.write_text(edited)
    refused(capsys, main(["train", "--config", str(file), "--resume"]), f"{said} when the run in {halfway} began")
    assert file.read_text() == edited and tiny.steps_saved(halfway) == [3, 6]


def test_the_command_goes_on_whatever_config_yaml_says_and_mends_it(given, whole, halfway):
    file = halfway / "config.yaml"
    before = file.read_text()
    file.write_text(before.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    assert tiny.cli("train", given.model, given.pairs, halfway, **LONG, resume=True) == 0
    assert file.read_text() == before
    assert_the_same(halfway, whole)


def test_what_a_person_noted_in_config_yaml_stays(given, whole, halfway):
    file = halfway / "config.yaml"
    noted = f"# to be compared with last week's\n{file.read_text()}"
    file.write_text(noted)
    assert tiny.cli("train", given.model, given.pairs, halfway, **LONG, resume=True) == 0
    assert file.read_text() == noted
    assert_the_same(halfway, whole)


def test_a_checkpoint_that_tells_no_settings_is_held_against_config_yaml(given, whole, halfway, monkeypatch, capsys):
    """As those of earlier versions."""
    load = checkpoint.load_newest

    def earlier(folder):
        found = load(folder)
        del found.state["config"]
        return found

    monkeypatch.setattr(checkpoint, "load_newest", earlier)
    change = LONG | dict(beta=0.2)
    refused(capsys, tiny.cli("train", given.model, given.pairs, halfway, **change, resume=True), "is 0.2 and was 0.1")
    assert tiny.cli("train", given.model, given.pairs, halfway, **LONG, resume=True) == 0
    assert_the_same(halfway, whole)


def test_other_data_are_refused_and_named_as_the_reason(given, tmp_path, monkeypatch, capsys):
    """Though the warm-up, which follows from them, is another as well."""
    data, out = tiny.pairs(tmp_path / "pairs.jsonl"), tmp_path / "run"
    settings = dict(max_steps=None, epochs=4, warmup_steps=None, save_every=1)
    with monkeypatch.context() as patched:
        fail_at(patched, 3)
        assert tiny.cli("train", given.model, data, out, **settings) == 1
    tiny.pairs(Path(data), count=48)
    capsys.readouterr()
    refused(
        capsys, tiny.cli("train", given.model, data, out, **settings, resume=True), "began with other data than", data
    )


def test_another_model_in_the_place_of_the_reference_is_refused(given, tmp_path, monkeypatch, capsys):
    model, out = tiny.model(tmp_path / "model"), tmp_path / "run"
    with monkeypatch.context() as patched:
        fail_at(patched, 3)
        assert tiny.cli("train", model, given.pairs, out, save_every=1) == 1
    shutil.rmtree(model)
    tiny.model(tmp_path / "model", seed=1)
    capsys.readouterr()
    code = tiny.cli("train", model, given.pairs, out, save_every=1, resume=True)
    refused(capsys, code, f"{model} is not the model that this run began with")


def test_all_checkpoints_damaged(given, halfway, capsys):
    for path in (halfway / "checkpoints").glob("step-*"):
        (path / "manifest.json").unlink()
    code = tiny.cli("train", given.model, given.pairs, halfway, **LONG, resume=True)
    refused(capsys, code, "no checkpoint is whole", "step-00000003", "step-00000006")
