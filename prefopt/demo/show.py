"""The demo's figures on a terminal: those of results.json, to three decimals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from prefopt.demo.methods import Outcome

Row = Mapping[str, Any]


def line(console: Console, outcome: Outcome) -> None:
    """One line when a method is done."""
    end, seed = outcome.end, f"  seed {outcome.seed}" if outcome.seed else ""
    console.print(
        f"{outcome.method.name:<14}  KL {end.kl:6.3f}  reward {end.reward:6.3f}  efficiency {end.efficiency:.3f}{seed}"
    )


def figures(console: Console, results: Row) -> None:
    """The tables, and what they say."""
    console.print(table(results), "Efficiency: reward gained, as a share of the most that the KL allows.", sep="\n")
    _titled(console, "Best-of-N's KL and the bound often given for it", best_of_n(results["best_of_n"]))
    _titled(console, f"{results['noise']['flip']:.0%} of the labels turned around", noise(results["noise"]))
    run = results["realignment"]["run"]
    _titled(console, f"One run, every β: {run}, realigned", realignment(results["realignment"]))
    found = results["calibration"]
    console.print(
        f"\nCalibration of {found['run']}: its implicit reward has correlation {found['correlation']:.3f} with the "
        f"true one and slope {found['slope']:.3f}; it orders {found['agreement']:.1%} of all pairs alike, and its "
        f"preferences are off by {found['error']:.3f} on average."
    )


def table(results: Row) -> Table:
    """Every method where it ended, by efficiency; then the best possible for each β."""
    ends = {(p["name"], p.get("n")): p for p in results["frontier"]["points"] if p["name"] != "Best-of-N"}
    rows = [*ends.values(), *results["best_of_n"]]
    shown = _table("method", "KL, nats", "reward", "efficiency", "outside the grammar")
    for p in sorted(rows, key=lambda p: -p["efficiency"]):
        shown.add_row(p["name"], *_figures(p), f"{p['missing']:.4f}")
    shown.add_section()
    start = results["reference"]
    shown.add_row("where all began (SFT)", "0", f"{start['reward']:.3f}", "–", f"{start['missing']:.4f}")
    for best in results["optimum"]:
        shown.add_row(f"optimum at β = {best['beta']:g}", f"{best['kl']:.3f}", f"{best['reward']:.3f}", "1", "0")
    return shown


def best_of_n(rows: Sequence[Row]) -> Table:
    shown = _table("N", *(str(row["n"]) for row in rows))
    shown.add_row("KL", *(f"{row['kl']:.4f}" for row in rows))
    shown.add_row("log N − (N−1)/N", *(f"{row['bound']:.4f}" for row in rows))
    return shown


def noise(results: Row) -> Table:
    """With ± one standard deviation over seeds, where there are several."""
    shown = _table("method", "KL, nats", "reward", "efficiency", "outside the grammar", "seeds")
    for row in results["methods"]:
        cells = [
            f"{row[name]:.3f}" + (f" ± {row[f'{name}_sd']:.3f}" if f"{name}_sd" in row else "")
            for name in ("kl", "reward", "efficiency", "missing")
        ]
        shown.add_row(row["name"], *cells, str(row["seeds"]))
    return shown


def realignment(results: Row) -> Table:
    """Efficiency token by token and of the run that was trained at each β stand beside it."""
    shown = _table("as if at", "KL, nats", "reward", "efficiency", "token by token", "trained so")
    for row in results["at"]:
        beside = [f"{row[how]['efficiency']:.3f}" if how in row else "–" for how in ("tokens", "trained")]
        shown.add_row(f"β = {row['beta']:g}", *_figures(row["sequences"]), *beside)
    return shown


def _figures(p: Row) -> list[str]:
    return [f"{p[name]:.3f}" for name in ("kl", "reward", "efficiency")]


def _table(first: str, *rest: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column(first)
    for label in rest:
        made.add_column(label, justify="right")
    return made


def _titled(console: Console, title: str, shown: Table) -> None:
    console.print(f"\n[bold]{title}[/bold]", shown, sep="\n")
