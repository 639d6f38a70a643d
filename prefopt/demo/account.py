"""The demo's figures, once: what results.json holds, and so what the terminal and the report show.

"frontier"     the exact curve, and each method's points on its axes
"optimum"      for each β, where the best policy stands
"best_of_n"    its KL beside the bound that is often given for it
"noise"        methods on labels of which some are wrong, with the spread over seeds
"realignment"  one run at every β, for whole sequences and token by token
"calibration"  what one run's implicit reward says, beside the true one
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.demo.methods import BEST_OF, FLIP, Outcome
from prefopt.demo.world import World
from prefopt.frontier.exact import (
    Frontier,
    Placement,
    best_of_n,
    best_of_n_bound,
    bradley_terry,
    condition,
    expectation,
    implicit_reward,
    realign,
)
from prefopt.frontier.space import next_token_logps
from prefopt.model.load import load_model

Row = dict[str, Any]
BETAS = (5.0, 1.0, 0.5, 0.1, 0.05)
CURVE = np.geomspace(100, 0.01, 60)


def point(name: str, placed: Placement, step: int | None = None, **more: Any) -> Row:
    """One policy on the axes, in the form that the report draws."""
    figures = {
        "kl": placed.kl,
        "reward": placed.reward,
        "efficiency": placed.efficiency,
        "missing": max(0.0, placed.missing),
    }
    return {"name": name, **figures} | ({} if step is None else {"step": step}) | more


def frontier(exact: Frontier, outcomes: Iterable[Outcome], best: Iterable[Row]) -> Row:
    """The curve and the points: those of a method in the order in which it came by them, the methods by efficiency.

    ``best``: what `best_of` gives.
    """
    paths = [[point(o.method.name, placed, step) for step, placed in o.way] for o in outcomes]
    paths.append([{**row, "name": "Best-of-N"} for row in best])
    paths.sort(key=lambda path: -path[-1]["efficiency"])
    return {"curve": [[at.kl, at.reward] for at in exact.curve(CURVE)], "points": [p for path in paths for p in path]}


def optimum(exact: Frontier) -> list[Row]:
    return [
        {"beta": beta, "kl": at.kl, "reward": at.reward} for beta, at in zip(BETAS, exact.curve(BETAS), strict=True)
    ]


def best_of(exact: Frontier) -> list[Row]:
    reference = condition(exact.reference).logps
    placed = [(n, exact.place(best_of_n(reference, exact.reward, n))) for n in BEST_OF]
    return [point(f"Best of {n}", at, n=n, bound=best_of_n_bound(n)) for n, at in placed]


def noise(outcomes: Sequence[Outcome]) -> Row:
    """Mean and standard deviation over seeds, which decide the pairs, whose labels are wrong, and the order."""
    of: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of.setdefault(outcome.method.name, []).append(outcome)
    rows = []
    for name, runs in of.items():
        row: Row = {"name": name, "seeds": len(runs)}
        for figure in ("kl", "reward", "efficiency", "missing"):
            values = [getattr(run.end, figure) for run in runs]
            row[figure] = float(np.mean(values))
            if len(values) > 1:
                row[f"{figure}_sd"] = float(np.std(values, ddof=1))
        rows.append(row)
    return {"flip": FLIP, "methods": sorted(rows, key=lambda row: -row["efficiency"])}


def best_trained(exact: Frontier, outcomes: Iterable[Outcome]) -> Outcome:
    """Of those that aim at some β the one whose implicit reward goes best with the true one.

    Their efficiencies compare badly: one has gone 0.03 nats, another 6, where the same mistakes cost more.
    """
    return max((o for o in outcomes if o.method.beta), key=lambda o: regression(exact, o)[0])


def realignment(world: World, exact: Frontier, start: Path, outcomes: Sequence[Outcome]) -> Row:
    """The best-trained run at each β of ``BETAS``, beside the run that was trained so.

    For whole sequences, which is exact, and token by token, which is what decoding can do.
    """
    run = best_trained(exact, outcomes)
    assert run.method.beta is not None
    trained = {o.method.beta: point(o.method.name, o.end) for o in outcomes}
    reference, policy = condition(exact.reference).logps, condition(run.logps).logps
    strengths = [run.method.beta / beta for beta in BETAS]
    by_token = _token_by_token(world, start, run.model, strengths)
    rows = []
    for beta, strength, tokens in zip(BETAS, strengths, by_token, strict=True):
        sequences = exact.place(realign(reference, policy, strength))
        rows.append(
            {
                "beta": beta,
                "strength": strength,
                "sequences": point("whole sequences", sequences),
                "tokens": point("token by token", exact.place(tokens)),
            }
            | ({"trained": trained[beta]} if beta in trained else {})
        )
    return {"run": run.method.name, "beta": run.method.beta, "at": rows}


def _token_by_token(world: World, start: Path, model: Path, strengths: Sequence[float]) -> list[np.ndarray]:
    """For each λ a policy [X, Y] whose every next token is drawn from π_ref^(1−λ) π_θ^λ."""
    models = [load_model(str(name), device="cpu").module for name in (start, model)]
    policies: list[list[np.ndarray]] = [[] for _ in strengths]
    for tree in world.trees:
        reference, policy = (next_token_logps(one, tree) for one in models)
        for of_strength, strength in zip(policies, strengths, strict=True):
            of_strength.append(tree.enumerate_logps(realign(reference, policy, strength)))
    return [np.stack(policy) for policy in policies]


HUNDREDTH = 100
"""rewards are compared to a hundredth: the true ones have no more decimals, implicit ones are rounded"""


def calibration(exact: Frontier, run: Outcome, bins: int = 10) -> Row:
    """Bradley–Terry's preference by implicit reward against the true one, over all pairs that π_ref would draw.

    Pairs are grouped by the predicted preference p̂ for one of the two: ``predicted`` and ``true`` are averages in each
    group, ``share`` its weight. ``slope``: of the implicit reward on the true one, 1 where the scale is right;
    ``correlation`` and ``slope`` are within prompts, under π_ref. ``agreement``: how often both order a pair alike.
    """
    assert run.method.beta is not None
    reference = condition(exact.reference).logps
    implicit = implicit_reward(condition(run.logps).logps, reference, run.method.beta)
    predicted, true, weight = _margins(np.exp(reference), implicit, exact.reward)
    p_hat, p = bradley_terry(predicted), bradley_terry(true)
    group = np.minimum((p_hat * bins).astype(int), bins - 1)
    share, p_hats, ps = (np.bincount(group, weight * value, bins) for value in (np.ones_like(p), p_hat, p))
    some = share > 0
    untied = (predicted != 0) & (true != 0)
    correlation, slope = regression(exact, run)
    return {
        "run": run.method.name,
        "predicted": (p_hats[some] / share[some]).tolist(),
        "true": (ps[some] / share[some]).tolist(),
        "share": share[some].tolist(),
        "error": float(np.sum(np.abs(p_hats - ps))),
        "agreement": float(np.sum(weight[untied & (predicted * true > 0)]) / np.sum(weight[untied])),
        "correlation": correlation,
        "slope": slope,
    }


def _margins(probs: np.ndarray, implicit: np.ndarray, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Margins by implicit and by true reward, and the weight of the pairs that have them, over all pairs of a prompt.

    The joint distribution of both rewards is correlated with itself, by way of its Fourier transform.
    """
    levels = [np.rint((r - r.min(-1, keepdims=True)) * HUNDREDTH).astype(int) for r in (implicit, reward)]
    size = [int(2 ** np.ceil(np.log2(2 * level.max() + 1))) for level in levels]
    weight = np.zeros(size)
    for p, *both in zip(probs, *levels, strict=True):
        joint = np.zeros(size)
        np.add.at(joint, tuple(both), p)
        weight += np.fft.irfft2(np.abs(np.fft.rfft2(joint)) ** 2, s=size) / len(probs)
    offsets = [np.fft.fftfreq(n, 1 / n) / HUNDREDTH for n in size]
    predicted, true = np.meshgrid(*offsets, indexing="ij")
    drawn = weight > 1e-15  # below it is rounding
    return predicted[drawn], true[drawn], weight[drawn] / weight[drawn].sum()


def regression(exact: Frontier, run: Outcome) -> tuple[float, float]:
    """(correlation, slope) of the implicit reward on the true one, within prompts, under π_ref."""
    assert run.method.beta is not None
    reference = condition(exact.reference).logps
    implicit = implicit_reward(condition(run.logps).logps, reference, run.method.beta)
    covariance, of_true, of_implicit = _covariances(reference, exact.reward, implicit)
    return float(covariance / np.sqrt(of_true * of_implicit)), float(covariance / of_true)


def _covariances(reference: np.ndarray, *values: np.ndarray) -> tuple[float, float, float]:
    """Covariance of two values [X, Y] under π_ref within prompts, and each one's variance; averages over prompts."""
    a, b = (v - expectation(reference, v)[:, None] for v in values)
    return tuple(float(expectation(reference, product).mean()) for product in (a * b, a * a, b * b))  # type: ignore[return-value]
