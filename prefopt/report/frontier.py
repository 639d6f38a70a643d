"""Expected reward against KL: policies beside the best that is possible at their KL.

Drawn where ``results.json`` holds

    "frontier": {"curve": [[kl, reward], ...],
                 "points": [{"name": "dpo, β 0.1", "kl": 2.1, "reward": 1.3, "step": 100, "efficiency": 0.98,
                             "kl_interval": [1.9, 2.3], "reward_interval": [1.2, 1.4]}, ...]}

``curve`` may be empty where it is not known; ``step``, ``efficiency`` (reward gained, as a share of the most that the
KL allows), ``missing`` (the policy's mass outside the responses that were enumerated) and the intervals are left out
where they do not apply. Points of one name are the places that one
run came by, in their order; the last is where it ended, and what the table tells of. Methods that differ by a number
have a ``family`` in common, and its colour. Where a point is the mean over seeds, ``each`` is a list of
[kl, reward], one for each, and ``kl_sd``, ``reward_sd``, ``efficiency_sd`` and ``missing_sd`` are standard deviations.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from prefopt.errors import UserError
from prefopt.report import figures
from prefopt.report.html import part
from prefopt.report.read import Run, apart


def frontier(runs: Sequence[Run]) -> Markup | None:
    curve: list[tuple[float, float]] = []
    named: dict[str, list[dict[str, Any]]] = {}
    taken = {part.name: f"run-{i % figures.SERIES}" for i, part in enumerate(apart(runs))}
    for run in runs:
        if run.results.get("frontier") is not None:
            more, points = _read(run)
            curve = curve or more
            parts = {part.folder.name: part.name for part in run.parts}
            for point in points:
                name = point["name"] if len(runs) == 1 else f"{run.name}: {point['name']}"
                if run.parts:  # those of a sweep are called and coloured as in the tables, and their start is grey
                    name = parts.get(point["name"], name)
                    taken.setdefault(name, "reference")
                named.setdefault(name, []).append(point if len(runs) == 1 else {**point, "family": name})
    if not named:
        return None
    roles = _roles(named, taken if any(run.parts for run in runs) else {})
    paths = [[_point(point, roles[name]) for point in points] for name, points in named.items()]
    svg = figures.frontier(curve, paths, "Expected reward against KL", (5.0, 3.3))
    keys = [(role, "marks", family) for family, role in _families(named, roles).items()]
    if curve:
        keys.insert(0, ("reference", "line", "the most that is possible"))
    caption = "Up is better, left is closer to the reference"
    caption += "; the grey curve is the most that any policy can reach." if curve else "."
    if any(point["each"] for points in named.values() for point in points):
        caption += " Small dots are single seeds; large ones, and the figures, are means ± one standard deviation."
    if any("missing" in points[-1] for points in named.values()):
        caption += " Outside is the probability of all that was not enumerated; the other figures are those within."
    known = [share for share in ("missing", "efficiency") if any(share in points[-1] for points in named.values())]
    header = ["policy", "KL", "reward", *({"missing": "outside"}.get(share, share) for share in known)]
    table = part("table", header, _rows(named, known), lines=list(roles.values()), strong=True)
    return part("section", "Reward against KL", part("beside", part("figure", "", svg, keys, caption), table))


def picture(found: Mapping[str, Any]) -> str:
    """An SVG file of "frontier" in results.json: where every run ended, and a line through those of a family."""
    named = {name: list(points) for name, points in itertools.groupby(found["points"], lambda point: point["name"])}
    roles = _roles(named, {})
    families: dict[str, list[figures.Point]] = {}
    for name, points in named.items():
        ends = [point for point in points if "step" not in point] or points[-1:]
        families.setdefault(roles[name], []).extend(_point(point, roles[name]) for point in ends)
    lines = [[end._replace(each=()) for end in sorted(ends)] for ends in families.values()]
    ends = [[end] for of_family in families.values() for end in of_family]
    label = "Expected reward against KL, by method"
    return figures.standalone(
        figures.frontier(found["curve"], [*lines, *ends], label, (6.4, 4.6), _families(named, roles))
    )


def of_sweep(results: Mapping[str, Any]) -> str | None:
    """An SVG file of where the runs of a sweep ended, each with its name; None where there is nothing to place.

    Rewards against KL where they are known, otherwise the held-out accuracies; where runs start from is grey.
    """
    done = [run for run in results["runs"] if run["status"] == "done"]
    roles = {run["name"]: f"run-{i % figures.SERIES}" for i, run in enumerate(done)}
    height, found = "expected reward", results.get("frontier", {}).get("points", [])
    places = [_point(p, roles.get(p["name"], "reference"))._replace(name=p["name"]) for p in found]
    if not places:
        height = "held-out accuracy"
        for run in done:
            kl, after = run.get("estimate", {}).get("kl"), (run["held_out"] or {}).get("after", {})
            if kl and "rewards/accuracies_low" in after:
                place = accurate((kl["value"], kl["low"], kl["high"]), after, roles[run["name"]])
                places.append(place._replace(name=run["name"]))
    label = f"{height} against KL to the reference of {', '.join(place.name for place in places)}"
    paths = [[place] for place in places]
    return figures.standalone(figures.frontier([], paths, label, (6.4, 4.4), {}, height)) if paths else None


def accurate(kl: Sequence[float], after: Mapping[str, float], role: str) -> figures.Point:
    """A run's place by its held-out accuracy, where no reward is known; ``kl``: value, low and high."""
    accuracy, low, high = (after[f"rewards/accuracies{end}"] for end in ("", "_low", "_high"))
    return figures.Point(kl[0], accuracy, role, (kl[1], kl[2]), (low, high))


def _family(name: str, points: Sequence[Mapping[str, Any]]) -> str:
    return str(points[-1].get("family", name))


def _roles(named: Mapping[str, Sequence[Mapping[str, Any]]], taken: Mapping[str, str]) -> dict[str, str]:
    """The colour of each name: that of its family, which may be ``taken`` already."""
    families = dict.fromkeys(_family(name, points) for name, points in named.items())
    left = (f"run-{i % figures.SERIES}" for i in itertools.count(len(taken)))
    roles = {family: taken.get(family) or next(left) for family in families}
    return {name: roles[_family(name, points)] for name, points in named.items()}


def _families(named: Mapping[str, Sequence[Mapping[str, Any]]], roles: Mapping[str, str]) -> dict[str, str]:
    """The colour of each."""
    return {_family(name, points): roles[name] for name, points in named.items()}


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
        for point in points:
            point["each"] = [(float(kl), float(reward)) for kl, reward in point.get("each", ())]
        return curve, points
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f'{run.folder / "results.json"}: "frontier" must hold "curve", a list of [kl, reward], and "points", '
            'a list of objects with "name", "kl" and "reward"'
        ) from None


def _point(point: Mapping[str, Any], role: str) -> figures.Point:
    kl, reward = (point.get(f"{axis}_interval") for axis in ("kl", "reward"))
    return figures.Point(point["kl"], point["reward"], role, kl, reward, point.get("each", ()))


def _rows(named: dict[str, list[dict[str, Any]]], shares: Sequence[str]) -> list[list[str]]:
    rows = []
    for name, points in named.items():
        last = points[-1]
        rows.append([name, *(_figure(last, axis) for axis in ("kl", "reward")), *(_percent(last, s) for s in shares)])
    return rows


def _percent(point: Mapping[str, Any], share: str) -> str:
    r"""
    >>> _percent({"efficiency": 0.975, "efficiency_sd": 0.01}, "efficiency")
    '97.5 ± 1.0\xa0%'
    """
    found = [f"{100 * float(point[key]):.1f}" for key in (share, f"{share}_sd") if point.get(key) is not None]
    return f"{' ± '.join(found)}\N{NO-BREAK SPACE}%" if found else "–"


def _figure(point: Mapping[str, Any], axis: str) -> str:
    r"""
    >>> _figure({"kl": 0.4, "kl_interval": (0.3, 0.5)}, "kl"), _figure({"kl": 0.4, "kl_sd": 0.1}, "kl")
    ('0.400 (0.300–\u20600.500)', '0.400 ± 0.100')
    >>> _figure({"reward": -0.4, "reward_interval": (-0.5, -0.3)}, "reward")
    '-0.400 (-0.500\xa0to\xa0-0.300)'
    """
    interval, sd = point.get(f"{axis}_interval"), point.get(f"{axis}_sd")
    # No line breaks there, and no dash beside a minus sign.
    to = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}" if interval and interval[0] < 0 else "–\N{WORD JOINER}"
    spread = f" ({interval[0]:.3f}{to}{interval[1]:.3f})" if interval else "" if sd is None else f" ± {float(sd):.3f}"
    return f"{point[axis]:.3f}{spread}"
