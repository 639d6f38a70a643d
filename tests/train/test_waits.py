"""A step asks the device for nothing, and its figures are read when the next one is under way."""

from __future__ import annotations

import traceback
from itertools import count

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.losses import LOSSES
from prefopt.train import loop, optimizer, run
from prefopt.train.guard import Guard
from tests.train import tiny
from tests.train.test_objective import objective

# What hands a value, or a shape that follows from values, to the host, which on a GPU waits for it.
ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_consecutive"}
ASKS |= {"bincount", "repeat_interleave"}
METHODS = ("tolist", "numpy", "cpu", "__array__")  # on a CPU these go no way that a mode sees


class Asked(TorchDispatchMode):
    """Where the host asked for what was computed."""

    def __init__(self):
        super().__init__()
        self.places: list[str] = []

    def note(self, name: str) -> None:
        self.places.append(f"{name}: {''.join(traceback.format_stack(limit=6))}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in ASKS or any(i is not None and i.dtype == torch.bool for i in indices):
            self.note(name)
        return func(*args, **(kwargs or {}))


def asked(of) -> list[str]:
    with Asked() as mode, pytest.MonkeyPatch.context() as patched:
        for name in METHODS:
            method = getattr(torch.Tensor, name)

            def noted(self, *rest, name=name, method=method, **more):
                mode.note(name)
                return method(self, *rest, **more)

            patched.setattr(torch.Tensor, name, noted)
        of()
    return mode.places


def test_it_sees_who_asks():
    x, n = torch.arange(3.0), torch.tensor([1, 2, 0])
    asks = [
        lambda: float(x[0]),
        lambda: bool((x == 0).all()),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x.tolist(),
    ]
    asks += [lambda: x.numpy(), lambda: x.cpu(), lambda: n.bincount(), lambda: x.repeat_interleave(n)]
    for ask in [*asks, lambda: np.asarray(x)]:
        assert asked(ask)
    assert not asked(lambda: x[torch.tensor([0, 2])].sum())


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"kto"}))
def test_a_step_asks_for_nothing(given, tmp_path, name):
    """Of any loss but KTO's, which sorts its metrics by label: how many are desirable only the device knows."""
    job, ours = objective(given, tmp_path, name, tokens_per_microbatch=60)
    state = loop.TrainingState(ours, optimizer.build("adamw", ours.lm.module.named_parameters()), Guard())
    batch = loop.cut(ours, next(loop.batches(job.data.train, job.schedule, 0)))
    assert ours.lm.way == "tree" and len(batch.parts) > 1
    figures = []
    step = loop.train_step.__wrapped__  # what is around it asks a number of the host
    places = asked(lambda: figures.append(step(state, batch, job.schedule)))
    assert not places, places[0]
    assert figures[0].there() and figures[0].read()["grad_norm"] > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_not_waited_for(given, tmp_path):
    wide = given._replace(model=tiny.model(tmp_path / "wide", "wide"))
    job, ours = objective(wide, tmp_path, "dpo", device="cuda", tokens_per_microbatch=60)
    state = loop.TrainingState(ours, optimizer.build("adamw", ours.lm.module.named_parameters()), Guard())
    batch = loop.cut(ours, job.data.train[:8])
    loop.train_step(state, batch, job.schedule).read()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        figures = loop.train_step(state, batch, job.schedule)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert figures.read()["grad_norm"] > 0


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
@pytest.mark.parametrize("already", [0, 2])
def test_an_update_that_is_not_finite_changes_nothing(kind, already):
    weight = torch.nn.Parameter(torch.randn(3, 4))
    made = optimizer.build(kind, [("weight", weight)])
    optimizer.set_learning_rate(made, 0.1)
    for _ in range(already):
        weight.grad = torch.randn(3, 4)
        optimizer.step_if(made, torch.tensor(True))
    before = {"weight": weight.detach().clone()} | {k: v.clone() for k, v in optimizer.flatten_state(made).items()}
    weight.grad = torch.full((3, 4), torch.nan)
    optimizer.step_if(made, torch.tensor(False))
    after = {"weight": weight.detach()} | optimizer.flatten_state(made)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all((value == 0).all() for name, value in after.items() if name not in before)  # begun, and empty
    weight.grad = torch.ones(3, 4)
    optimizer.step_if(made, torch.tensor(True))
    assert not torch.equal(weight, before["weight"]) and weight.isfinite().all()
    assert optimizer.flatten_state(made)["weight.step"].item() == already + 1


class Slow:
    """Steps whose figures are there as soon as they are read; ``happened`` is told of everything."""

    def __init__(self, stop_at: int = 0):
        self.happened: list[str] = []
        self.step, self.stop_at = 0, stop_at
        self.hooks = loop.Hooks(
            lambda step, values: self.happened.append(f"log {step}"),
            lambda step: self.happened.append(f"evaluate {step}"),
            lambda step: self.happened.append(f"save {step}"),
            lambda: self.step == self.stop_at,
            self.stop,
        )

    def stop(self, step: int) -> None:
        self.happened.append(f"stop {step}")
        raise KeyboardInterrupt

    def take(self, state, batch, schedule) -> loop.Figures:
        self.happened.append(f"take {self.step + 1}")
        return loop.Figures(lambda: False, lambda: {"pairs": 8})

    def run(self, steps: int, **settings) -> str:
        schedule = loop.Schedule(steps, 8, 1.0, 0, "constant", 1.0, 0, **settings)
        loop.repeat(self.take, self, count(), schedule, self.hooks)
        return ", ".join(self.happened)


def test_figures_are_read_when_the_next_step_is_asked_for():
    assert Slow().run(3, eval_every=0, save_every=100) == (
        "evaluate 0, take 1, take 2, log 1, take 3, log 2, log 3, save 3, evaluate 3"
    )


def test_they_are_read_before_anything_else_is_told_of_the_step():
    assert Slow().run(4, eval_every=2, save_every=3) == (
        "evaluate 0, take 1, take 2, log 1, log 2, evaluate 2, take 3, log 3, save 3, take 4, log 4, save 4, evaluate 4"
    )
    slow = Slow(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        slow.run(4, eval_every=0, save_every=100)
    assert slow.happened == ["evaluate 0", "take 1", "take 2", "log 1", "log 2", "stop 2"]


def test_a_run_whose_figures_are_late_is_the_same_run(given, tmp_path, request):
    settings = dict(max_steps=7, eval_fraction=0.25, eval_every=2, save_every=3)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "soon", **settings) == 0
    request.getfixturevalue("late")
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "late", **settings) == 0
    assert tiny.metrics(tmp_path / "soon") == tiny.metrics(tmp_path / "late")
    assert tiny.same(tiny.weights(tmp_path / "soon"), tiny.weights(tmp_path / "late"))


def test_what_goes_wrong_later_loses_no_figures():
    slow = Slow()
    take = slow.take

    def failing(state, *rest):
        if state.step == 2:
            raise MemoryError
        return take(state, *rest)

    slow.take = failing
    with pytest.raises(MemoryError):
        slow.run(4, eval_every=0, save_every=100)
    assert slow.happened[-2:] == ["log 1", "log 2"]


class Clock:
    """A host that needs ``host`` seconds to hand a step over, and a device that needs ``device`` for it."""

    def __init__(self, monkeypatch, host: float, device: float):
        self.now, self.host, self.device, self.free = 100.0, host, device, 0.0
        self.step, self.rates = 0, []
        monkeypatch.setattr(loop.time, "perf_counter", lambda: self.now)

    def take(self, state, batch, schedule) -> loop.Figures:
        begun = self.now
        self.now += self.host
        self.free = through = max(begun, self.free) + max(self.device, self.host + 6e-5)

        def read() -> dict[str, float]:
            self.now = max(self.now, through)
            return {"pairs": 8}

        return loop.Figures(lambda: self.now >= through, read)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.rates.append(values["pairs_per_second"])
        self.now += 5e-4  # a line is written


def test_a_rate_is_positive_whenever_the_figures_come(monkeypatch):
    """Those of a step come while the ones before it are written: after it was handed over, and before it is asked."""
    clock = Clock(monkeypatch, 0.01, 0.01002)
    clock.log = lambda step, values: (clock.rates.append(values["pairs_per_second"]), clock.__dict__.update(
        now=clock.now + 0.05))  # fmt: skip
    schedule = loop.Schedule(12, 8, 1.0, 0, "constant", 1.0, 0, 0, 100)
    loop.repeat(clock.take, clock, count(), schedule, loop.Hooks(clock.log))
    assert len(clock.rates) == 12 and all(0 < rate <= 8 / 0.01 * 1.01 for rate in clock.rates)


@pytest.mark.parametrize("save_every", [1, 3, 100])
@pytest.mark.parametrize(("host", "device"), [(0.01, 0.001), (0.01, 0.01), (0.01, 0.03)])
def test_a_rate_is_the_slower_ones(monkeypatch, host, device, save_every):
    clock = Clock(monkeypatch, host, device)
    schedule = loop.Schedule(12, 8, 1.0, 0, "constant", 1.0, 0, 0, save_every)
    loop.repeat(clock.take, clock, count(), schedule, loop.Hooks(clock.log))
    assert clock.rates == pytest.approx([8 / max(host, device)] * 12, rel=0.12)


def test_a_signal_saves_what_is_known(given, tmp_path, monkeypatch, late):
    settings = dict(max_steps=7, save_every=100)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "whole", **settings) == 0
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", loop.train_step)  # put back what ``die`` changes
        patched.setattr(run, "evaluate", run.evaluate)
        tiny.die("term", 4)
        assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 75
    assert [line["step"] for line in tiny.metrics(tmp_path / "run") if line["split"] == "train"] == [1, 2, 3, 4]
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings, resume=True) == 0
    assert tiny.same(tiny.weights(tmp_path / "run"), tiny.weights(tmp_path / "whole"))
    assert tiny.metrics(tmp_path / "run") == tiny.metrics(tmp_path / "whole")


def test_a_loss_has_metrics_of_any_name_but_the_steps_own(given, tmp_path, capsys):
    source = (
        "from prefopt.losses import DPO\n"
        "from prefopt.types import LossOutput\n"
        "class Named:\n"
        "    def __call__(self, policy, reference, preferences):\n"
        "        out = DPO()(policy, reference, preferences)\n"
        "        return LossOutput(out.loss, {'NAME': out.loss * 0})\n"
    )
    file = tmp_path / "named.py"
    file.write_text(source.replace("NAME", "finite"))
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", loss=f"{file}:Named") == 0
    assert tiny.results(tmp_path / "run")["skipped_steps"] == 0
    assert tiny.metrics(tmp_path / "run")[-1]["finite"] == 0
    file.write_text(source.replace("NAME", "grad_norm"))
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "other", loss=f"{file}:Named") == 2
    assert "returned a metric grad_norm, which is taken" in capsys.readouterr().err
