"""Losses that are no number, disks that are full: what a run does then, and what it says."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt import report
from prefopt.alone import alone
from prefopt.train import checkpoint, outcome
from prefopt.train.metrics import MetricsFile
from tests.train import tiny

FULL = "No space left on device"

# A DPO that is no number at the steps named; evaluations, which carry no gradient, are not counted.
SPOILT = """
from dataclasses import dataclass
import torch
from prefopt.losses import DPO
from prefopt.types import LossOutput

calls = []

@dataclass(frozen=True)
class Spoilt:
    at: str
    value: float = float("nan")

    def __call__(self, policy, reference, preferences):
        out = DPO()(policy, reference, preferences)
        if not policy.sum.requires_grad:
            return out
        calls.append(1)
        factor = self.value if str(len(calls)) in self.at.split("-") else 1.0
        return LossOutput(out.loss * factor, out.metrics)
"""


ON_A_GPU_TOO = pytest.mark.parametrize("when", ["at once", "late"], indirect=True)


@pytest.fixture
def when(request):
    """When a step's figures are there."""
    if request.param == "late":
        request.getfixturevalue("late")


@pytest.fixture
def spoilt(tmp_path):
    file = tmp_path / "spoilt.py"
    file.write_text(SPOILT)
    return f"{file}:Spoilt"


@pytest.mark.parametrize("value", ["nan", "inf"])
@ON_A_GPU_TOO
def test_a_step_that_is_no_number_is_skipped_before_the_update(given, tmp_path, spoilt, capsys, value, when):
    """PEERS: one NaN loss: step skipped before the update, logged; and the run goes on."""
    out = tmp_path / "run"
    settings = dict(loss=spoilt, at="3", value=value, max_steps=5, save_every=1, keep=5)
    assert tiny.cli("train", given.model, given.pairs, out, **settings) == 0
    assert "step 3 skipped: loss " + value in capsys.readouterr().err
    lines = [line for line in tiny.metrics(out) if line["split"] == "train"]
    assert [line["loss"] is None for line in lines] == [False, False, True, False, False]
    assert lines[2]["nonfinite"]["loss"] == value
    assert tiny.results(out)["skipped_steps"] == 1
    assert all(w.isfinite().all() for w in tiny.weights(out).values())
    saved = {step: checkpoint.Checkpoint(out / "checkpoints" / f"step-{step:08d}", step, {}) for step in (2, 3, 4)}
    for group in ("model", "optimizer"):
        assert tiny.same(saved[2].tensors(group), saved[3].tensors(group)), "not the moments either"
    assert tiny.apart(saved[3].tensors("model"), saved[4].tensors("model")) > 1e-4


@ON_A_GPU_TOO
def test_five_in_a_row_end_the_run_in_one_sentence(given, tmp_path, spoilt, capsys, when):
    out = tmp_path / "run"
    settings = dict(loss=spoilt, at="2-3-4-5-6", max_steps=9, save_every=1)
    assert tiny.cli("train", given.model, given.pairs, out, **settings) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("prefopt: step 6: loss nan, gradient norm nan, not finite 5 times in a row")
    assert "--learning-rate" in last
    weights = checkpoint.load_newest(out / "checkpoints").tensors("model")
    assert all(w.isfinite().all() for w in weights.values())


@ON_A_GPU_TOO
def test_a_resumed_run_counts_on(given, tmp_path, spoilt, when):
    """Two skipped before a failure and three after it are five in a row."""
    file = Path(spoilt.split(":")[0])
    out = tmp_path / "run"
    settings = dict(loss=spoilt, at="2-3-4-5-6", value="inf", max_steps=9, save_every=1)
    file.write_text(SPOILT.replace("    calls.append(1)", "    calls.append(1)\n        assert len(calls) < 4"))
    assert tiny.cli("train", given.model, given.pairs, out, **settings) == 2  # the person's own loss failed
    assert tiny.steps_saved(out)[-1] == 3
    file.write_text(SPOILT.replace("calls = []", "calls = [1, 1, 1]"))
    assert tiny.cli("train", given.model, given.pairs, out, **settings, resume=True) == 1
    assert tiny.steps_saved(out)[-1] == 5


@ON_A_GPU_TOO
def test_a_gradient_that_is_no_number_is_seen_where_the_loss_is_one(given, tmp_path, capsys, when):
    file = tmp_path / "steep.py"
    file.write_text(
        "from prefopt.losses import DPO\n"
        "from prefopt.types import LossOutput\n"
        "class Steep:\n"
        "    def __call__(self, policy, reference, preferences):\n"
        "        out = DPO()(policy, reference, preferences)\n"
        "        zero = (policy.sum[preferences.chosen] * 0).sqrt()  # 0, with an infinite slope\n"
        "        return LossOutput(out.loss + zero, out.metrics)\n"
    )
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", loss=f"{file}:Steep", max_steps=3) == 0
    assert tiny.results(tmp_path / "run")["skipped_steps"] == 3
    assert tiny.same(tiny.weights(tmp_path / "run"), tiny.weights_of(given.model))


def test_a_loss_of_ones_own_that_is_wrong_is_told_so(given, tmp_path, capsys):
    for body, said in (
        ("return 3", "Bad returned a int: return a LossOutput"),
        ("return LossOutput(policy.sum)", "Bad returned a loss of shape [8]: return one for each of 4 examples"),
    ):
        file = tmp_path / "bad.py"
        file.write_text(
            "from prefopt.types import LossOutput\nclass Bad:\n"
            f"    def __call__(self, policy, reference, preferences):\n        {body}\n"
        )
        out = tmp_path / str(len(body))
        assert tiny.cli("train", given.model, given.pairs, out, loss=f"{file}:Bad") == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
        file.write_text("from prefopt.losses import DPO as Bad\n")  # it failed before the first step: nothing is lost
        assert tiny.cli("train", given.model, given.pairs, out, loss=f"{file}:Bad") == 0


# --- full disks ----------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, FULL)


def one_sentence(capsys, *said: str) -> None:
    err = capsys.readouterr().err
    assert "Traceback" not in err and "fault of its own" not in err, err
    last = err.splitlines()[-1]
    assert last.startswith("prefopt: ") and all(part in last for part in (FULL, "--resume", *said)), last


def test_a_disk_that_fills_at_a_checkpoint(given, tmp_path, monkeypatch, capsys):
    out, sync = tmp_path / "run", checkpoint.sync
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "sync", lambda path: full() if "step-00000003" in str(path) else sync(path))
        assert tiny.cli("train", given.model, given.pairs, out) == 1
    one_sentence(capsys, "step-00000003: cannot be saved")
    assert tiny.steps_saved(out) == [1, 2] and not (out / "model").exists()
    assert tiny.cli("train", given.model, given.pairs, out, resume=True) == 0


@pytest.mark.parametrize(
    ("where", "name", "said"),
    [
        (outcome, "save_model", "model: cannot be written"),
        (outcome, "write_results", "cannot be written"),
        (report, "write", "cannot be written"),
        (outcome.LanguageModel, "save", "model: cannot be written"),
        (outcome.evidence, "write_pairs", "pairs.jsonl"),
    ],
)
def test_a_disk_that_fills_at_the_end(given, tmp_path, monkeypatch, capsys, where, name, said):
    """The model, too, is whole or absent, the checkpoints are untouched, and --resume only writes what is missing."""
    out = tmp_path / "run"
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "whole") == 0
    with monkeypatch.context() as patched:
        if name == "write_pairs":
            patched.setattr(where, "_write", _failing_write(where._write, "pairs.jsonl"))
        else:
            patched.setattr(where, name, full)
        assert tiny.cli("train", given.model, given.pairs, out) == 1
    one_sentence(capsys, said)
    assert tiny.steps_saved(out) == [3, 4]
    assert not list(out.glob(".tmp-*"))
    assert tiny.cli("train", given.model, given.pairs, out, resume=True) == 0
    assert tiny.same(tiny.weights(out), tiny.weights(tmp_path / "whole"))


def _failing_write(write, name):
    def failing(file, rows):
        with pytest.MonkeyPatch.context() as patched:
            if file.name == name:
                patched.setattr(outcome.evidence, "whole", full)
            write(file, rows)

    return failing


def test_a_disk_that_fills_at_the_metrics(given, tmp_path, monkeypatch, capsys):
    class Disk:
        """Takes 400 bytes more."""

        def __init__(self, file):
            self.file, self.name, self.left = file, file.name, 400

        def write(self, data):
            self.left -= len(data)
            self.file.write(data[: len(data) + min(0, self.left)])

        def flush(self):
            self.file.flush()
            if self.left < 0:
                full()

        def close(self):
            self.file.close()

    out, init = tmp_path / "run", MetricsFile.__init__

    def small(self, *arguments):
        init(self, *arguments)
        self._file = Disk(self._file)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsFile, "__init__", small)
        assert tiny.cli("train", given.model, given.pairs, out) == 1
    one_sentence(capsys, "metrics.jsonl: cannot be written")
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "whole") == 0
    assert tiny.cli("train", given.model, given.pairs, out, resume=True) == 0
    assert tiny.metrics(out) == tiny.metrics(tmp_path / "whole")


@pytest.mark.slow
def test_a_disk_that_is_really_full(given, tmp_path):
    """File systems too small in every way: each run ends in one sentence, and what is there is whole."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)]
    try:
        if subprocess.run(probe, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    words = tiny.words("train", given.model, given.pairs, Path("OUT"))
    script = f"""
import subprocess, sys, torch
from pathlib import Path
from prefopt.cli import main
from prefopt import report
from prefopt.train import checkpoint
torch.set_num_threads(1)
report.write = lambda *_: None
for size in range(8, 800, 88):
    disk = Path({str(tmp_path)!r}) / str(size)
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={{size}}k", "none", disk], check=True)
    words = {words!r}
    words[words.index("OUT")] = str(disk / "run")
    code = main(words)
    folder = disk / "run" / "checkpoints"
    whole = all(not checkpoint.verify(path) for path in folder.glob("step-*"))
    print("SIZE", size, code, whole, (disk / "run/model").exists())
"""
    environment = os.environ | {"PREFOPT_CACHE": os.environ["PREFOPT_CACHE"]}
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", script],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("SIZE ")]
    assert len(rows) == len(range(8, 800, 88)), done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    codes = [int(code) for _, code, _, _ in rows]
    assert set(codes) <= {0, 1, 2} and codes[0] > 0 and codes[-1] == 0
    assert all(whole == "True" for _, _, whole, _ in rows)
    assert all((model == "True") == (code == 0) for code, (_, _, _, model) in zip(codes, rows, strict=True))


def test_two_processes_do_not_train_into_one_folder(given, tmp_path, capsys):
    out = tmp_path / "run"
    with alone(out):
        assert tiny.cli("train", given.model, given.pairs, out) == 2
        assert "another process is training into it" in capsys.readouterr().err
    assert tiny.cli("train", given.model, given.pairs, out) == 0


def test_a_loss_that_is_nothing_where_the_policies_agree(given, tmp_path, capsys):
    file = tmp_path / "log.py"
    file.write_text(
        "from prefopt.types import LossOutput\n"
        "class Log:\n"
        "    def __call__(self, policy, reference, preferences):\n"
        "        s = policy.sum - reference.sum\n"
        "        margin = s[preferences.chosen] - s[preferences.rejected]\n"
        "        return LossOutput((margin - 1e-3).log())\n"
    )
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", loss=f"{file}:Log") == 1
    assert "step 0: the loss is nan where policy and reference agree" in capsys.readouterr().err
