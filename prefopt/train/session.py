"""A run from its start to its end, whatever it trains: what ``sft``, ``train``, ``reward`` and ``ppo`` have in common.

Here are the folder's lock, the checkpoints, the signals, and where figures go. A `Course` says what a step is and what
must be saved.

config.yaml      the settings; what was chosen stands there as comments
metrics.jsonl    a line for every step and every evaluation
checkpoints/     to resume from
model/           what AutoModelForCausalLM.from_pretrained reads
results.json     the figures, before and after
pairs.jsonl      what the model thinks of single pairs, and samples.jsonl what it answers
report.html      all of it, to look at
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from prefopt.alone import alone
from prefopt.display import Display
from prefopt.errors import Stopped, UserError
from prefopt.model.language_model import LanguageModel
from prefopt.signals import Stop, resumable, stop_on_signal
from prefopt.train import checkpoint, outcome, rng
from prefopt.train.evidence import Scored
from prefopt.train.guard import Guard
from prefopt.train.job import Job, check_folder
from prefopt.train.loop import Hooks
from prefopt.train.metrics import MetricsFile
from prefopt.train.table import meaningful
from prefopt.train.track import Trackers


class Training(Protocol):
    """What every loop counts."""

    step: int
    guard: Guard


class Course(Protocol):
    """What is trained, from the start model to its results; ``tensors`` and ``state`` are all of it that changes."""

    @property
    def policy(self) -> LanguageModel: ...

    @property
    def training(self) -> Training: ...

    @property
    def reference_is(self) -> str | None:
        """The reference's fingerprint, where there is one: it must not change midway."""

    @property
    def scored(self) -> Mapping[str, Scored]:
        """The newest evaluation of single pairs, by split."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What changes, by name, in groups."""

    def state(self) -> dict[str, Any]:
        """The rest of it, as JSON, but for what every loop counts."""

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Put back what ``tensors`` and ``state`` gave."""

    def begin(self) -> None:
        """Before the first step of all: look whether all is as it should be."""

    def go(self, hooks: Hooks) -> None:
        """All steps that are left, with what ``hooks`` do between them."""

    def evaluate(self, recorder: Recorder, step: int) -> None:
        """Between steps, and before the first and after the last one."""

    def results(self) -> dict[str, Any]:
        """What results.json holds beside what it holds of every run."""


def execute(job: Job, start: Callable[[Job, Display], Course]) -> dict[str, Any]:
    """Train as planned; the results. ``start`` loads what is trained, as it stands before the first step.

    UserError, RunFailed; Stopped after a signal, with all saved.
    """
    with alone(job.out), resumable():
        check_folder(job.config)  # again: another run may have come and gone while this one read its data
        return _execute(job, start)


def _execute(job: Job, start: Callable[[Job, Display], Course]) -> dict[str, Any]:
    began, config = time.monotonic(), job.config
    with Display(0, "set-up") as display:
        trackers = Trackers(config.track, config.out, display.warn)
        found = checkpoint.load_newest(job.checkpoints) if config.resume else None
        began -= found.state.get("seconds", 0.0) if found else 0.0  # as if it had never stopped
        job.open_folder(found)
        torch.manual_seed(config.seed)
        course = start(job, display)
        _go_on(job, course, found, display)
    resumed_at = found.step if found else None
    with (
        MetricsFile(job.metrics_file, resumed_at) as file,
        Display(job.schedule.steps, job.verb, start=course.training.step) as display,
        stop_on_signal() as stop,
    ):
        trackers.start(job.out.name, job.config, course.training.step)
        recorder = Recorder(job, course, file, trackers, display, stop, began, resumed_at)
        try:
            course.go(recorder.hooks)
        finally:
            trackers.finish()
    done = course.training
    figures = outcome.results(job, course.policy, done.step, done.guard, time.monotonic() - began)
    figures |= course.results()
    outcome.write(job, course.policy, figures, course.scored)
    return figures


def _go_on(job: Job, course: Course, found: checkpoint.Checkpoint | None, display: Display) -> None:
    """From the checkpoint that was found, or from step 0."""
    if found is None:
        if job.config.resume:
            display.note(f"{job.out}: no checkpoint yet, so the run begins at step 0")
        course.begin()
        return
    if found.state["reference"] != course.reference_is:
        raise UserError(
            f"{getattr(job.config, 'reference', None) or job.config.model} is not the model that this run began with, "
            "so the reference would change midway: put that model back, or choose another --out"
        )
    if found.state.get("code", job.code) != job.code:
        whose = "reward" if job.verb == "ppo" else "loss"
        display.warn(
            f"since step {found.step} something else stands in the file of the {whose}: the run goes on with that"
        )
    course.restore(found)
    course.training.step, course.training.guard = found.step, Guard(**found.state["guard"])
    rng.restore(found.tensors("rng"))
    display.note(f"resumed from {found.path} at step {found.step}")


@dataclass
class Recorder:
    """Puts what happens where it belongs: file, trackers, screen, checkpoints."""

    job: Job
    course: Course
    file: MetricsFile
    trackers: Trackers
    display: Display
    stop: Stop
    began: float
    saved: int | None
    """the newest step that there is a checkpoint of"""

    @property
    def hooks(self) -> Hooks:
        evaluate = partial(self.course.evaluate, self)
        return Hooks(self.step, evaluate, self.save, lambda: self.stop.requested, self.pause, self.display.note)

    def step(self, step: int, values: dict[str, float]) -> None:
        self.write(step, "train", values)
        self.display.step(step, values)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        told = meaningful(values)
        self.file.write(step, split, told)
        self.trackers.log(step, split, told)

    def pause(self, step: int) -> None:
        """Ends the run if a signal asked for it, with all saved."""
        if not self.stop.requested:
            return
        if self.saved != step:
            self.save(step)
        raise Stopped(
            f"stopped by {self.stop.reason} at step {step} of {self.job.schedule.steps}; all is saved: "
            "continue with the same command and --resume"
        )

    def save(self, step: int) -> None:
        state = self.course.state() | {
            "guard": asdict(self.course.training.guard),
            "config": self.job.written(),
            "data": self.job.data.fingerprint,
            "code": self.job.code,
            "reference": self.course.reference_is,
            "seconds": time.monotonic() - self.began,
        }
        checkpoint.save(self.job.checkpoints, step, self.course.tensors() | {"rng": rng.capture()}, state)
        checkpoint.prune(self.job.checkpoints, self.job.config.keep)
        self.saved = step
