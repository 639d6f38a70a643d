"""A sweep's results for people: a table, and a picture of reward against KL."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.statistics import Interval
from prefopt.terminal import printable
from prefopt.train.display import duration

Row = Mapping[str, Any]
COLUMNS = "run", "steps", "accuracy, training", "held out", "margin", "held-out loss", "KL, nats", "reward", "time"
SPARED = "time", "steps", "margin", "accuracy, training", "held-out loss"
"""columns that a narrow window goes without, the first of them first: all stand in results.json and report.html"""
NAME = 24
"""letters of a run's name in a line, where there is no room for all"""
_ENDS = re.compile(r" \([^()]* to [^()]*\)")
"""of an interval"""


def table(results: Row, console: Console | None = None) -> None:
    """Print one line for each run; columns that no run fills are left out, and where a window is narrow some more."""
    console = console or Console(highlight=False)
    rows = [*_reference(results), *map(_cells, results["runs"])]
    used = [i for i in range(len(COLUMNS)) if any(len(row) > i and row[i] for row in rows)]
    spared = [COLUMNS.index(name) for name in SPARED if COLUMNS.index(name) in used]
    plain = [[_ENDS.sub("", cell) for cell in row] for row in rows]
    choices = ((cells, spared[:n]) for cells in (rows, plain) for n in range(len(spared) + 1))
    tables = [_table(rows, used, None)]
    tables += [_table(cells, [i for i in used if i not in without]) for cells, without in choices]
    if not console.is_terminal:
        console.width = _width(tables[0])  # where no window sets it, a table is not to be squeezed
    shown = next((table for table in tables if _width(table) <= console.width), tables[-1])
    console.print(shown)
    if shown not in tables[:2]:
        console.print("More columns in a wider window, and in report.html.")
    for run in results["runs"]:
        if run["status"] == "failed":
            console.print(Text(printable(f"{run['name']} failed: {run['error']}")), soft_wrap=True)


def _table(rows: Sequence[Sequence[str]], used: Sequence[int], name: int | None = NAME) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(COLUMNS[0], overflow="fold", max_width=name)
    for i in used[1:]:
        table.add_column(COLUMNS[i], justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(row[i] or "–")) for i in used))
    return table


def _width(table: Table) -> int:
    return Console(width=10_000).measure(table).maximum


def _reference(results: Row) -> list[list[str]]:
    """Where runs start from, if its reward is known."""
    runs = {run["name"] for run in results["runs"]}
    points = [point for point in results.get("frontier", {}).get("points", []) if point["name"] not in runs]
    axes = "kl", "reward"
    return [[p["name"], *[""] * 5, *(str(Interval(p[a], *p[f"{a}_interval"])) for a in axes), ""] for p in points]


def _cells(run: Row) -> list[str]:
    if run["status"] == "failed":
        return [run["name"], "failed", *[""] * 7]
    training, held_out = run["training"]["after"], (run["held_out"] or {}).get("after", {})
    judged = held_out or training
    estimate = run.get("estimate", {})
    return [
        run["name"],
        f"{run['steps']:,}",
        _figure(training, "rewards/accuracies", ".3f"),
        _accuracy(held_out),
        _figure(judged, "rewards/margins", "+.3f"),
        _figure(held_out, "loss", ".4f"),
        *(str(Interval(**estimate[axis])) if estimate.get(axis) else "" for axis in ("kl", "reward")),
        duration(run["seconds"]),
    ]


def _figure(figures: Row, name: str, form: str) -> str:
    return format(float(figures[name]), form) if name in figures else ""


def _accuracy(figures: Row) -> str:
    """With its interval, if it has one."""
    name = "rewards/accuracies"
    if f"{name}_low" not in figures:
        return _figure(figures, name, ".3f")
    return str(Interval(figures[name], figures[f"{name}_low"], figures[f"{name}_high"]))


# --- the picture --------------------------------------------------------------------------------


class Place(NamedTuple):
    """A point with its intervals, each (value, low, high)."""

    name: str
    kl: tuple[float, float, float]
    height: tuple[float, float, float]


def picture(results: Row) -> str | None:
    """An SVG file in the colours of the reader's light or dark theme; None where there is nothing to place.

    Rewards against KL where they are known, with the exact frontier if the results hold its ``curve``; otherwise
    the held-out accuracies.
    """
    runs = [run["name"] for run in results["runs"] if run.get("status", "done") == "done"]
    frontier = results.get("frontier", {})
    places = [_of_point(point) for point in frontier.get("points", [])]
    if places:
        return draw(places, "expected reward", frontier.get("curve", []), runs)
    places = [place for run in results["runs"] if (place := _of_run(run))]
    return draw(places, "held-out accuracy", [], runs) if places else None


def _of_point(point: Row) -> Place:
    def around(axis: str) -> tuple[float, float, float]:
        low, high = point.get(f"{axis}_interval", [point[axis]] * 2)
        return point[axis], low, high

    return Place(point["name"], around("kl"), around("reward"))


def _of_run(run: Row) -> Place | None:
    kl = run.get("estimate", {}).get("kl")
    held_out = (run.get("held_out") or {}).get("after", {})
    if kl is None or "rewards/accuracies_low" not in held_out:
        return None
    heights = [held_out[f"rewards/accuracies{end}"] for end in ("", "_low", "_high")]
    return Place(run["name"], (kl["value"], kl["low"], kl["high"]), (heights[0], heights[1], heights[2]))


def spread(heights: Sequence[float], least: float = 0.05) -> list[float]:
    """Ascending shares of a height, moved as little as need be to stand ``least`` apart, the middle where it was.

    >>> spread([0.1, 0.5, 0.5]), spread([])
    ([0.1, 0.475, 0.525], [])
    """
    groups: list[list[float]] = []  # of a group: where its middle would be, and how many stand in it
    for height in heights:
        groups.append([height, 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < least * (groups[-1][1] + groups[-2][1]) / 2:
            (high, n), (low, m) = groups.pop(), groups.pop()
            groups.append([(high * n + low * m) / (n + m), n + m])
    return [round(middle + least * (i - (n - 1) / 2), 6) for middle, n in groups for i in range(int(n))]


def draw(
    places: Sequence[Place], height: str, curve: Sequence[Sequence[float]], runs: Sequence[str] | None = None
) -> str:
    """Each point labelled, with its intervals as a cross, so that colour alone tells nothing.

    ``runs``: the names of those that have the colours of runs, in their order, by default all; others are grey.
    """
    runs = [place.name for place in places] if runs is None else runs
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    from prefopt.report.figures import COLOUR, SERIES, STYLE, inline, standalone

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        if curve:
            axes.plot(
                *zip(*curve, strict=True), color=COLOUR["reference"], linewidth=2, label="the most that is possible"
            )
            axes.legend(loc="lower right", frameon=False, labelcolor=COLOUR["ink"])
        colours = {
            place.name: COLOUR[f"run-{runs.index(place.name) % SERIES}" if place.name in runs else "reference"]
            for place in places
        }
        for place in places:
            (x, left, right), (y, low, high), colour = place.kl, place.height, colours[place.name]
            axes.plot([left, right], [y, y], color=colour, linewidth=0.9, alpha=0.6)
            axes.plot([x, x], [low, high], color=colour, linewidth=0.9, alpha=0.6)
            axes.plot([x], [y], color=colour, marker="o", markersize=5.5)
        axes.margins(x=0.04, y=0.08)
        ordered = sorted(places, key=lambda place: (place.height[0], -place.kl[0]))
        bottom, top = axes.get_ylim()
        at = spread([(place.height[0] - bottom) / (top - bottom) for place in ordered])
        for place, beside in zip(ordered, at, strict=True):
            axes.annotate(
                place.name.replace("$", r"\$"),
                (place.kl[0], place.height[0]),
                (1.02, beside),
                textcoords="axes fraction",
                va="center",
                color=COLOUR["ink"],
                size=8,
                arrowprops={
                    "arrowstyle": "-",
                    "color": colours[place.name],
                    "linewidth": 0.6,
                    "alpha": 0.7,
                    "shrinkB": 4,
                },
            )
        axes.set_xlabel("KL to the reference, nats")
        axes.set_ylabel(height)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    label = f"{height} against KL to the reference of {', '.join(place.name for place in places)}"
    return standalone(inline(buffer.getvalue(), label))
