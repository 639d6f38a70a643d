"""What only a world that can be enumerated knows: three sections, drawn where results.json holds these figures.

`prefopt.demo.account` makes and describes them: "realignment", "noise" and "calibration".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from prefopt.report import figures
from prefopt.report.html import part
from prefopt.report.read import Run

Row = Mapping[str, Any]


def realignment(runs: Sequence[Run]) -> Markup | None:
    """One run at every β, beside the runs that were trained so."""
    found = _only(runs, "realignment")
    if not found:
        return None
    at = found["at"]
    trained = [row["trained"] for row in at if "trained" in row]
    paths = [
        [figures.Point(row["sequences"]["kl"], row["sequences"]["reward"], "run-0") for row in at],
        [figures.Point(row["tokens"]["kl"], row["tokens"]["reward"], "run-1") for row in at],
        *([figures.Point(p["kl"], p["reward"], "run-2")] for p in trained),
    ]
    curve = [(kl, reward) for kl, reward in runs[0].results["frontier"]["curve"]]
    svg = figures.frontier(curve, paths, "One run at every β: expected reward against KL", (5.0, 3.3))
    keys = [
        ("reference", "line", "the most that is possible"),
        ("run-0", "marks", "whole responses"),
        ("run-1", "marks", "token by token"),
        ("run-2", "marks", "trained at that β"),
    ]
    rows = [
        [f"β = {row['beta']:g}", *map(_percent, (row["sequences"], row["tokens"])), _percent(row.get("trained"))]
        for row in at
    ]
    table = part("table", ["efficiency as if at", "whole responses", "token by token", "trained so"], rows)
    caption = "A log-ratio to the reference that is stretched by λ is that of a run at β/λ: exact for whole responses."
    lead = f"{found['run']}, realigned; token by token is what decoding can do."
    return part("section", "One run, every β", part("beside", part("figure", "", svg, keys, caption), table), lead)


def noise(runs: Sequence[Run]) -> Markup | None:
    """Methods on labels of which some are wrong."""
    found = _only(runs, "noise")
    if not found:
        return None
    shares = ("missing", "efficiency")
    rows = [
        [row["name"], _spread(row, "kl"), _spread(row, "reward"), *(f"{_spread(row, n, 100, 1)} %" for n in shares)]
        for row in found["methods"]
    ]
    seeds = max(row["seeds"] for row in found["methods"])
    lead = f"± one standard deviation over {seeds} seeds." if seeds > 1 else "One seed: its spread is not known."
    title = f"With {100 * found['flip']:.0f} % of the labels turned around"
    return part("section", title, part("table", ["method", "KL", "reward", "outside", "efficiency"], rows), lead)


def calibration(runs: Sequence[Run]) -> Markup | None:
    """Preferences by implicit reward against the true ones."""
    found = _only(runs, "calibration")
    if not found:
        return None
    svg = figures.calibration(found["predicted"], found["true"], "Predicted preference against the true one")
    caption = "On the dashed line they agree. Every pair that the reference would draw counts."
    lines = [
        ["correlation of implicit and true reward", f"{found['correlation']:.3f}"],
        ["slope of the implicit on the true reward", f"{found['slope']:.3f}"],
        ["pairs that both order alike", f"{100 * found['agreement']:.1f} %"],
        ["average error of a preference", f"{found['error']:.3f}"],
    ]
    figure = part("figure", "", svg, [("run-0", "marks", found["run"])], caption)
    return part("section", "Calibration", part("beside", figure, part("table", ["", "exact"], lines)))


def _only(runs: Sequence[Run], key: str) -> Any:
    return runs[0].results.get(key) if len(runs) == 1 else None


def _percent(point: Row | None) -> str:
    return "–" if point is None else f"{100 * float(point['efficiency']):.1f} %"


def _spread(row: Row, name: str, unit: float = 1, digits: int = 3) -> str:
    """The mean, and ± its standard deviation where there is one, in so many to the unit."""
    return " ± ".join(f"{unit * row[key]:.{digits}f}" for key in (name, f"{name}_sd") if key in row)
