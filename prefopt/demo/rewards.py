"""What PPO and Best-of-N maximise in the world: the true reward, or one learned from the pairs that DPO gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from prefopt.data.shelf import longest
from prefopt.demo.tune import TOKENS, Start, compared, schedule
from prefopt.demo.world import World, the_world
from prefopt.generate import Prompt
from prefopt.rl.reward_model import RewardLoss, RewardObjective, load_reward_model
from prefopt.train import optimizer
from prefopt.train.guard import Guard
from prefopt.train.loop import Hooks, TrainingState, fit
from prefopt.whole import whole

RATE = 4e-3
"""higher than that of the methods: the head begins at nothing"""


@dataclass(frozen=True)
class TrueReward:
    """The world's reward of a review; of anything that is no review, less than of the worst one."""

    world: World

    def __call__(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        reward, nonsense = self.world.reward, float(self.world.reward.min()) - 1
        found = [(self._prompts[prompt], self.world.index.get(text)) for prompt, text in pairs]
        return [nonsense if y is None else float(reward[x, y]) for x, y in found]

    @cached_property
    def _prompts(self) -> dict[Prompt, int]:
        return {prompt: x for x, prompt in enumerate(self.world.prompts)}


def learn(start: Start, rate: float = RATE) -> np.ndarray:
    """[X, Y] what a reward model gives every review, after Bradley–Terry on the pairs of this seed.

    It starts from the model that all start from, and is saved to ``start.reward_model``; what is there is read.
    """
    kept = start.reward_model / "rewards.npy"
    if kept.exists():
        return cast(np.ndarray, np.load(kept))
    world, units = the_world(), compared(start)
    lm = load_reward_model(str(start.model), world.tokenizer, "float32", "cpu", longest(units))
    objective = cast(Any, RewardObjective(RewardLoss(), lm, TOKENS))
    state = TrainingState(objective, optimizer.build("adamw", lm.module.named_parameters()), Guard())
    fit(state, units, schedule(start, rate, len(units)), Hooks())
    lm.save(start.reward_model)
    world.tokenizer.save_pretrained(start.reward_model)
    rewards = world.rewards(lm.bare)
    with whole(kept, "wb") as file:
        np.save(file, rewards)
    return rewards
