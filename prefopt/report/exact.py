"""What only a world that can be enumerated knows: sections that are drawn where results.json holds these figures.

`prefopt.demo.account` makes and describes them: "best_of_n", "realignment", "noise", "calibration" and "reward".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from prefopt.report import figures
from prefopt.report.html import part
from prefopt.report.read import Run

Row = Mapping[str, Any]


def best_of_n(runs: Sequence[Run]) -> Markup | None:
    """What came of drawing beside the exact distribution."""
    found = _only(runs, "best_of_n")
    if not found:
        return None
    header = ["best of", "KL", "drawn", "bound", "reward", "drawn"]
    tables = [
        part("section", f"By the {by} reward", part("table", header, [_best(row) for row in found[by]]))
        for by in ("true", "learned")
    ]
    lead = (
        "N reviews are drawn and the best is kept: the exact distribution, and beside it the means over what was "
        "drawn, with 95 % intervals. The bound is log N − (N−1)/N. Rewards are true ones, whatever chose."
    )
    return part("section", "Best-of-N", Markup("").join(tables), lead)


def _best(row: Row) -> list[str]:
    kl, reward = (f"{value:.3f} ({low:.3f}–{high:.3f})" for value, low, high in map(row["drawn"].get, ("kl", "reward")))
    return [str(row["n"]), _spread(row, "kl"), kl, f"{row['bound']:.3f}", _spread(row, "reward"), reward]


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
    """Preferences by a learned reward against the true ones: implicit in a policy, or of a reward model."""
    learned = [found for key in ("calibration", "reward") if (found := _only(runs, key))]
    return part("section", "Calibration", Markup("").join(map(_calibration, learned))) if learned else None


def _calibration(found: Row) -> Markup:
    svg = figures.calibration(found["predicted"], found["true"], f"Preference predicted by {found['run']}, and true")
    caption = "On the dashed line they agree. Every pair that the reference would draw counts."
    shares = {"agreement": "pairs that both order alike", "accuracy": "labels of new pairs that it predicts"}
    lines = [
        ["correlation with the true reward", _spread(found, "correlation")],
        ["slope on the true reward", _spread(found, "slope")],
        *([what, f"{_spread(found, name, 100, 1)} %"] for name, what in shares.items()),
        ["the same by the true reward", f"{100 * found['ceiling']:.1f} %"],
        ["average error of a preference", _spread(found, "error")],
    ]
    figure = part("figure", "", svg, [("run-0", "marks", found["run"])], caption)
    return part("beside", figure, part("table", ["", "exact"], lines))


def _only(runs: Sequence[Run], key: str) -> Any:
    return runs[0].results.get(key) if len(runs) == 1 else None


def _percent(point: Row | None) -> str:
    return "–" if point is None else f"{100 * float(point['efficiency']):.1f} %"


def _spread(row: Row, name: str, unit: float = 1, digits: int = 3) -> str:
    """The mean, and ± its standard deviation where there is one, in so many to the unit."""
    return " ± ".join(f"{unit * row[key]:.{digits}f}" for key in (name, f"{name}_sd") if key in row)
