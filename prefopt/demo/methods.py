"""The methods that the demo compares: each a name and a function from `Start` to the policies that it came by.

To add one, name it in a list below. One that trains otherwise brings a function of its own, as PPO does
(prefopt/demo/rl.py): it gets the `Start` and a folder to save its model in, and returns `Snapshot`s of
log-probabilities [X, Y].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prefopt.demo.tune import Snapshot, Start, tune
from prefopt.demo.world import the_world
from prefopt.frontier.exact import Frontier, Placement
from prefopt.losses import DPO, IPO, KTO, ORPO, SFT, Robust, SimPO, Unlikelihood
from prefopt.whole import whole

RATE, GENTLE = 1e-3, 5e-4
"""learning rates: the second for DPO from β = 1 on, where a policy has less of a way to go"""


@dataclass(frozen=True)
class Method:
    """``policies(start, out=folder)`` does the work; ``beta``: it aims at the optimum for this β."""

    name: str
    policies: Callable[..., list[Snapshot]]
    beta: float | None = None

    @property
    def slug(self) -> str:
        """
        >>> Method("DPO, β = 0.05", list).slug
        'dpo-0.05'
        """
        return "-".join(re.findall(r"[a-z0-9.]+", self.name.lower()))

    @property
    def family(self) -> str:
        """What it shares with methods that differ by a number only.

        >>> Method("DPO, β = 0.05", list).family
        'DPO'
        """
        return self.name.partition(",")[0]


def dpo(beta: float) -> Method:
    rate = RATE if beta < 1 else GENTLE
    return Method(f"DPO, β = {beta:g}", partial(tune, loss=DPO(beta=beta), rate=rate), beta)


def unlikelihood(alpha: float) -> Method:
    return Method(f"Unlikelihood, α = {alpha:g}", partial(tune, loss=Unlikelihood(alpha=alpha), rate=RATE))


FLAGSHIP = dpo(0.1)
BESIDE = (
    dpo(0.05),
    dpo(1),
    dpo(5),
    Method("Preferred-FT", partial(tune, loss=SFT(), rate=RATE)),
    unlikelihood(0.1),
    Method("KTO", partial(tune, loss=KTO(beta=0.1), rate=RATE)),
    Method("ORPO", partial(tune, loss=ORPO(odds_weight=0.25), rate=RATE)),
    Method("SimPO", partial(tune, loss=SimPO(), rate=RATE)),
)
WITH_FULL = (unlikelihood(0.5),)
"""beside these, with --full"""
FLIP = 0.2
"""share of labels that are turned around for these"""
_noisy = partial(tune, rate=RATE, flip=FLIP)
UNDER_NOISE = (
    Method("DPO", partial(_noisy, loss=DPO(beta=0.1)), 0.1),
    Method("cDPO", partial(_noisy, loss=DPO(beta=0.1, label_smoothing=FLIP)), 0.1),
    Method("robust DPO", partial(_noisy, loss=Robust(beta=0.1, label_smoothing=FLIP)), 0.1),
    Method("IPO, τ = 0.1", partial(_noisy, loss=IPO(tau=0.1))),
)


class Outcome(NamedTuple):
    """Where a method's policies stand; ``logps`` [X, Y] is the last of them, and its model is in ``model``."""

    method: Method
    seed: int
    way: list[tuple[int, Placement]]
    logps: np.ndarray
    model: Path

    @property
    def end(self) -> Placement:
        return self.way[-1][1]


class Job(NamedTuple):
    """One run of a method, and the folder for its model."""

    method: Method
    start: Start
    out: Path

    @property
    def kept(self) -> Path:
        """The policies that it came by."""
        return self.out / "policies.npz"


def jobs(methods: Iterable[Method], start: Start, out: Path, seeds: int = 1) -> list[Job]:
    """Each method once for each of so many seeds."""
    return [
        Job(method, replace(start, seed=start.seed + i), out / method.slug / f"seed-{start.seed + i}")
        for method in methods
        for i in range(seeds)
    ]


def perform(job: Job) -> Outcome:
    """The policies that the method comes by are kept in its folder, and read if they are there."""
    method, start, out = job
    if job.kept.exists():
        read = np.load(job.kept)
        snapshots = [Snapshot(int(step), logps) for step, logps in zip(read["steps"], read["logps"], strict=True)]
    else:
        snapshots = method.policies(start, out=out)
        _keep(job.kept, snapshots)
    frontier = Frontier(start.reference, the_world().reward)
    way = [(step, frontier.place(logps)) for step, logps in snapshots]
    return Outcome(method, start.seed, way, snapshots[-1].logps, out)


def _keep(file: Path, snapshots: list[Snapshot]) -> None:
    steps, logps = zip(*snapshots, strict=True)
    with whole(file, "wb") as opened:
        np.savez(opened, steps=np.array(steps), logps=np.stack(logps))
