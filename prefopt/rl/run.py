"""``prefopt ppo``: a run of PPO, from its settings to its folder, which holds what every run's does.

A checkpoint holds the value model too, and its optimizer; ``model/`` is the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor

from prefopt import config as settings
from prefopt.data.encode import Encoder
from prefopt.display import Display
from prefopt.model.fingerprint import model_fingerprint
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model
from prefopt.rl.loop import PPO, PPOState, evaluate, ppo_step
from prefopt.rl.prompts import Asked, prepare
from prefopt.rl.rewards import Reward, RewardModel, load_reward
from prefopt.rl.rollout import Cast
from prefopt.rl.value import ValueModel
from prefopt.terminal import counted, size
from prefopt.train import optimizer, outcome
from prefopt.train.checkpoint import Checkpoint
from prefopt.train.evidence import Scored
from prefopt.train.guard import Guard
from prefopt.train.job import Job
from prefopt.train.loop import Hooks, batches, repeat
from prefopt.train.session import Recorder, execute


def run(config: settings.PPO, dry_run: bool = False) -> dict[str, Any]:
    """Writes ``config.out``; the results, empty after a dry run.

    UserError if the input is wrong; RunFailed if it cannot go on; Stopped after a signal, with all saved.
    """
    method = PPO(**{field.name: getattr(config, field.name) for field in fields(PPO)})
    with Display(0, "set-up") as display:
        job = Job.plan(config, cast(Any, method), display, cast(Any, prepare))
        reward = load_reward(config.reward, config.dtype, config.device)
    if dry_run:
        print(description(job, method))
        return {}
    return execute(job, partial(start, method=method, reward=reward))


def start(job: Job, display: Display, method: PPO, reward: Reward) -> PPOTuning:
    """Policy, reference and value model, as they stand before the first step."""
    config, asked = job.config, job.data
    assert isinstance(config, settings.PPO) and isinstance(asked, Asked)
    policy = load_model(config.model, config.dtype, config.device, asked.longest, learns=True)
    reference = load_model(config.reference or config.model, config.dtype, config.device, asked.longest)
    reference.module.requires_grad_(False)
    for why in dict.fromkeys(lm.why for lm in (policy, reference) if lm.why):
        display.note(why)
    value = _value_model(reward, policy, display)
    assert config.tokens_per_microbatch is not None
    training = PPOState(
        Cast(policy, reference, value, reward, asked.texts, config.tokens_per_microbatch),
        Encoder(job.tokenizer, config.max_length),
        optimizer.build(config.optimizer, policy.module.named_parameters(), config.weight_decay),
        optimizer.build(config.optimizer, value.lm.module.named_parameters(), config.weight_decay),
        method.kl_coef,
        Guard(),
    )
    return PPOTuning(job, method, training, model_fingerprint(reference.bare))


def _value_model(reward: Reward, policy: LanguageModel, display: Display) -> ValueModel:
    value = ValueModel.of_reward_model(reward.module, policy) if isinstance(reward, RewardModel) else None
    display.note(f"the value model starts as a copy of the {'reward model' if value else 'policy'}")
    return value or ValueModel.of_policy(policy)


@dataclass
class PPOTuning:
    """The course of such a run."""

    job: Job
    method: PPO
    training: PPOState
    reference_is: str
    scored: ClassVar[Mapping[str, Scored]] = {}
    """there are no pairs"""

    @property
    def policy(self) -> LanguageModel:
        return self.training.cast.policy

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            "model": self.policy.weights(),
            "value": self.training.cast.value.lm.weights(),
            "optimizer": optimizer.flatten_state(self.training.optimizer),
            "value_optimizer": optimizer.flatten_state(self.training.value_optimizer),
        }

    def state(self) -> dict[str, Any]:
        return {"kl_coef": self.training.kl_coef}

    def restore(self, found: Checkpoint) -> None:
        state = self.training
        self.policy.load_weights(found.tensors("model"))
        state.cast.value.lm.load_weights(found.tensors("value"))
        optimizer.restore_state(state.optimizer, found.tensors("optimizer"))
        optimizer.restore_state(state.value_optimizer, found.tensors("value_optimizer"))
        state.kl_coef = found.state["kl_coef"]

    def begin(self) -> None:
        """Nothing: the policy need not start as the reference."""

    def go(self, hooks: Hooks) -> None:
        asked = batches(self.job.data.train, self.job.schedule, self.training.step)
        repeat(partial(ppo_step, method=self.method), self.training, asked, self.job.schedule, hooks)

    def evaluate(self, recorder: Recorder, step: int) -> None:
        """The held-out prompts."""
        asked = self.job.data.held_out
        if step == 0:
            outcome.sample(self.job, self.policy, "before")
        if asked:
            with recorder.display.pass_(f"held-out data at step {step}", len(asked)) as advance:
                values = evaluate(self.training, asked, self.job.schedule, self.method)
                advance(len(asked))
            recorder.write(step, "eval", values)
            recorder.display.evaluation(step, values)

    def results(self) -> dict[str, Any]:
        """In training, "before" is the first step, whose responses are the start model's own."""
        around = partial(outcome.around, self.job)
        return {
            "training": around((1, self.training.step), "train"),
            "held_out": around((0, self.training.step), "eval") if self.job.data.held_out else None,
            "kl_coef": self.training.kl_coef,
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
