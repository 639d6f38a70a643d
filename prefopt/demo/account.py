"""The demo's figures, once: what results.json holds, and so what the terminal and the report show.

"frontier"     the exact curve, and each method's points on its axes
"optimum"      for each β, where the best policy stands
"best_of_n"    its KL beside the bound that is often given for it, and what came of drawing, by true and learned reward
"noise"        methods on labels of which some are wrong
"realignment"  one run at every β, for whole sequences and token by token
"calibration"  what one run's implicit reward says, beside the true one
"reward"       the same of the reward model that PPO gets
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.demo.methods import FLIP, Outcome
from prefopt.demo.world import World
from prefopt.frontier.exact import (
    Frontier,
    Placement,
    better,
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


def point(name: str, *placed: Placement, **more: Any) -> Row:
    """One policy on the axes, in the form that the report draws: of several seeds their mean.

    Then ``_sd`` is the standard deviation over them, and ``each`` has their places.
    """
    row: Row = {"name": name}
    for figure in ("kl", "reward", "efficiency", "missing"):
        row |= over_seeds(figure, [getattr(place, figure) for place in placed])
    if len(placed) > 1:
        row["each"] = [[place.kl, place.reward] for place in placed]
    row["missing"] = max(0.0, row["missing"])  # a rounding error below it
    return row | more


def over_seeds(figure: str, values: Sequence[float]) -> Row:
    """
    >>> over_seeds("kl", [1.0]), over_seeds("kl", [1.0, 3.0])
    ({'kl': 1.0}, {'kl': 2.0, 'kl_sd': 1.4142135623730951})
    """
    sd = {f"{figure}_sd": float(np.std(values, ddof=1))} if len(values) > 1 else {}
    return {figure: float(np.mean(values)), **sd}


def by_method(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """The runs of each method: one for each seed."""
    of: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of.setdefault(outcome.method.name, []).append(outcome)
    return list(of.values())


def frontier(exact: Frontier, outcomes: Iterable[Outcome], best_of_n: Mapping[str, Sequence[Row]]) -> Row:
    """The curve and the points: those of a method in the order in which it came by them, the methods by efficiency.

    ``best_of_n``: by the "true" and by the "learned" reward what `best_of` gives.
    """
    paths = [_path(runs) for runs in by_method(outcomes)]
    for by, rows in best_of_n.items():
        name = f"Best-of-N, {by} reward"
        paths.append([{**row, "name": name, "family": name} for row in rows])
    paths.sort(key=lambda path: -path[-1]["efficiency"])
    return {"curve": [[at.kl, at.reward] for at in exact.curve(CURVE)], "points": [p for path in paths for p in path]}


def _path(runs: Sequence[Outcome]) -> list[Row]:
    """Where a method stands at each look, by the mean over its seeds."""
    method = runs[0].method
    looks = zip(*(run.way for run in runs), strict=True)
    return [point(method.name, *(place for _, place in look), family=method.family, step=look[0][0]) for look in looks]


def optimum(exact: Frontier) -> list[Row]:
    return [
        {"beta": beta, "kl": at.kl, "reward": at.reward} for beta, at in zip(BETAS, exact.curve(BETAS), strict=True)
    ]


def noise(outcomes: Iterable[Outcome]) -> Row:
    """Seeds decide the pairs, whose labels are wrong, and the order."""
    rows = [point(runs[0].method.name, *(run.end for run in runs), seeds=len(runs)) for runs in by_method(outcomes)]
    return {"flip": FLIP, "methods": sorted(rows, key=lambda row: -row["efficiency"])}


def best_trained(exact: Frontier, outcomes: Iterable[Outcome]) -> Outcome:
    """Of those that aim at some β the one whose implicit reward goes best with the true one.

    Their efficiencies compare badly: one has gone 0.03 nats, another 6, where the same mistakes cost more.
    """
    return max((o for o in outcomes if o.method.beta), key=lambda o: regression(exact, implicit(exact, o))[0])


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
"""rewards are compared to a hundredth: the true ones have no more decimals, learned ones are rounded"""


def calibration(exact: Frontier, name: str, learned: np.ndarray, bins: int = 10) -> Row:
    """Bradley–Terry's preference by a learned reward [X, Y] against the true one, over all pairs that π_ref would draw.

    Pairs are grouped by the predicted preference p̂ for one of the two: ``predicted`` and ``true`` are averages in each
    group, ``share`` its weight. ``slope``: of the learned reward on the true one, 1 where the scale is right;
    ``correlation`` and ``slope`` are within prompts, under π_ref. ``agreement``: how often both order a pair alike.
    ``accuracy``: how often the better of a new pair is the preferred one, as labels fall; ``ceiling``: the same of the
    true reward.
    """
    reference = condition(exact.reference).logps
    predicted, true, weight = _margins(np.exp(reference), learned, exact.reward)
    p_hat, p = bradley_terry(predicted), bradley_terry(true)
    group = np.minimum((p_hat * bins).astype(int), bins - 1)
    share, p_hats, ps = (np.bincount(group, weight * value, bins) for value in (np.ones_like(p), p_hat, p))
    some = share > 0
    untied = (predicted != 0) & (true != 0)
    correlation, slope = regression(exact, learned)
    return {
        "run": name,
        "predicted": (p_hats[some] / share[some]).tolist(),
        "true": (ps[some] / share[some]).tolist(),
        "share": share[some].tolist(),
        "error": float(np.sum(np.abs(p_hats - ps))),
        "agreement": float(np.sum(weight[untied & (predicted * true > 0)]) / np.sum(weight[untied])),
        "accuracy": float(np.sum(weight * (better(predicted) * p + better(-predicted) * (1 - p)))),
        "ceiling": float(np.sum(weight * np.maximum(p, 1 - p))),
        "correlation": correlation,
        "slope": slope,
    }


def rewards(exact: Frontier, learned: Sequence[np.ndarray]) -> Row:
    """Reward models, one for each seed: the first one's groups of pairs, and the other figures over all."""
    rows = [calibration(exact, "reward model", reward) for reward in learned]
    for figure in ("error", "agreement", "accuracy", "correlation", "slope"):
        rows[0] |= over_seeds(figure, [row[figure] for row in rows])
    return rows[0]


def _margins(probs: np.ndarray, learned: np.ndarray, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Margins by learned and by true reward, and the weight of the pairs that have them, over all pairs of a prompt.

    The joint distribution of both rewards is correlated with itself, by way of its Fourier transform.
    """
    levels = [np.rint((r - r.min(-1, keepdims=True)) * HUNDREDTH).astype(int) for r in (learned, reward)]
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


def implicit(exact: Frontier, run: Outcome) -> np.ndarray:
    """[X, Y] the implicit reward of a run that aims at some β."""
    assert run.method.beta is not None
    return implicit_reward(condition(run.logps).logps, condition(exact.reference).logps, run.method.beta)


def regression(exact: Frontier, learned: np.ndarray) -> tuple[float, float]:
    """(correlation, slope) of a learned reward on the true one, within prompts, under π_ref."""
    covariance, of_true, of_learned = _covariances(condition(exact.reference).logps, exact.reward, learned)
    return float(covariance / np.sqrt(of_true * of_learned)), float(covariance / of_true)


def _covariances(reference: np.ndarray, *values: np.ndarray) -> tuple[float, float, float]:
    """Covariance of two values [X, Y] under π_ref within prompts, and each one's variance; averages over prompts."""
    a, b = (v - expectation(reference, v)[:, None] for v in values)
    ab, aa, bb = (float(expectation(reference, product).mean()) for product in (a * b, a * a, b * b))
    return ab, aa, bb
