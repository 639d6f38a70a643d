"""The closing words of a run: what changed, and what to be wary of.

``results`` is what ``results.json`` holds under the same keys; figures have their names in ``metrics.jsonl``:

    {"training": {"before": {"loss": 0.693, ...}, "after": {"loss": 0.412, ...}},
     "held_out": {"before": ..., "after": ...} or None,
     "skipped_steps": 0, "unit": "pair", "held_out_seen": 0, "data": {...}}

Among the figures of a split, beside the metrics: ``rewards/accuracies_low`` and ``_high`` (95 % interval), ``pairs``,
``prompts`` and ``length_correlation``, as `prefopt.train.outcome.described` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from prefopt.terminal import NO_WINDOW, console, counted, printable
from prefopt.train.table import OF_NO_PAIR, Figures, accuracy, mean_reward, table_rows, worded
from prefopt.train.warnings import WARNINGS, Run


class Summary(NamedTuple):
    """Sentences without markup; each warning names its figure and what to do."""

    lines: list[str]
    warnings: list[str]


def summarize(history: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Summary:
    """The records of ``metrics.jsonl`` and the results -> what to tell a person.

    >>> figures = {"loss": 0.41, "rewards/accuracies": 0.9, "rewards/margins": 1.2, "pairs": 2000}
    >>> summary = summarize([], {"training": {"before": {"loss": 0.6931}, "after": figures}, "held_out": None})
    >>> print(*summary.lines, sep="\\n")
    Training: loss 0.6931 → 0.4100; reward accuracy 90.0 % on 2,000 pairs; mean margin +1.200.
    >>> print(*summary.warnings)
    No held-out data: nothing here says how the policy does on new prompts; set --eval-fraction 0.1 or --eval-data.
    """
    splits = {name: results.get(name) or {} for name in ("training", "held_out")}
    run = Run(
        training=splits["training"].get("after", {}),
        held_out=splits["held_out"].get("after", {}),
        training_before=splits["training"].get("before", {}),
        held_out_before=splits["held_out"].get("before", {}),
        history=history,
        skipped=int(results.get("skipped_steps", 0)),
        held_out_seen=int(results.get("held_out_seen", 0)),
        held_out_trained_on=int(results.get("data", {}).get("held out and trained on", 0)),
        overlong=results.get("data", {}).get("too long", 0) / max(1, results.get("data", {}).get("given", 0)),
        unit=results.get("unit", "pair"),
        loss=str(results.get("loss", "")),
    )
    warnings = [text for warning in WARNINGS if (text := warning(run))]
    return Summary(_changes(run), warnings)


def _changes(run: Run) -> list[str]:
    lines = []
    if steps := [record for record in run.history if record["split"] == "train"]:
        speed = [s for record in steps if math.isfinite(s := record.get("tokens_per_second", math.nan))]
        pace = f", {median(speed):,.0f} tokens/s" if speed else ""
        lines.append(f"Trained for {counted(steps[-1]['step'], 'step')}{pace}.")
    for name, before, after in (
        ("Training", run.training_before, run.training),
        ("Held-out", run.held_out_before, run.held_out),
    ):
        parts = []
        if "loss" in before and "loss" in after:
            parts.append(f"loss {before['loss']:.4f} → {after['loss']:.4f}")
        if "rewards/accuracies" in after:
            parts.append(f"reward accuracy {accuracy(after)}{_among(after, run.unit)}")
        if "rewards/margins" in after:
            parts.append(f"mean margin {after['rewards/margins']:+.3f}")
        elif after.keys() >= OF_NO_PAIR:
            chosen, rejected = (worded(which, run.unit) for which in ("chosen", "rejected"))
            rewards = f"{after['rewards/chosen']:+.3f}, of {rejected} ones {after['rewards/rejected']:+.3f}"
            parts.append(f"mean reward of {chosen} responses {rewards}")
        if "reward" in before and "reward" in after:
            parts.append(f"mean reward {before['reward']:.3f} → {mean_reward(after)} at KL {after['kl']:.2f} nats")
        if parts:
            lines.append(f"{name}: {'; '.join(parts)}.")
    name, before, after = run.judged
    if chosen := _moved("chosen", before, after, run.unit):
        rejected = _moved("rejected", before, after, run.unit)
        lines.append(f"On {name} data the {chosen}{'; the ' + rejected if rejected else ''}.")
    return lines


def _among(figures: Figures, unit: str) -> str:
    prompts = f" of {counted(int(figures['prompts']), 'prompt')}" if "prompts" in figures else ""
    return f" on {counted(int(figures['pairs']), unit)}{prompts}" if "pairs" in figures else ""


def _moved(which: str, before: Figures, after: Figures, unit: str) -> str:
    name = f"logps/{which}"
    if name not in before or name not in after:
        return ""
    change = after[name] - before[name]
    return (
        f"{worded(which, unit)} responses became {'more' if change >= 0 else 'less'} likely by {abs(change):.1f} nats "
        f"({before[name]:.1f} → {after[name]:.1f})"
    )


def _table(columns: Sequence[Sequence[str]]) -> Table:
    """Of labels and of figures, each with its header."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, (label, *cells) in enumerate(columns):
        widest = max(map(len, [*cells, *label.split()]))
        table.add_column(Text(label), justify="right" if number else "left", no_wrap=number == 0, min_width=widest)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    return table


def render(summary: Summary, results: Mapping[str, Any], screen: Console | None = None) -> None:
    """Print the table and the words, to stdout unless told otherwise."""
    screen = screen or console()
    header, rows = table_rows(results)
    if rows:
        labels, *columns = zip(header, *rows, strict=True)
        for beside in (4, 2, 1):  # as many columns as the window is wide for
            starts = range(0, len(columns), beside)
            tables = [_table([labels, *columns[i : i + beside]]) for i in starts]
            room = screen.options.update_width(NO_WINDOW)
            if all(Measurement.get(screen, room, table).minimum <= screen.width for table in tables):
                break
        screen.print(*tables)
    for line in summary.lines:
        screen.print(Text(printable(line)))
    for warning in summary.warnings:
        screen.print(Text.assemble(("warning: ", "bold yellow"), printable(warning)))
