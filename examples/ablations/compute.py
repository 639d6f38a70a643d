"""Compute: FLOPs and seconds until DPO and PPO have a given reward, and how much seeds differ.

DPO learns from the demo's pairs for so many passes. PPO has a reward model, trained on the same pairs, and takes so
many steps, with two passes over each one's responses up to ten steps and four beyond, as in the demo; PPO-GT is given
the true reward for nothing. Each row is runs of that length, with the schedule for it. What a step costs is measured on
short runs: processor seconds of one core, and the matrix products that torch counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from examples.ablations.common import Finding, Setting, lines, spread, table
from prefopt.data import plan
from prefopt.demo.methods import Method, dpo
from prefopt.demo.processes import one_thread
from prefopt.demo.rewards import learn
from prefopt.demo.rl import passes_in, ppo_to
from prefopt.demo.tune import BATCH, TOKENS, Start, compared
from prefopt.model.load import load_model

PASSES, STEPS = (0.25, 0.5, 1.0, 2.0, 4.0), (4, 8, 15, 30)
BETA, KL = 0.1, 3.0
REWARDS = (1.0, 1.5, 2.0, 2.5)
FIGURES = ("reward", "kl", "efficiency", "missing")
Cost = np.ndarray
"""[2] seconds and floating-point operations"""


class Length(NamedTuple):
    """Runs of one length: what each seed came to, and what one of them costs."""

    method: str
    length: str
    rewards: list[float]
    kls: list[float]
    efficiencies: list[float]
    missing: list[float]
    cost: Cost


def ablation(setting: Setting, passes: Sequence[float] = PASSES, steps: Sequence[int] = STEPS) -> Finding:
    start = setting.start()
    setting.reward_models(start)
    found = [*_dpo(setting, start, passes), *_ppo(setting, start, steps, True), *_ppo(setting, start, steps, False)]
    methods = list(dict.fromkeys(at.method for at in found))
    drawn = {name: [(at.cost[1], at.rewards) for at in found if at.method == name] for name in methods}
    return Finding(
        f"{_lengths(found)}\n\n{_reached(found, methods)}",
        lines(drawn, "floating-point operations", "expected reward", log=True),
    )


def _dpo(setting: Setting, start: Start, passes: Sequence[float]) -> Iterator[Length]:
    units = compared(replace(start, pairs=4 * BATCH))
    lm = load_model(str(start.model), device="cpu")
    reading = cost(lambda: [lm.score(lm.pack(group)) for group in plan.microbatches(units, TOKENS)]) / len(units)
    step = per_step(lambda n: dpo(BETA).policies(replace(start, pairs=n * BATCH, epochs=1.0)), 10, 40)
    for n in passes:
        whole = start.pairs * (reading + n * step / BATCH)
        yield _length(setting, "DPO", f"{n:g} passes", dpo(BETA), replace(start, epochs=n), f"passes-{n:g}", whole)


def _ppo(setting: Setting, start: Start, steps: Sequence[int], learned: bool) -> Iterator[Length]:
    name = "PPO" if learned else "PPO-GT"
    before = start.pairs / BATCH * per_step(lambda n: _reward_model(start, n), 10, 40) if learned else np.zeros(2)
    step = {passes: _ppo_step(start, learned, passes) for passes in {passes_in(n) for n in steps}}
    for n in steps:
        whole = before + n * step[passes_in(n)]
        yield _length(setting, name, f"{n} steps", ppo_to(KL, n, learned), start, f"steps-{n}", whole)


def _ppo_step(start: Start, learned: bool, passes: int) -> Cost:
    return per_step(lambda n: ppo_to(KL, n, learned, passes).policies(start), 1, 4)


def _reward_model(start: Start, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        learn(replace(start, pairs=steps * BATCH, epochs=1.0, rewards=Path(folder)))


def _length(setting: Setting, name: str, length: str, method: Method, start: Start, folder: str, whole: Cost) -> Length:
    ends = [outcome.end for outcome in setting.outcomes([method], start, f"compute/{folder}")]
    return Length(name, length, *([getattr(e, what) for e in ends] for what in FIGURES), whole)


def per_step(run: Callable[[int], object], few: int, many: int) -> Cost:
    """What one step more costs a run; loading the model and enumerating the end cancel."""
    run(few)  # so that what is worked out once has been
    return (cost(lambda: run(many)) - cost(lambda: run(few))) / (many - few)


def cost(work: Callable[[], object]) -> Cost:
    with one_thread():
        began = time.process_time()
        work()
        seconds = time.process_time() - began
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no fused attention of CPUs
        work()
    return np.array([seconds, counter.get_total_flops()])


def _lengths(found: Sequence[Length]) -> str:
    rows = [
        [at.method, at.length, *map(spread, (at.rewards, at.kls, at.efficiencies, at.missing)), *_shown(at.cost)]
        for at in found
    ]
    return table(["", "length", "E[r]", "KL", "efficiency", "outside the grammar", "seconds", "FLOPs"], rows)


def _reached(found: Sequence[Length], methods: Sequence[str]) -> str:
    """The shortest runs whose mean reward is at least so high."""
    rows = []
    for reward in REWARDS:
        row = [f"{reward:g}"]
        for name in methods:
            good = [at for at in found if at.method == name and np.mean(at.rewards) >= reward]
            row.append(f"{good[0].length}: {' s, '.join(_shown(good[0].cost))}" if good else "not reached")
        rows.append(row)
    return table(["E[r] of", *methods], rows)


def _shown(of: Cost) -> list[str]:
    return [f"{of[0]:.1f}", f"{of[1]:.1e}"]
