"""Training on a loss: what ``prefopt sft`` and ``prefopt train`` do. session.py carries it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from prefopt import config as settings
from prefopt import losses
from prefopt.display import Display
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model
from prefopt.model.probe import compile_layers
from prefopt.train import evidence, optimizer, outcome
from prefopt.train.checkpoint import Checkpoint
from prefopt.train.guard import Guard
from prefopt.train.job import Job
from prefopt.train.loop import Hooks, TrainingState, evaluate, fit
from prefopt.train.objective import Objective
from prefopt.train.outcome import described
from prefopt.train.reference import reference_sums, starts_from_reference, verify_step_zero
from prefopt.train.session import Recorder, execute
from prefopt.types import Encoded


def sft(config: settings.SFT, dry_run: bool = False) -> None:
    """Supervised fine-tuning. Writes ``config.out``."""
    run(config, losses.SFT(), dry_run)


def train(config: settings.Train, dry_run: bool = False) -> None:
    """Tune on preferences with a named loss, or one from the user's own file."""
    run(config, losses.make_loss(config.loss, config.loss_options or {}), dry_run)


def run(config: settings.Training, loss: losses.Loss, dry_run: bool = False) -> dict[str, Any]:
    """The results; empty after a dry run.

    UserError if the input is wrong; RunFailed if it cannot go on; Stopped after a signal, with all saved.
    """
    with Display(0, "set-up") as display:
        job = Job.plan(config, loss, display)
    if dry_run:
        print(job.description())
        return {}
    return execute(job, start)


def start(job: Job, display: Display) -> Tuning:
    """The policy, as it stands before the first step."""
    return Tuning.on(job, objective(job, display))


def objective(job: Job, display: Display) -> Objective:
    """The model and, where the loss compares with a reference, the reference's figures for all data."""
    config = job.config
    lm = load_model(config.model, config.dtype, config.device, job.data.longest, learns=True)
    if lm.why:
        display.note(lm.why)
    elif job.compiles:
        display.note("the layers are compiled, which may take half a minute")
        if why := compile_layers(lm, job.data.longest):
            display.note(why)
    assert config.tokens_per_microbatch is not None
    made = Objective(job.loss, lm, None, config.tokens_per_microbatch, longest=job.data.longest)
    return reference_sums(job, made, display) if job.loss.needs_reference else made


@dataclass
class Tuning:
    """The course of such a run."""

    job: Job
    training: TrainingState
    examine: Callable[[Job, Objective], dict[str, Any]] = lambda job, objective: {}
    """what results.json holds of it beside the figures of every run"""
    scored: dict[str, evidence.Scored] = field(default_factory=dict)

    @classmethod
    def on(cls, job: Job, objective: Objective, **rest: Any) -> Tuning:
        trained = objective.lm.module.named_parameters()
        built = optimizer.build(job.config.optimizer, trained, job.config.weight_decay)
        return cls(job, TrainingState(objective, built, Guard()), **rest)

    @property
    def objective(self) -> Objective:
        return self.training.objective

    @property
    def policy(self) -> LanguageModel:
        return self.objective.lm

    @property
    def reference_is(self) -> str | None:
        return self.objective.reference_is

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"model": self.policy.weights(), "optimizer": optimizer.flatten_state(self.training.optimizer)}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, found: Checkpoint) -> None:
        self.policy.load_weights(found.tensors("model"))
        optimizer.restore_state(self.training.optimizer, found.tensors("optimizer"))

    def begin(self) -> None:
        verify_step_zero(self.job, self.objective)

    def go(self, hooks: Hooks) -> None:
        fit(self.training, self.job.data.train, self.job.schedule, hooks)

    def evaluate(self, recorder: Recorder, step: int) -> None:
        """The held-out data; first and last, also some of the training data, to hold beside them."""
        if step == 0:
            outcome.sample(self.job, self.policy, "before")
        if self.job.data.held_out:
            values = self._evaluated(recorder, step, "eval", self.job.data.held_out)
            recorder.display.evaluation(step, values)
        if step in (0, self.job.schedule.steps):
            self._evaluated(recorder, step, "training", self.job.sample)

    def _evaluated(self, recorder: Recorder, step: int, split: str, units: Sequence[Encoded]) -> dict[str, float]:
        if step == 0 and starts_from_reference(self.job) and self.objective.reference is not None:
            values = self.objective.all_at_reference(units)  # known without another pass
            recorder.write(0, split, values)
            return values
        which = "held-out" if split == "eval" else split
        with recorder.display.pass_(f"{which} data at step {step}", len(units)) as advance:

            def progress(more: float) -> None:
                advance(more)
                recorder.pause(step)

            evaluation = evaluate(self.objective, units, progress)
        self.scored[split] = evidence.Scored(units, evaluation)
        values = described(evaluation, units)
        recorder.write(step, split, values)
        return values

    def results(self) -> dict[str, Any]:
        around = partial(outcome.around, self.job, (0, self.training.step))
        return {
            "unit": self.job.loss.unit,
            "training": around("training"),
            "held_out": around("eval") if self.job.data.held_out else None,
            **self.examine(self.job, self.objective),
        }
