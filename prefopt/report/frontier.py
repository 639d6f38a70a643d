"""Expected reward against KL: policies beside the best that is possible at their KL.

Drawn where ``results.json`` holds

    "frontier": {"curve": [[kl, reward], ...],
                 "points": [{"name": "dpo, β 0.1", "kl": 2.1, "reward": 1.3, "step": 100, "efficiency": 0.98,
                             "kl_interval": [1.9, 2.3], "reward_interval": [1.2, 1.4]}, ...]}

``curve`` may be empty where it is not known; ``step``, ``efficiency`` (reward gained, as a share of the most that the
KL allows), ``missing`` (the policy's mass outside the responses that were enumerated) and the intervals are left out
where they do not apply. Points of one name are the places that one
run came by, in their order; the last is where it ended, and what the table tells of.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from prefopt.errors import UserError
from prefopt.report import figures
from prefopt.report.html import part
from prefopt.report.read import Run


def frontier(runs: Sequence[Run]) -> Markup | None:
    curve: list[tuple[float, float]] = []
    named: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.results.get("frontier") is not None:
            more, points = _read(run)
            curve = curve or more
            for point in points:
                name = point["name"] if len(runs) == 1 else f"{run.name}: {point['name']}"
                named.setdefault(name, []).append(point)
    if not named:
        return None
    roles = {name: f"run-{i % figures.SERIES}" for i, name in enumerate(named)}
    paths = [[_point(point, roles[name]) for point in points] for name, points in named.items()]
    svg = figures.frontier(curve, paths, "Expected reward against KL", (5.0, 3.3))
    keys = [(roles[name], "marks", name) for name in named]
    if curve:
        keys.insert(0, ("reference", "line", "the most that is possible"))
    caption = "Up is better, left is closer to the reference"
    caption += "; the grey curve is the most that any policy can reach." if curve else "."
    enumerated = any("missing" in points[-1] for points in named.values())
    if enumerated:
        caption += " Outside is the probability of all that was not enumerated; the other figures are those within."
    header = ["policy", "KL", "reward", *(["outside"] if enumerated else []), "efficiency"]
    table = part("table", header, _rows(named, enumerated), lines=list(roles.values()), strong=True)
    return part("section", "Reward against KL", part("beside", part("figure", "", svg, keys, caption), table))


def _read(run: Run) -> tuple[list[tuple[float, float]], list[dict[str, Any]]]:
    try:
        found = run.results["frontier"]
        curve = [(float(kl), float(reward)) for kl, reward in found.get("curve", [])]
        points = [
            {**p, "name": str(p["name"]), "kl": float(p["kl"]), "reward": float(p["reward"])} for p in found["points"]
        ]
        for point, name in itertools.product(points, ("kl_interval", "reward_interval")):
            if point.setdefault(name, None) is not None:
                low, high = point[name]
                point[name] = float(low), float(high)
        return curve, points
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f'{run.folder / "results.json"}: "frontier" must hold "curve", a list of [kl, reward], and "points", '
            'a list of objects with "name", "kl" and "reward"'
        ) from None


def _point(point: dict[str, Any], role: str) -> figures.Point:
    return figures.Point(point["kl"], point["reward"], role, point["kl_interval"], point["reward_interval"])


def _rows(named: dict[str, list[dict[str, Any]]], enumerated: bool) -> list[list[str]]:
    rows = []
    for name, points in named.items():
        last = points[-1]
        figures = [_figure(last[what], last[f"{what}_interval"]) for what in ("kl", "reward")]
        rows.append([name, *figures, *([_percent(last.get("missing"))] if enumerated else [])])
        rows[-1].append(_percent(last.get("efficiency")))
    return rows


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * float(share):.1f} %"


def _figure(value: float, interval: tuple[float, float] | None) -> str:
    """
    >>> _figure(0.4, (0.3, 0.5))
    '0.400 (0.300–0.500)'
    """
    return f"{value:.3f}" + (f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else "")
