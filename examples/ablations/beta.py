"""β sensitivity: DPO on the same pairs at several β, beside the optimum that each aims at.

"objective" is the gain in E[r] − β KL, as a share of the gain that the optimum has at this β.
"""

from __future__ import annotations

import numpy as np

from examples.ablations.common import Finding, Setting, spread, table
from prefopt.demo.methods import dpo
from prefopt.demo.world import the_world
from prefopt.frontier.exact import Frontier
from prefopt.frontier.show import Place, draw

BETAS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
HEADER = ["β", "KL", "its optimum's", "E[r]", "its optimum's", "objective", "efficiency", "outside the grammar"]


def ablation(setting: Setting, betas: tuple[float, ...] = BETAS) -> Finding:
    start = setting.start()
    exact = Frontier(start.reference, the_world().reward)
    outcomes = setting.outcomes(map(dpo, betas), start, "beta")
    rows, places = [], []
    for beta in betas:
        ends = [outcome.end for outcome in outcomes if outcome.method.beta == beta]
        kl, reward, efficiency, missing = (
            [getattr(end, figure) for end in ends] for figure in ("kl", "reward", "efficiency", "missing")
        )
        best = exact.at(beta)
        gain = best.reward - beta * best.kl - exact.start.reward
        objective = [(end.gain - beta * end.kl) / gain for end in ends]
        cells = [spread(kl), f"{best.kl:.3f}", spread(reward), f"{best.reward:.3f}"]
        rows.append([f"{beta:g}", *cells, *map(spread, (objective, efficiency, missing))])
        places.append(Place(f"β = {beta:g}", _around(kl), _around(reward)))
    curve = [(at.kl, at.reward) for at in exact.curve(np.geomspace(100, min(betas), 60))]
    return Finding(table(HEADER, rows), draw(places, "expected reward", curve))


def _around(values: list[float]) -> tuple[float, float, float]:
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return mean, mean - sd, mean + sd
