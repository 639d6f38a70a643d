"""β sensitivity: DPO on the same pairs at several β, beside the optimum that each aims at.

"objective" is the gain in E[r] − β KL, as a share of the gain that the optimum has at this β.
"""

from __future__ import annotations

import numpy as np

from examples.ablations.common import Finding, Setting, spread, table
from prefopt.demo.methods import dpo
from prefopt.demo.world import the_world
from prefopt.frontier.exact import Frontier
from prefopt.report import figures

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
        role, each = f"run-{len(places)}", list(zip(kl, reward, strict=True))
        places.append(figures.Point(np.mean(kl), np.mean(reward), role, each=each, name=f"β = {beta:g}"))
    curve = [(at.kl, at.reward) for at in exact.curve(np.geomspace(100, min(betas), 60))]
    label = "Expected reward against KL at each β, beside the most that is possible"
    picture = figures.frontier(curve, [[place] for place in places], label, (6.4, 4.4), {})
    return Finding(table(HEADER, rows), figures.standalone(picture))
