"""A sweep's results on a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.statistics import Interval
from prefopt.terminal import NO_WINDOW, console, duration, printable

Row = Mapping[str, Any]
COLUMNS = "run", "steps", "accuracy, training", "held out", "margin", "held-out loss", "KL, nats", "reward", "time"
SPARED = "time", "steps", "margin", "accuracy, training", "held-out loss"
"""columns that a narrow window goes without, the first of them first: all stand in results.json and report.html"""
NAME = 24
"""letters of a run's name in a line, where there is no room for all"""
_ENDS = re.compile(r" \([^()]* to [^()]*\)")
"""of an interval"""


def table(results: Row, screen: Console | None = None) -> None:
    """Print one line for each run; columns that no run fills are left out, and where a window is narrow some more."""
    screen = screen or console()
    rows = [*_reference(results), *map(_cells, results["runs"])]
    used = [i for i in range(len(COLUMNS)) if any(len(row) > i and row[i] for row in rows)]
    spared = [COLUMNS.index(name) for name in SPARED if COLUMNS.index(name) in used]
    plain = [[_ENDS.sub("", cell) for cell in row] for row in rows]
    choices = ((cells, spared[:n]) for cells in (rows, plain) for n in range(len(spared) + 1))
    tables = [_table(rows, used, None)]
    tables += [_table(cells, [i for i in used if i not in without]) for cells, without in choices]
    shown = next((table for table in tables if _width(table) <= screen.width), tables[-1])
    screen.print(shown)
    if shown not in tables[:2]:
        screen.print("More columns in a wider window, and in report.html.")
    for run in results["runs"]:
        if run["status"] == "failed":
            screen.print(Text(printable(f"{run['name']} failed: {run['error']}")), soft_wrap=True)


def _table(rows: Sequence[Sequence[str]], used: Sequence[int], name: int | None = NAME) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(COLUMNS[0], overflow="fold", max_width=name)
    for i in used[1:]:
        table.add_column(COLUMNS[i], justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(row[i] or "–")) for i in used))
    return table


def _width(table: Table) -> int:
    return Console(width=NO_WINDOW).measure(table).maximum


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
