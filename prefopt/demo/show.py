"""The demo's figures on a terminal: those of results.json, to three decimals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from prefopt.demo.methods import Outcome
from prefopt.statistics import Interval

Row = Mapping[str, Any]
HEADING = 80
"""letters, where no window sets them"""


def heading(console: Console, text: str) -> None:
    console.print(Rule(text), width=console.width if console.is_terminal else HEADING)


def line(console: Console, outcome: Outcome) -> None:
    """One line when a method is done."""
    end, seed = outcome.end, f"  seed {outcome.seed}" if outcome.seed else ""
    console.print(
        f"{outcome.method.name:<14}  KL {end.kl:6.3f}  reward {end.reward:6.3f}  efficiency {end.efficiency:.3f}{seed}"
    )


def figures(console: Console, results: Row) -> None:
    """The tables, and what they say."""
    console.print(table(results), "Efficiency: reward gained, as a share of the most that the KL allows.", sep="\n")
    for by in ("true", "learned"):
        _titled(console, f"Best-of-N by the {by} reward: exact, and drawn", best_of_n(results["best_of_n"][by]))
    _titled(console, f"{results['noise']['flip']:.0%} of the labels turned around", noise(results["noise"]))
    run = results["realignment"]["run"]
    _titled(console, f"One run, every β: {run}, realigned", realignment(results["realignment"]))
    for found in (results["calibration"], results["reward"]):
        console.print(
            f"\nCalibration of {found['run']}: its reward has correlation {found['correlation']:.3f} with the true one "
            f"and slope {found['slope']:.3f}; it predicts {found['accuracy']:.1%} of new labels, the true one "
            f"{found['ceiling']:.1%}; both order {found['agreement']:.1%} of all pairs alike, and its preferences are "
            f"off by {found['error']:.3f} on average."
        )


def table(results: Row) -> Table:
    """Every method where it ended, by efficiency; then the best possible for each β."""
    ends = {p["name"]: p for p in results["frontier"]["points"] if not p["name"].startswith("Best-of-N")}
    rows = [*ends.values(), *results["best_of_n"]["true"]]
    shown = _table("method", "KL, nats", "reward", "efficiency", "outside the grammar")
    for p in sorted(rows, key=lambda p: -p["efficiency"]):
        shown.add_row(p["name"], *_figures(p), _spread(p, "missing", 4))
    shown.add_section()
    start = results["reference"]
    shown.add_row("where all began (SFT)", "0", f"{start['reward']:.3f}", "–", f"{start['missing']:.4f}")
    for best in results["optimum"]:
        shown.add_row(f"optimum at β = {best['beta']:g}", f"{best['kl']:.3f}", f"{best['reward']:.3f}", "1", "0")
    return shown


def best_of_n(rows: Sequence[Row]) -> Table:
    """The bound is log N − (N−1)/N; what was drawn has 95 % intervals."""
    shown = _table("N", "KL", "drawn", "bound", "reward", "drawn")
    for row in rows:
        kl, reward = (str(Interval(*row["drawn"][axis])) for axis in ("kl", "reward"))
        shown.add_row(str(row["n"]), _spread(row, "kl"), kl, f"{row['bound']:.3f}", _spread(row, "reward"), reward)
    return shown


def noise(results: Row) -> Table:
    shown = _table("method", "KL, nats", "reward", "efficiency", "outside the grammar", "seeds")
    for row in results["methods"]:
        shown.add_row(row["name"], *_figures(row), _spread(row, "missing"), str(row["seeds"]))
    return shown


def realignment(results: Row) -> Table:
    """Efficiency token by token and of the run that was trained at each β stand beside it."""
    shown = _table("as if at", "KL, nats", "reward", "efficiency", "token by token", "trained so")
    for row in results["at"]:
        beside = [f"{row[how]['efficiency']:.3f}" if how in row else "–" for how in ("tokens", "trained")]
        shown.add_row(f"β = {row['beta']:g}", *_figures(row["sequences"]), *beside)
    return shown


def _figures(p: Row) -> list[str]:
    return [_spread(p, name) for name in ("kl", "reward", "efficiency")]


def _spread(p: Row, name: str, digits: int = 3) -> str:
    """With ± one standard deviation over seeds, where there are several."""
    return " ± ".join(f"{p[key]:.{digits}f}" for key in (name, f"{name}_sd") if key in p)


def _table(first: str, *rest: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column(first)
    for label in rest:
        made.add_column(label, justify="right")
    return made


def _titled(console: Console, title: str, shown: Table) -> None:
    console.print(f"\n[bold]{title}[/bold]", shown, sep="\n")
