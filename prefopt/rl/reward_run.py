"""``prefopt reward``: a reward model from preferences, and how far its probabilities can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from prefopt import config as settings
from prefopt.data.shelf import each
from prefopt.display import Display
from prefopt.rl.reward_model import RewardLoss, RewardObjective, load_reward_model, scored
from prefopt.statistics import proportion
from prefopt.train import outcome
from prefopt.train.job import Job
from prefopt.train.run import Tuning
from prefopt.train.session import execute
from prefopt.types import Encoded, comparisons
from prefopt.whole import whole

BINS = 10


def run(config: settings.Reward, dry_run: bool = False) -> dict[str, Any]:
    """The results; empty after a dry run. UserError, RunFailed and Stopped as every run's."""
    loss = RewardLoss(config.rankings, config.margin, config.center)
    with Display(0, "set-up") as display:
        job = Job.plan(config, cast(Any, loss), display)
        if config.margin and {s for scores in each(job.data.train, "scores") for s in scores} <= {0.0, 1.0}:
            display.note("--margin: the data have no scores but better and worse, so it is the same for every pair")
    if dry_run:
        print(job.description())
        return {}
    return execute(job, start)


def start(job: Job, display: Display) -> Tuning:
    """The reward model, as it stands before the first step."""
    config = job.config
    lm = load_reward_model(config.model, job.tokenizer, config.dtype, config.device, job.data.longest)
    if lm.why:
        display.note(lm.why)
    assert config.tokens_per_microbatch is not None
    objective = RewardObjective(cast(RewardLoss, job.loss), lm, config.tokens_per_microbatch)
    return Tuning.on(job, cast(Any, objective), examine=_reliability)


def _reliability(job: Job, objective: Any) -> dict[str, Any]:
    """Where there are held-out data, ``reliability``; its picture is written to ``reliability.svg``."""
    units = job.data.held_out
    if not units:
        return {}
    with Display(0, "reward") as display, display.pass_("reliability", len(units)) as advance:
        found = scored(objective.lm, units, objective.tokens_without_gradient, advance)
    margins, of = margins_of(units, found)
    known = reliability(margins, of)
    file = job.out / "reliability.svg"
    with outcome.left_in(file), whole(file) as opened:
        opened.write(picture(known))
    return {"reliability": known}


def margins_of(units: Sequence[Encoded], found: Sequence[Sequence[float]]) -> tuple[list[float], list[str]]:
    """Of every two responses of which one is better: its reward minus the other's, and which prompt they answer."""
    margins, of = [], []
    for unit, values in zip(units, found, strict=True):
        for better, worse in comparisons(unit.scores):
            margins.append(values[better] - values[worse])
            of.append(unit.prompt_key)
    return margins, of


def reliability(margins: Sequence[float], of: Sequence[str], bins: int = BINS) -> dict[str, Any]:
    """How often the response that is predicted to be better is, by the predicted probability σ(|margin|).

    ``margins`` [n]: reward of the better response minus that of the other; ``of``: their prompts. ``curve``: equally
    many pairs in each of ``bins`` points, the least certain first, with 95 % intervals over prompts. ``error``: mean
    distance of the two, weighted by pairs (expected calibration error); ``brier``: mean of (1 − σ(margin))².

    >>> found = reliability([2.0, 2.0, 2.0, -2.0], ["p", "q", "r", "s"], bins=1)
    >>> [point] = found["curve"]
    >>> round(point["predicted"], 3), point["true"], round(found["error"], 3)
    (0.881, 0.75, 0.131)
    """
    m, clusters = np.asarray(margins, float), np.asarray(of)
    order = np.argsort(np.abs(m), kind="stable")
    curve = []
    for group in np.array_split(order, min(bins, len(order))):
        right = (m[group] > 0) + 0.5 * (m[group] == 0)
        value, low, high = proportion(right, clusters[group])
        predicted = float((1 / (1 + np.exp(-np.abs(m[group])))).mean())
        curve.append({"predicted": predicted, "true": value, "low": low, "high": high, "pairs": len(group)})
    error = sum(point["pairs"] * abs(point["predicted"] - point["true"]) for point in curve) / len(m)
    brier = float((1 / (1 + np.exp(np.clip(m, -700, 700))) ** 2).mean()) if len(m) else 0.0
    return {"curve": curve, "error": float(error), "brier": brier, "pairs": len(m)}


def picture(known: dict[str, Any]) -> str:
    """What `reliability` gives, as an SVG file in the colours of the reader's light or dark theme."""
    from prefopt.report import figures  # matplotlib takes a second to import

    curve = known["curve"]
    predicted, true = ([point[key] for point in curve] for key in ("predicted", "true"))
    label = "How often a predicted preference comes true on held-out pairs"
    return figures.standalone(
        figures.calibration(predicted, true, label, [(point["low"], point["high"]) for point in curve])
    )
