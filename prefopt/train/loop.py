"""The loop: steps, evaluations and checkpoints, for every loss.

One optimizer step holds exactly ``batch_size`` examples. Each example's loss is divided by that
number, never by a micro-batch's, so the gradient is the same however the step is cut up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar

import torch

from prefopt.ahead import ahead
from prefopt.data import plan
from prefopt.model.subnormal import flushed_to_zero
from prefopt.progress import Advance, untold
from prefopt.train.guard import Guard
from prefopt.train.metrics import Metrics
from prefopt.train.objective import Objective, Ready
from prefopt.train.optimizer import Schedule as Decay
from prefopt.train.optimizer import learning_rate, set_learning_rate, step_if
from prefopt.types import Encoded


@dataclass(frozen=True)
class Schedule:
    """The resolved settings of a run, those that the loop itself reads."""

    steps: int
    batch_size: int
    peak: float
    warmup: int
    decay: Decay
    clip: float
    seed: int
    eval_every: int
    save_every: int
    group_by_prompt: bool = False


@dataclass
class TrainingState:
    """All that changes: with it, and the data, a run goes on as if it had not stopped."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    guard: Guard
    step: int = 0


@dataclass
class Hooks:
    """What a run does at the loop's occasions. The loop knows no file and no screen.

    ``stop`` ends the run by an exception, once ``stopping`` says that it was asked to.
    """

    log: Callable[[int, dict[str, float]], object] = untold
    evaluate: Callable[[int], object] = untold
    save: Callable[[int], object] = untold
    stopping: Callable[[], bool] = lambda: False
    stop: Callable[[int], object] = untold
    note: Callable[[str], object] = untold


class Stepping(Protocol):
    """A state that knows how many steps are done."""

    step: int


class Figures(NamedTuple):
    """What a step says of itself, when the device has come to its end: whether it has, and the wait for it."""

    there: Callable[[], bool]
    read: Callable[[], dict[str, float]]

    @classmethod
    def known(cls, values: dict[str, float]) -> Figures:
        return cls(lambda: True, lambda: values)


COUNTS = {"pairs": "pairs_per_second", "tokens": "tokens_per_second"}
"""what a step counts, and the name of its rate: the wait for a batch is part of the time"""
S = TypeVar("S", bound=Stepping)
B = TypeVar("B")


def fit(state: TrainingState, units: Sequence[Encoded], schedule: Schedule, hooks: Hooks) -> None:
    """`train_step` until ``schedule.steps``; the next step's batch is made ready while one is computed."""
    drawn = batches(units, schedule, state.step)
    with state.objective.lm.recorded(hooks.note), closing(ahead(partial(cut, state.objective), drawn)) as ready:
        repeat(train_step, state, ready, schedule, hooks)


def batches(units: Sequence[Encoded], schedule: Schedule, start: int) -> Iterator[list[Encoded]]:
    """What each step reads, from step ``start`` on."""
    order = plan.order(units, schedule.seed, schedule.group_by_prompt)
    for step in range(start, schedule.steps):
        yield [units[i] for i in order.batch(step, schedule.batch_size)]


def repeat(
    take: Callable[[S, B, Schedule], Figures], state: S, batches: Iterator[B], schedule: Schedule, hooks: Hooks
) -> None:
    """``take`` a step with each batch, with an evaluation before the first, after the last, and every so many between.

    A checkpoint comes before the evaluation of its step, which may take long; a run that resumes from it makes that
    evaluation again. A GPU gets the next step before the figures of one are waited for.
    """

    def due(every: int) -> bool:
        return state.step == schedule.steps or (bool(every) and state.step % every == 0)

    unread = Unread(hooks.log)
    while True:
        if state.step == 0 or due(schedule.eval_every):
            hooks.evaluate(state.step)
        if state.step == schedule.steps:
            return
        began = time.perf_counter()
        with unread.read_if_it_fails():
            figures = take(state, next(batches), schedule)
        state.step += 1
        unread.add(state.step, figures, began)
        stopping = hooks.stopping()
        if stopping or due(schedule.eval_every) or due(schedule.save_every):
            unread.read()
        if due(schedule.save_every):
            hooks.save(state.step)
        if stopping:
            hooks.stop(state.step)


@dataclass
class Unread:
    """The newest step's figures, until they are there or another step has been asked for; then they are logged."""

    log: Callable[[int, dict[str, float]], object]
    newest: tuple[int, Figures, float, float] | None = None
    ended: float = 0.0
    """when the last one that was read was through"""

    def add(self, step: int, figures: Figures, began: float) -> None:
        """A step that was handed over just now."""
        handed, there = time.perf_counter(), figures.there()
        self.read()
        self.newest = step, figures, began, handed
        if there:
            self.read()

    def read(self) -> None:
        """Waits for the figures. A step takes from its beginning, or the end of the one before, until they are there.

        Where they are there without waiting, the time of handing over is taken as the end: the host is the slower.
        Where that was before the end of the step before, it is now.
        """
        if self.newest is None:
            return
        (step, figures, began, handed), self.newest = self.newest, None
        wait = not figures.there()
        values = figures.read()
        began = max(began, self.ended)
        self.ended = handed if handed > began and not wait else time.perf_counter()
        seconds = self.ended - began
        self.log(step, {COUNTS.get(k, k): v / seconds if k in COUNTS else v for k, v in values.items()})

    @contextmanager
    def read_if_it_fails(self) -> Iterator[None]:
        """What is known of the step before is told, whatever becomes of this one."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.read()
            raise


class Batch(NamedTuple):
    """The examples of one optimizer step, and the same, cut into micro-batches that are ready to be computed."""

    examples: Sequence[Encoded]
    parts: Sequence[Ready]


def cut(objective: Objective, examples: Sequence[Encoded]) -> Batch:
    groups = objective.lm.microbatches(examples, objective.tokens_per_microbatch)
    return Batch(examples, [objective.ready(group) for group in groups])


@flushed_to_zero()
def train_step(state: TrainingState, batch: Batch, schedule: Schedule) -> Figures:
    """One optimizer step on ``batch``; its metrics. A step whose loss or gradient is not finite changes nothing.

    The host asks the device for nothing until the figures are read, so that it is always ahead.
    """
    objective, optimizer, examples = state.objective, state.optimizer, batch.examples
    metrics, own, losses, step = Metrics(), Metrics(), [], state.step + 1
    optimizer.zero_grad(set_to_none=not objective.lm.recording)  # what is recorded adds to where they are
    baseline = objective.baseline(examples)
    for part in batch.parts:
        output = objective(part, baseline)
        (output.loss.sum() / len(examples)).backward()
        metrics.add({"loss": output.loss, **output.metrics})
        losses.append(output.loss.detach().flatten())
        del output  # a pass is recorded where nothing of another one is alive
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
    finite = torch.cat([*losses, norm[None]]).isfinite().all()
    rate = learning_rate(step, schedule.peak, schedule.warmup, schedule.steps, schedule.decay)
    set_learning_rate(optimizer, rate)
    step_if(optimizer, finite)
    own.add({"grad_norm": norm, "finite": finite})  # apart, since a loss may have metrics of any name
    of_loss, of_step = metrics.send(), own.send()

    def read() -> dict[str, float]:
        values, (norm, finite) = of_loss.read(), of_step.read().values()
        state.guard.saw(step, finite == 1, values["loss"], norm)
        return values | {
            "grad_norm": norm,
            "learning_rate": rate,
            "pairs": len(examples),
            "tokens": sum(example.tokens for example in examples),
        }

    return Figures(of_step.there, read)


def evaluation_batches(units: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """In chunks of about what a step holds, none of a single unit: KTO's baseline is an average over other answers."""
    cuts = [*range(0, max(len(units) - 1, 1), 64), len(units)]
    return (units[start:end] for start, end in pairwise(cuts) if end > start)


@dataclass(frozen=True)
class Evaluation:
    """``values``: averages by name. ``singly``: each unit's metrics, in order, where units are pairs; else empty."""

    values: dict[str, float]
    singly: list[dict[str, float]]

    @property
    def accuracies(self) -> list[float]:
        return [metrics["rewards/accuracies"] for metrics in self.singly]

    @property
    def margins(self) -> list[float]:
        return [metrics["rewards/margins"] for metrics in self.singly]


@torch.no_grad()
def evaluate(objective: Objective, units: Sequence[Encoded], advance: Advance = untold) -> Evaluation:
    """The loss and its metrics over ``units``, without a gradient."""
    metrics = Metrics()
    singly: list[dict[str, float]] = []
    for batch in evaluation_batches(units):
        baseline = objective.baseline(batch)
        groups = objective.lm.microbatches(batch, objective.tokens_without_gradient)
        told: list[tuple[list[Encoded], list[str], torch.Tensor]] = []  # read when all of it is under way
        with closing(ahead(objective.ready, groups)) as ready:
            for group, part in zip(groups, ready, strict=True):
                output = objective(part, baseline)
                named = {"loss": output.loss, **output.metrics}
                metrics.add(named)
                each = {name: values.float() for name, values in named.items() if values.shape == output.loss.shape}
                if {"rewards/accuracies", "rewards/margins"} <= each.keys():
                    told.append((group, list(each), torch.stack(list(each.values()), 1)))
        known = {
            id(unit): dict(zip(names, row, strict=True))
            for group, names, rows in told
            for unit, row in zip(group, rows.tolist(), strict=True)
        }
        singly += [known[id(example)] for example in batch if id(example) in known]
        advance(len(batch))
    return Evaluation(metrics.reduce(), singly)
