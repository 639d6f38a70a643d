"""Sampling temperature: tuned models sampled colder and warmer, token by token, as decoding does it.

The win rate is over the reviews of the corpus, as the paper's is over the human summaries: p(r(y) > r(y')) with ties
as a half, exact, and lost by whatever is no review.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.ablations.common import Finding, Setting, lines, reward_of_all, spread, table
from prefopt.demo.methods import BESIDE, Method, dpo
from prefopt.demo.rl import REDUCED
from prefopt.demo.world import the_world
from prefopt.frontier.exact import condition, log_sum_exp, win_rate
from prefopt.frontier.space import next_token_logps
from prefopt.model.load import load_model

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
METHODS = (dpo(0.1), dpo(0.5), *REDUCED, *(method for method in BESIDE if method.name == "Preferred-FT"))
Rates = list[float]
"""one for each temperature"""


def ablation(setting: Setting, methods: Sequence[Method] = METHODS) -> Finding:
    start = setting.start()
    setting.reward_models(start)
    wins, rewards = {}, {}
    wins["SFT"], rewards["SFT"] = ([one] for one in rates(start.model))
    for outcome in setting.outcomes(methods, start, "temperature"):
        for found, one in zip((wins, rewards), rates(outcome.model), strict=True):
            found.setdefault(outcome.method.name, []).append(one)
    header = ["", *(f"T = {t:g}" for t in TEMPERATURES)]
    tables = [
        table([what, *header[1:]], [[name, *map(spread, zip(*runs, strict=True))] for name, runs in found.items()])
        for what, found in (("win rate over the corpus", wins), ("E[r] of all", rewards))
    ]
    drawn = {
        name: [(t, values) for t, values in zip(TEMPERATURES, zip(*runs, strict=True), strict=True)]
        for name, runs in wins.items()
    }
    return Finding("\n\n".join(tables), lines(drawn, "temperature", "win rate over the corpus"))


def rates(model: Path) -> tuple[Rates, Rates]:
    """Win rate, and E[r] of all, at each temperature."""
    world, module = the_world(), load_model(str(model), device="cpu").module
    next_logps = [next_token_logps(module, tree) for tree in world.trees]
    wins, rewards = [], []
    for temperature in TEMPERATURES:
        logps = np.stack(
            [tree.enumerate_logps(at(temperature, n)) for tree, n in zip(world.trees, next_logps, strict=True)]
        )
        inside, missing = condition(np.maximum(logps, -1e4))
        by_prompt = zip(inside, world.corpus_logps, world.reward, missing, strict=True)
        wins.append(float(np.mean([(1 - lost) * win_rate(p, q, r) for p, q, r, lost in by_prompt])))
        rewards.append(reward_of_all(logps))
    return wins, rewards


def at(temperature: float, logps: np.ndarray) -> np.ndarray:
    """[M, V] next-token log-probabilities, cooled or warmed; at 0 the likeliest token alone.

    >>> np.exp(at(0.5, np.log([[0.25, 0.75]]))).round(2).tolist(), at(0, np.log([[0.25, 0.75]])).tolist()
    ([[0.1, 0.9]], [[-inf, 0.0]])
    """
    if temperature:
        return logps / temperature - log_sum_exp(logps / temperature)[:, None]
    return np.where(np.arange(logps.shape[1]) == logps.argmax(-1)[:, None], 0.0, -np.inf)
