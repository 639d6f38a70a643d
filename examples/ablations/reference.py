"""Quality of the reference: DPO from models that had only a share of the full demo's SFT.

Once on pairs that each model wrote itself, and once on those of the model with all of its SFT, as with a data set that
somebody else collected: there the pairs are equally good for all, and only the reference differs. "KL to the corpus" is
KL(corpus ‖ π_ref), what SFT makes small. "E[r] of all" counts what is no review as one point below the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from examples.ablations.common import Finding, Setting, lines, reward_of_all, spread, table
from prefopt.demo.methods import Outcome, dpo
from prefopt.demo.world import the_world
from prefopt.frontier.exact import kl

SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
HEADER = ["share of SFT", "KL to the corpus", "E[r] of all", "pairs of", "KL", "E[r]", "E[r] of all", "efficiency",
          "outside the grammar"]  # fmt: skip
BETA = 0.1
OWN, GIVEN = "its own", "the whole SFT"


def ablation(setting: Setting, shares: Sequence[float] = SHARES) -> Finding:
    starts = {share: setting.start(share) for share in shares}
    writer = starts[max(shares)].reference
    rows = []
    drawn: dict[str, list[tuple[float, Sequence[float]]]] = {f"pairs of {pairs}": [] for pairs in (OWN, GIVEN)}
    drawn["before DPO"] = []
    for share, start in starts.items():
        before = reward_of_all(start.reference)
        drawn["before DPO"].append((share, [before]))
        away = float(np.mean(kl(the_world().corpus_logps, start.reference)))
        for pairs, given in ((OWN, start), (GIVEN, replace(start, writer=writer))):
            outcomes = setting.outcomes([dpo(BETA)], given, f"reference/{share:g}-{pairs.replace(' ', '-')}")
            after = [reward_of_all(outcome.logps) for outcome in outcomes]
            drawn[f"pairs of {pairs}"].append((share, after))
            cells = [spread(_ends(outcomes, figure)) for figure in ("kl", "reward", "efficiency", "missing")]
            rows.append([f"{share:g}", f"{away:.3f}", f"{before:.3f}", pairs, *cells[:2], spread(after), *cells[2:]])
    return Finding(table(HEADER, rows), lines(drawn, "share of the SFT", "E[r] of all", log=True))


def _ends(outcomes: Sequence[Outcome], figure: str) -> list[float]:
    return [getattr(outcome.end, figure) for outcome in outcomes]
