"""``prefopt ppo``: a run of PPO, from its settings to its folder, which holds what every run's does.

A checkpoint holds the value model too, and its optimizer; ``model/`` is the policy.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, cast

import torch

from prefopt import config as settings
from prefopt.data.encode import Encoder
from prefopt.errors import Stopped, UserError
from prefopt.model.fingerprint import model_fingerprint
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model
from prefopt.rl.loop import PPO, PPOState, evaluate, ppo_step
from prefopt.rl.prompts import Asked, prepare
from prefopt.rl.rewards import Reward, RewardModel, load_reward
from prefopt.rl.rollout import Cast
from prefopt.rl.value import ValueModel
from prefopt.signals import Stop, resumable, stop_on_signal
from prefopt.terminal import counted
from prefopt.train import checkpoint, optimizer, outcome, rng, seen
from prefopt.train.alone import alone
from prefopt.train.display import Display, size
from prefopt.train.guard import Guard
from prefopt.train.job import Job, check_folder
from prefopt.train.loop import Hooks, batches, repeat
from prefopt.train.metrics import MetricsFile, peak_memory, read_metrics
from prefopt.train.track import Trackers


def ppo(config: settings.PPO, dry_run: bool = False) -> int:
    """Writes ``config.out`` and returns exit code 0."""
    run(config, dry_run)
    return 0


def run(config: settings.PPO, dry_run: bool = False) -> dict[str, Any]:
    """The results; empty after a dry run.

    UserError if the input is wrong; RunFailed if it cannot go on; Stopped after a signal, with all saved.
    """
    method = method_of(config)
    with Display(0, "set-up") as display:
        job = Job.plan(config, cast(Any, method), display, cast(Any, prepare))
        reward = load_reward(config.reward, config.dtype, config.device)
    if dry_run:
        print(description(job, method))
        return {}
    return execute(job, method, reward)


def method_of(config: settings.PPO) -> PPO:
    given = {field.name: getattr(config, field.name) for field in fields(PPO) if hasattr(config, field.name)}
    return PPO(**given)


def execute(job: Job, method: PPO, reward: Reward) -> dict[str, Any]:
    """Train as planned; as `run` otherwise."""
    with alone(job.out), resumable():
        check_folder(job.config)
        return _execute(job, method, reward)


def _execute(job: Job, method: PPO, reward: Reward) -> dict[str, Any]:
    began, config = time.monotonic(), job.config
    with Display(0, "set-up") as display:
        trackers = Trackers(config.track, config.out, display.warn)
        found = checkpoint.load_newest(job.checkpoints) if config.resume else None
        began -= found.state.get("seconds", 0.0) if found else 0.0  # as if it had never stopped
        job.open_folder(found)
        torch.manual_seed(config.seed)
        state = _start(job, method, reward, display)
        reference_is = model_fingerprint(state.cast.reference.bare)
        if found:
            _restore(state, found, reference_is)
            display.note(f"resumed from {found.path} at step {found.step}")
    resumed_at = found.step if found else None
    with (
        MetricsFile(job.metrics_file, resumed_at) as file,
        Display(job.schedule.steps, job.verb, start=state.step) as display,
        stop_on_signal() as stop,
    ):
        trackers.start(job.out.name, job.config, state.step)
        recorder = Recorder(job, method, state, file, trackers, display, stop, reference_is, began, resumed_at)
        hooks = Hooks(recorder.step, recorder.evaluate, recorder.save, lambda: stop.requested, recorder.pause)
        try:
            asked = batches(job.data.train, job.schedule, state.step)
            repeat(partial(ppo_step, method=method), state, asked, job.schedule, hooks)
        finally:
            trackers.finish()
    figures = results(job, state, time.monotonic() - began)
    outcome.write(job, state.cast.policy, figures, {})
    return figures


def _start(job: Job, method: PPO, reward: Reward, display: Display) -> PPOState:
    """The state of step 0."""
    config, asked = job.config, job.data
    assert isinstance(config, settings.PPO) and isinstance(asked, Asked)
    policy = load_model(config.model, config.dtype, config.device, asked.longest)
    reference = load_model(config.reference or config.model, config.dtype, config.device, asked.longest)
    reference.module.requires_grad_(False)
    for why in dict.fromkeys(lm.why for lm in (policy, reference) if lm.why):
        display.note(why)
    value = _value_model(reward, policy, display)
    assert config.tokens_per_microbatch is not None
    return PPOState(
        Cast(policy, reference, value, reward, asked.texts, config.tokens_per_microbatch),
        Encoder(job.tokenizer, config.max_length),
        optimizer.build(config.optimizer, policy.module.named_parameters(), config.weight_decay),
        optimizer.build(config.optimizer, value.lm.module.named_parameters(), config.weight_decay),
        method.kl_coef,
        Guard(),
    )


def _value_model(reward: Reward, policy: LanguageModel, display: Display) -> ValueModel:
    value = ValueModel.of_reward_model(reward.module, policy) if isinstance(reward, RewardModel) else None
    display.note(f"the value model starts as a copy of the {'reward model' if value else 'policy'}")
    return value or ValueModel.of_policy(policy)


def _restore(state: PPOState, found: checkpoint.Checkpoint, reference_is: str) -> None:
    if found.state["reference"] != reference_is:
        raise UserError(
            "the reference is not the model that this run began with, so it would change midway: put that model back, "
            "or choose another --out"
        )
    state.cast.policy.load_weights(found.tensors("model"))
    state.cast.value.lm.load_weights(found.tensors("value"))
    optimizer.restore_state(state.optimizer, found.tensors("optimizer"))
    optimizer.restore_state(state.value_optimizer, found.tensors("value_optimizer"))
    rng.restore(found.tensors("rng"))
    state.kl_coef, state.guard, state.step = found.state["kl_coef"], Guard(**found.state["guard"]), found.step


@dataclass
class Recorder:
    """Puts what the loop reports where it belongs: file, trackers, screen, checkpoints."""

    job: Job
    method: PPO
    state: PPOState
    file: MetricsFile
    trackers: Trackers
    display: Display
    stop: Stop
    reference_is: str
    began: float
    saved: int | None

    def step(self, step: int, values: dict[str, float]) -> None:
        self._write(step, "train", values)
        self.display.step(step, values)

    def evaluate(self, step: int) -> None:
        """The held-out prompts."""
        if step == 0:
            outcome.sample(self.job, self.state.cast.policy, "before")
        if self.job.data.held_out:
            with self.display.pass_(f"held-out data at step {step}", len(self.job.data.held_out)) as advance:
                values = evaluate(self.state, self.job.data.held_out, self.job.schedule, self.method)
                advance(len(self.job.data.held_out))
            self._write(step, "eval", values)
            self.display.evaluation(step, values)

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
        state = self.state
        tensors = {
            "model": state.cast.policy.weights(),
            "value": state.cast.value.lm.weights(),
            "optimizer": optimizer.flatten_state(state.optimizer),
            "value_optimizer": optimizer.flatten_state(state.value_optimizer),
            "rng": rng.capture(),
        }
        rest = {
            "guard": asdict(state.guard),
            "data": self.job.data.fingerprint,
            "reference": self.reference_is,
            "kl_coef": state.kl_coef,
            "seconds": time.monotonic() - self.began,
        }
        checkpoint.save(self.job.checkpoints, step, tensors, rest)
        checkpoint.prune(self.job.checkpoints, self.job.config.keep)
        self.saved = step

    def _write(self, step: int, split: str, values: dict[str, float]) -> None:
        self.file.write(step, split, values)
        self.trackers.log(step, split, values)


def results(job: Job, state: PPOState, seconds: float) -> dict[str, Any]:
    """What results.json holds; in training, "before" is the first step, whose responses are the start model's own."""
    history = read_metrics(job.metrics_file)

    def around(split: str) -> dict[str, dict[str, float]]:
        records = [{k: v for k, v in r.items() if k not in ("step", "split")} for r in history if r["split"] == split]
        return {"before": records[0], "after": records[-1]}

    return {
        "method": job.method,
        "loss": repr(job.loss),
        "steps": state.step,
        "skipped_steps": state.guard.skipped,
        "held_out_seen": seen.among(job.config.model, job.data.held_out),
        "training": around("train"),
        "held_out": around("eval") if job.data.held_out else None,
        "kl_coef": state.kl_coef,
        "seconds": round(seconds, 1),
        "peak_memory": peak_memory(),
        "read_as": state.cast.policy.way,
        "data": {"fingerprint": job.data.fingerprint, "prompts": len(job.data.train), **job.data.counts},
    }


def description(job: Job, method: PPO) -> str:
    """What ``--dry-run`` prints."""
    config, schedule, data = job.config, job.schedule, job.data
    held_out = f", {len(data.held_out):,} held out" if data.held_out else ""
    each = schedule.batch_size * method.samples
    updates = method.passes * min(method.minibatches, schedule.batch_size)
    # beside the policy: the value model, which is trained like it, and the reference, which is only weights
    memory = job.running() + 2 * job.memory() + 4 * job.parameters
    rows = {
        "model": f"{config.model}, {size(job.parameters)} parameters, and a value model like it",
        "method": repr(method),
        "data": f"{counted(len(data.train), 'prompt')} to train on{held_out}",
        "tokens": f"at most {schedule.steps * each * method.max_new_tokens:,} drawn; "
        f"longest sequence {data.longest:,} of at most {config.max_length or 'any'}",
        "steps": f"{schedule.steps:,} of {counted(schedule.batch_size, 'prompt')} with "
        f"{counted(method.samples, 'response')} each, "
        f"{counted(updates, 'update')} a step ({schedule.steps * updates:,})",
        "learning rate": f"{schedule.peak:g}, {counted(schedule.warmup, 'step')} of warm-up, then {schedule.decay}",
        "memory": f"about {size(memory)}B, with {config.tokens_per_microbatch:,} tokens at once",
        "writes": str(job.out),
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())
