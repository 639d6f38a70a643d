"""One method's training in the world: the losses, loop and optimizer of ``prefopt train``, without its folder.

The reference is known exactly, so nobody has to ask it, and the policy is enumerated on its way, so that its whole
path across the axes of reward and KL is exact too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prefopt.data import plan
from prefopt.demo.world import the_world
from prefopt.losses import Loss
from prefopt.model.load import load_model
from prefopt.model.reference import response_keys
from prefopt.train import optimizer
from prefopt.train.guard import Guard
from prefopt.train.loop import Hooks, Schedule, TrainingState, fit
from prefopt.train.objective import Objective, Sums
from prefopt.types import Encoded

BATCH, TOKENS = 128, 4096
"""pairs in a step, and tokens computed at once: in so small a model, larger batches share more of their words"""


@dataclass(frozen=True)
class Start:
    """What every method gets: the model that it starts from and is compared with, and how many pairs.

    ``reference`` [X, Y]: that model's log-probabilities. ``looks``: how often a policy is enumerated, its end included.
    ``rewards``: the folder of the reward models, one for each seed. ``writer`` [X, Y]: the policy that the pairs are
    drawn from, by default the reference.
    """

    model: Path
    reference: np.ndarray
    pairs: int
    epochs: float = 1.0
    seed: int = 0
    looks: int = 1
    rewards: Path | None = None
    writer: np.ndarray | None = None

    @property
    def reward_model(self) -> Path:
        """The folder of the one that was trained on the pairs of this seed."""
        assert self.rewards is not None
        return self.rewards / f"seed-{self.seed}"


class Snapshot(NamedTuple):
    """A policy [X, Y] after so many steps."""

    step: int
    logps: np.ndarray


def tune(start: Start, loss: Loss, rate: float, flip: float = 0.0, out: Path | None = None) -> list[Snapshot]:
    """Train on pairs of the writer's reviews, a share ``flip`` of them turned around.

    The last policy is the end. A loss on single responses gets those of the same pairs. The model is saved to
    ``out``, if that is named.
    """
    world = the_world()
    units = plan.units(compared(start, flip), loss.unit)
    lm = load_model(str(start.model), device="cpu")
    reference = known(start.reference.tobytes()) if loss.needs_reference else None
    state = TrainingState(
        Objective(loss, lm, reference, TOKENS), optimizer.build("adamw", lm.module.named_parameters()), Guard()
    )
    snapshots: list[Snapshot] = []

    def look(step: int) -> None:
        if step:
            snapshots.append(Snapshot(step, world.logps(lm.module)))

    fit(state, units, schedule(start, rate, len(units)), Hooks(evaluate=look))
    if out is not None:
        lm.save(out)
        world.tokenizer.save_pretrained(out)
    return snapshots


def compared(start: Start, flip: float = 0.0) -> list[Encoded]:
    """The pairs of this seed, as a tokenizer would make them of the text."""
    world = the_world()
    writer = start.reference if start.writer is None else start.writer
    pairs = world.pairs(writer, start.pairs, start.seed, flip)
    each = zip(pairs.prompt.tolist(), pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    return [world.encoded(x, (chosen, rejected)) for x, chosen, rejected in each]


def schedule(start: Start, rate: float, units: int) -> Schedule:
    """As many steps for every method, whatever one of its units is."""
    steps = max(1, round(start.epochs * start.pairs / BATCH))
    return Schedule(
        steps=steps,
        batch_size=round(BATCH * units / start.pairs),
        peak=rate,
        warmup=steps // 10,
        decay="linear",
        clip=1.0,
        seed=start.seed,
        eval_every=-(-steps // start.looks),
        save_every=steps,
    )


@cache
def known(reference: bytes) -> Sums:
    """What the reference store would know after a pass over all there is to read."""
    world = the_world()
    logps = np.frombuffer(reference).reshape(world.reward.shape)
    length = world.responses.shape[1] + 1
    return {
        response_keys(world.encoded(x, (y,)))[0]: (float(logps[x, y]), length)
        for x, y in product(*map(range, logps.shape))
    }
