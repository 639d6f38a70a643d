"""PPO's step: responses are drawn and scored, and policy and value model learn from them, several times over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefopt.config import PPONumbers
from prefopt.data.encode import Encoder
from prefopt.generate import TransformersGenerator
from prefopt.model.subnormal import flushed_to_zero
from prefopt.rl import ppo
from prefopt.rl.rollout import Cast, Rollouts, groups, packed, token_indices
from prefopt.train.guard import Guard
from prefopt.train.loop import Figures, Schedule
from prefopt.train.metrics import Metrics
from prefopt.train.optimizer import learning_rate, set_learning_rate
from prefopt.types import Encoded

SEQUENCES = 64
"""responses that are written at once"""


class PPO(PPONumbers):
    """The method. Responses are drawn at temperature 1 from all tokens: from π, as PPO supposes."""

    # What a plan of training asks of a method.
    unit = "prompt"
    needs_reference = True
    needs_baseline = False

    def generator(self, cast: Cast, encoder: Encoder, *seed: int) -> TransformersGenerator:
        drawn = int(np.random.default_rng(seed).integers(2**62))
        return TransformersGenerator(
            cast.policy, encoder, max_new_tokens=self.max_new_tokens, batch_size=SEQUENCES, seed=drawn
        )


@dataclass
class PPOState:
    """All that changes: with it, and the prompts, a run goes on as if it had not stopped."""

    cast: Cast
    encoder: Encoder
    optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer
    kl_coef: float
    guard: Guard
    step: int = 0


class Lessons(NamedTuple):
    """What the tokens of rollouts teach, [N] each: whitened advantages, and returns."""

    advantages: Tensor
    returns: Tensor


def lessons(rollouts: Rollouts, method: PPO, kl_coef: float) -> Lessons:
    scores = ppo.penalise_unended(rollouts.scores, rollouts.ended, method.missing_eos_penalty)
    rewards = ppo.token_rewards(scores, rollouts.logps, rollouts.reference, rollouts.length, kl_coef)
    advantages = ppo.gae(rewards, rollouts.values, rollouts.length, lam=method.gae_lambda)
    return Lessons(ppo.whiten(advantages), advantages + rollouts.values)


@flushed_to_zero()
def ppo_step(state: PPOState, asked: Sequence[Encoded], schedule: Schedule, method: PPO) -> Figures:
    """Answer the prompts, learn from it, and say how it went. ``state.step`` steps are done before."""
    generator = method.generator(state.cast, state.encoder, schedule.seed, 1, state.step)
    rollouts = state.cast.roll_out(asked, method.samples, generator)
    learned = lessons(rollouts, method, state.kl_coef)
    rate = learning_rate(state.step + 1, schedule.peak, schedule.warmup, schedule.steps, schedule.decay)
    set_learning_rate(state.optimizer, rate)
    set_learning_rate(state.value_optimizer, rate * method.value_rate)
    metrics = Metrics()
    for minibatch in _minibatches(rollouts.examples, method, schedule.seed, state.step):
        metrics.add(_update(state, rollouts, learned, minibatch, schedule, method))
    described = rollouts.described()
    values = {
        **metrics.reduce(),
        **described,
        "explained_variance": float(ppo.explained_variance(rollouts.values, learned.returns)),
        "kl_coef": state.kl_coef,
        "learning_rate": rate,
        "tokens": sum(example.tokens for example in rollouts.examples),
    }
    if method.target_kl is not None:
        answers = len(rollouts.length)
        state.kl_coef = ppo.adapted(state.kl_coef, described["kl"], answers, method.target_kl, method.horizon)
    return Figures.known(values)


def _minibatches(examples: list[Encoded], method: PPO, seed: int, step: int) -> Iterator[list[Encoded]]:
    """Each pass cuts the prompts anew; all responses to one stay together, since they share its tokens."""
    for i in range(method.passes):
        shuffled = np.random.default_rng([seed, 2, step, i]).permutation(len(examples))
        for part in np.array_split(shuffled, min(method.minibatches, len(examples))):
            yield [examples[i] for i in part]


def _update(
    state: PPOState, rollouts: Rollouts, learned: Lessons, minibatch: list[Encoded], schedule: Schedule, method: PPO
) -> dict[str, Tensor]:
    """One update of policy and value model: averages over the tokens of a minibatch, however they are packed."""
    cast, metrics = state.cast, Metrics()
    of_all = token_indices(rollouts.examples)
    among = torch.from_numpy(np.concatenate([of_all[id(example)] for example in minibatch]))
    for optimizer in (state.optimizer, state.value_optimizer):
        optimizer.zero_grad(set_to_none=True)
    room = cast.tokens_per_microbatch
    for group, places in groups(cast.policy, minibatch, room):
        at = among[places]
        batches = packed(group, cast.policy, cast.value.lm)
        logps, old = cast.policy.logprobs(batches[cast.policy.way], room).token, rollouts.logps[at]
        assert logps is not None
        loss = ppo.policy_loss(logps, old, learned.advantages[at], method.clip_ratio)
        (loss.sum() / len(among)).backward()
        values = cast.value(batches[cast.value.lm.way], room)
        value_loss = ppo.value_loss(values, rollouts.values[at], learned.returns[at], method.clip_value)
        (value_loss.sum() / len(among)).backward()
        approx_kl, clipped = ppo.approx_kl(logps, old), ppo.clipped(logps, old, method.clip_ratio)
        metrics.add({"loss": loss, "value_loss": value_loss, "approx_kl": approx_kl, "clipfrac": clipped})
    norm, value_norm = (_clip(optimizer, schedule.clip) for optimizer in (state.optimizer, state.value_optimizer))
    means = metrics.reduce()
    losses, norms = means["loss"] + means["value_loss"], norm + value_norm
    if made := math.isfinite(losses) and math.isfinite(norms):
        state.optimizer.step()
        state.value_optimizer.step()
    state.guard.saw(state.step + 1, made, losses, norms)
    return {name: torch.tensor(value) for name, value in {**means, "grad_norm": norm}.items()}


def _clip(optimizer: torch.optim.Optimizer, most: float) -> float:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return float(torch.nn.utils.clip_grad_norm_(parameters, most))


def evaluate(state: PPOState, asked: Sequence[Encoded], schedule: Schedule, method: PPO) -> dict[str, float]:
    """What the policy does on prompts that it does not learn from: the same draws whenever it is asked."""
    generator = method.generator(state.cast, state.encoder, schedule.seed, 3)
    rollouts = state.cast.roll_out(asked, method.samples, generator)
    return rollouts.described() | rollouts.interval()
