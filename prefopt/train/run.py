"""A run, from its settings to its folder: what ``prefopt sft`` and ``prefopt train`` do, in order.

config.yaml      the settings, with what was chosen
metrics.jsonl    a line for every step and every evaluation
checkpoints/     to resume from
model/           what AutoModelForCausalLM.from_pretrained reads
results.json     the figures, before and after
pairs.jsonl      what the model thinks of single pairs, and samples.jsonl what it answers
report.html      all of it, to look at
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from prefopt import config as settings
from prefopt import losses
from prefopt.errors import Stopped, UserError
from prefopt.model.load import load_model
from prefopt.signals import Stop, resumable, stop_on_signal
from prefopt.train import checkpoint, evidence, optimizer, outcome, rng
from prefopt.train.alone import alone
from prefopt.train.display import Display
from prefopt.train.guard import Guard
from prefopt.train.job import Job, check_folder
from prefopt.train.loop import Hooks, TrainingState, evaluate, fit
from prefopt.train.metrics import MetricsFile
from prefopt.train.objective import Objective
from prefopt.train.outcome import described
from prefopt.train.reference import reference_sums, starts_from_reference, verify_step_zero
from prefopt.train.track import Trackers
from prefopt.types import Encoded


def sft(config: settings.SFT, dry_run: bool = False) -> int:
    """Supervised fine-tuning. Writes ``config.out`` and returns exit code 0."""
    run(config, losses.SFT(), dry_run)
    return 0


def train(config: settings.Train, dry_run: bool = False) -> int:
    """Tune on preferences with a named loss, or one from the user's own file."""
    run(config, losses.make_loss(config.loss, config.loss_options or {}), dry_run)
    return 0


def run(config: settings.Training, loss: losses.Loss, dry_run: bool = False) -> dict[str, Any]:
    """The results; empty after a dry run.

    UserError if the input is wrong; RunFailed if it cannot go on; Stopped after a signal, with all saved.
    """
    with Display(0, "set-up") as display:
        job = Job.plan(config, loss, display)
    if dry_run:
        print(job.description())
        return {}
    return execute(job)


def execute(
    job: Job,
    make: Callable[[Job, Display], Any] | None = None,
    examine: Callable[[Job, Any], dict[str, Any]] = lambda job, objective: {},
) -> dict[str, Any]:
    """Train as planned; as `run` otherwise.

    ``make`` loads what is trained, by default the policy and what it is compared with; ``examine`` adds to the
    results what it finds of it in the end.
    """
    with alone(job.out), resumable():
        check_folder(job.config)  # again: another run may have come and gone while this one read its data
        return _execute(job, make or _objective, examine)


def _execute(job: Job, make: Callable[..., Any], examine: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    began, config = time.monotonic(), job.config
    with Display(0, "set-up") as display:
        trackers = Trackers(config.track, config.out, display.warn)
        found = checkpoint.load_newest(job.checkpoints) if config.resume else None
        began -= found.state.get("seconds", 0.0) if found else 0.0  # as if it had never stopped
        job.open_folder(found)
        torch.manual_seed(config.seed)
        objective = make(job, display)
        state = _start(job, objective, found, display)
    resumed_at = found.step if found else None
    with (
        MetricsFile(job.metrics_file, resumed_at) as file,
        Display(job.schedule.steps, job.verb, start=state.step) as display,
        stop_on_signal() as stop,
    ):
        trackers.start(job.out.name, job.config, state.step)
        recorder = Recorder(job, state, file, trackers, display, stop, began, resumed_at)
        hooks = Hooks(recorder.step, recorder.evaluate, recorder.save, lambda: stop.requested, recorder.pause)
        try:
            fit(state, job.data.train, job.schedule, hooks)
        finally:
            trackers.finish()
    figures = outcome.results(job, state, time.monotonic() - began)
    figures |= examine(job, objective)
    outcome.write(job, objective.lm, figures, recorder.scored)
    return figures


def _objective(job: Job, display: Display) -> Objective:
    """The model and, where the loss compares with a reference, the reference's figures for all data."""
    config = job.config
    lm = load_model(config.model, config.dtype, config.device, job.data.longest)
    if lm.why:
        display.note(lm.why)
    assert config.tokens_per_microbatch is not None
    objective = Objective(job.loss, lm, None, config.tokens_per_microbatch, longest=job.data.longest)
    if job.loss.needs_reference:
        objective = reference_sums(job, objective, display)
    return objective


def _start(job: Job, objective: Objective, found: checkpoint.Checkpoint | None, display: Display) -> TrainingState:
    """The state of step 0, or that of the checkpoint that was found."""
    config = job.config
    trained = objective.lm.module.named_parameters()
    state = TrainingState(objective, optimizer.build(config.optimizer, trained, config.weight_decay), Guard())
    if found is None:
        if config.resume:
            display.note(f"{job.out}: no checkpoint yet, so the run begins at step 0")
        verify_step_zero(job, objective)
        return state
    if found.state["reference"] != objective.reference_is:
        raise UserError(
            f"{getattr(config, 'reference', None) or config.model} is not the model that this run began with, so the "
            "reference would change midway: put that model back, or choose another --out"
        )
    objective.lm.load_weights(found.tensors("model"))
    optimizer.restore_state(state.optimizer, found.tensors("optimizer"))
    rng.restore(found.tensors("rng"))
    state.step, state.guard = found.step, Guard(**found.state["guard"])
    display.note(f"resumed from {found.path} at step {found.step}")
    return state


@dataclass
class Recorder:
    """Puts what the loop reports where it belongs: file, trackers, screen, checkpoints."""

    job: Job
    state: TrainingState
    file: MetricsFile
    trackers: Trackers
    display: Display
    stop: Stop
    began: float
    saved: int | None
    scored: dict[str, evidence.Scored] = field(default_factory=dict)
    """the newest evaluation of each split"""

    def step(self, step: int, values: dict[str, float]) -> None:
        self._write(step, "train", values)
        self.display.step(step, values)

    def evaluate(self, step: int) -> None:
        """The held-out data; first and last, also some of the training data, to hold beside them."""
        if step == 0:
            outcome.sample(self.job, self.state.objective.lm, "before")
        if self.job.data.held_out:
            self.display.evaluation(step, self._evaluated(step, "eval", self.job.data.held_out))
        if step in (0, self.job.schedule.steps):
            self._evaluated(step, "training", self.job.sample)

    def _evaluated(self, step: int, split: str, units: Sequence[Encoded]) -> dict[str, float]:
        objective = self.state.objective
        if step == 0 and starts_from_reference(self.job) and objective.reference is not None:
            values = objective.all_at_reference(units)  # known without another pass
            self._write(0, split, values)
            return values
        which = "held-out" if split == "eval" else split
        with self.display.pass_(f"{which} data at step {step}", len(units)) as advance:

            def progress(more: float) -> None:
                advance(more)
                self.pause(step)

            evaluation = evaluate(objective, units, progress)
        self.scored[split] = evidence.Scored(units, evaluation)
        values = described(evaluation, units)
        self._write(step, split, values)
        return values

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
        tensors = {
            "model": self.state.objective.lm.weights(),
            "optimizer": optimizer.flatten_state(self.state.optimizer),
            "rng": rng.capture(),
        }
        state: dict[str, Any] = {
            "guard": asdict(self.state.guard),
            "data": self.job.data.fingerprint,
            "reference": self.state.objective.reference_is,
            "seconds": time.monotonic() - self.began,
        }
        checkpoint.save(self.job.checkpoints, step, tensors, state)
        checkpoint.prune(self.job.checkpoints, self.job.config.keep)
        self.saved = step

    def _write(self, step: int, split: str, values: dict[str, float]) -> None:
        self.file.write(step, split, values)
        self.trackers.log(step, split, values)
