import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from prefopt.config import Training
from prefopt.errors import UserError
from prefopt.train import track
from prefopt.train.track import REDACTED, TRACKERS, Trackers, redact


class Recorder:
    """A tracker that writes down what it is told, and fails when told to."""

    def __init__(self, fail_on=()):
        self.seen, self.fail_on = [], fail_on

    def _see(self, *what):
        self.seen.append(what)
        if what[0] in self.fail_on:
            raise ConnectionError("host unreachable\nsecond line")

    def start(self, name, config, step):
        self._see("start", name, config, step)

    def log(self, step, values):
        self._see("log", step, values)

    def finish(self):
        self._see("finish")


def _trackers(monkeypatch, warnings, **recorders):
    for name, recorder in recorders.items():
        monkeypatch.setitem(TRACKERS, name, lambda out, recorder=recorder: recorder)
    return Trackers(recorders, Path("out"), warnings.append)


def test_each_tracker_is_told_all_with_split_and_without_secrets(monkeypatch):
    one, warnings = Recorder(), []
    trackers = _trackers(monkeypatch, warnings, one=one)
    trackers.start("dpo", {"beta": 0.1, "hf_token": "hunter2"}, step=7)
    trackers.log(8, "eval", {"rewards/accuracies": 0.5})
    trackers.finish()
    assert one.seen == [
        ("start", "dpo", {"beta": 0.1, "hf_token": REDACTED}, 7),
        ("log", 8, {"eval/rewards/accuracies": 0.5}),
        ("finish",),
    ]
    assert warnings == []


@pytest.mark.parametrize("fail_on", ["start", "log", "finish"])
def test_one_that_fails_is_reported_once_and_the_others_go_on(monkeypatch, fail_on):
    bad, good, warnings = Recorder([fail_on]), Recorder(), []
    trackers = _trackers(monkeypatch, warnings, bad=bad, good=good)
    trackers.start("dpo", {})
    trackers.log(1, "train", {"loss": 1.0})
    trackers.log(2, "train", {"loss": 0.5})
    trackers.finish()
    assert [seen[0] for seen in good.seen] == ["start", "log", "log", "finish"]
    assert [seen[0] for seen in bad.seen].count(fail_on) == 1 and bad.seen[-1][0] == fail_on
    assert warnings == [
        "tracker bad failed and is switched off; metrics.jsonl has everything (ConnectionError: host unreachable)"
    ]


def test_a_keyboard_interrupt_is_not_a_failure_of_the_tracker(monkeypatch):
    stop = Recorder()
    stop.log = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        _trackers(monkeypatch, [], stop=stop).log(1, "train", {})


@pytest.mark.parametrize("name, package", [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_a_missing_package_says_what_to_install(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=f"--track {name} .*pip install {package}"):
        Trackers([name], Path("out"), print)


def test_an_unknown_tracker_is_named():
    with pytest.raises(UserError, match="mlflow: no such tracker; there are tensorboard, wandb, trackio"):
        Trackers(["mlflow"], Path("out"), print)


def test_the_flag_offers_exactly_these():
    (choice, _) = get_args(get_type_hints(Training)["track"])
    assert get_args(choice) == tuple(TRACKERS)


def test_none_asked_for_imports_none():
    before = set(sys.modules)
    Trackers([], Path("out"), print).start("dpo", {})
    assert not {"wandb", "trackio", "tensorboard"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    "config, safe",
    [
        ({"token": "x"}, {"token": REDACTED}),
        ({"apiKey": "x", "API-KEY": "y"}, {"apiKey": REDACTED, "API-KEY": REDACTED}),
        ({"judge": {"headers": {"Authorization": "Bearer x"}}}, {"judge": {"headers": {"Authorization": REDACTED}}}),
        ({"password": None, "token": ""}, {"password": None, "token": ""}),
        ({"tokens_per_microbatch": 4, "tokenizer_from": "a"}, {"tokens_per_microbatch": 4, "tokenizer_from": "a"}),
        ({"train_on": "last-assistant", "keep": 2}, {"train_on": "last-assistant", "keep": 2}),
        (["hf_abcdefghijklmnopqrstuvwxyz"], [REDACTED]),
        (["sk-proj-abcdefghijklmnop", "sk-ip"], [REDACTED, "sk-ip"]),
        ("https://user:pass@host/x", f"https://{REDACTED}@host/x"),
        ("https://host/x?a=1&access_token=zzz&b=2", f"https://host/x?a=1&{REDACTED}&b=2"),
        ({"out": Path("runs/dpo"), "data": ("a", "b")}, {"out": "runs/dpo", "data": ["a", "b"]}),
    ],
)
def test_redact(config, safe):
    assert redact(config) == safe


def test_redact_reads_dataclasses():
    @dataclass
    class Config:
        beta: float = 0.1
        api_key: str = "k"

    assert redact(Config()) == {"beta": 0.1, "api_key": REDACTED}


VALUES = {"loss": 0.5, "rewards/accuracies": 1.0, "kl": float("nan")}


def _run_for_real(name, out):
    warnings = []
    trackers = Trackers([name], out, warnings.append)
    trackers.start("run", {"beta": 0.1, "hf_token": "hunter2", "data": ["a.jsonl"]})
    for step in (1, 2):
        trackers.log(step, "train", VALUES)
        trackers.log(step, "eval", VALUES)
    trackers.finish()
    assert warnings == []


def test_tensorboard_for_real(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _run_for_real("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.5)]
    assert b"hunter2" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_wandb_offline_for_real(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _run_for_real("wandb", tmp_path)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert b"hunter2" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_trackio_for_real(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    _run_for_real("trackio", tmp_path)
    (database,) = Path(trackio.utils.TRACKIO_DIR).glob(f"{track.PROJECT}*.db")
    assert b"hunter2" not in database.read_bytes()
