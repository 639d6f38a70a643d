"""Label noise: what a share of labels that are turned around costs, and which losses mend it.

cDPO and robust DPO are told the share, IPO is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from examples.ablations.common import Finding, Setting, lines, spread, table
from prefopt.demo.methods import RATE, Method
from prefopt.demo.tune import tune
from prefopt.losses import DPO, IPO, Loss, Robust

FLIPS = (0.0, 0.1, 0.2, 0.3, 0.4)
HEADER = ["labels turned around", "loss", "KL", "E[r]", "efficiency", "outside the grammar"]


def losses(flip: float) -> dict[str, Loss]:
    """By name; without noise, cDPO and robust DPO are DPO."""
    told = {
        "cDPO": DPO(beta=0.1, label_smoothing=flip),
        "robust DPO": Robust(beta=0.1, label_smoothing=flip),
    }
    return {"DPO": DPO(beta=0.1), **(told if flip else {}), "IPO": IPO(tau=0.1)}


def ablation(setting: Setting, flips: Sequence[float] = FLIPS) -> Finding:
    start = setting.start()
    asked = [(flip, name, loss) for flip in flips for name, loss in losses(flip).items()]
    methods = [Method(f"{name} {flip:g}", partial(tune, loss=loss, rate=RATE, flip=flip)) for flip, name, loss in asked]
    outcomes = setting.outcomes(methods, start, "noise")
    rows = []
    drawn: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for (flip, name, _), method in zip(asked, methods, strict=True):
        ends = [outcome.end for outcome in outcomes if outcome.method.name == method.name]
        figures = [[getattr(end, what) for end in ends] for what in ("kl", "reward", "efficiency", "missing")]
        rows.append([f"{flip:.0%}", name, *map(spread, figures)])
        for line in [name] if flip or name == "IPO" else ["DPO", "cDPO", "robust DPO"]:
            drawn.setdefault(line, []).append((flip, figures[2]))
    return Finding(table(HEADER, rows), lines(drawn, "share of labels that are turned around", "efficiency"))
