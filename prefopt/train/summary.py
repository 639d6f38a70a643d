"""The closing words of a run: what changed, and what to be wary of.

``results`` is what ``results.json`` holds under the same keys; figures have their names in ``metrics.jsonl``:

    {"training": {"before": {"loss": 0.693, ...}, "after": {"loss": 0.412, ...}},
     "held_out": {"before": ..., "after": ...} or None,
     "skipped_steps": 0, "unit": "pair", "held_out_seen": 0, "data": {...}}

Among the figures of a split, beside the metrics: ``rewards/accuracies_low`` and ``_high`` (95 % interval), ``pairs``,
``prompts`` and ``length_correlation``, as `with_interval` and `length_correlation` make them. A warning is a
function of a `Run` that returns a sentence or None; to add one, write it and name it in ``WARNINGS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from prefopt.statistics import proportion
from prefopt.terminal import counted, printable

Figures = Mapping[str, float]

DISPLACED_NATS, DISPLACED_SHARE = 1.0, 0.10
"""fall of the chosen responses' log-probability that counts: above both, since a tenth of a short answer's is noise"""
SATURATED_MARGIN = 5.0
"""σ(−5) = 0.7 %: a pair pulls 75 times less than at the start, where σ(0) = 50 %"""
LENGTH_CORRELATION = 0.5
"""a quarter (r²) of the spread of margins is a matter of length; with n pairs also above 3/√n, three standard errors"""
OVERFIT_GAP = 0.10
"""accuracy, training minus held-out; smaller gaps are usual, and larger ones must also be beyond the interval"""
OVERFIT_RISE = 0.05
"""a loss above where it began, or held-out above its lowest, as a share of where it began"""
MANY_DROPPED = 0.05
"""a share of the examples"""
NOTHING_LEARNED = 0.05
"""accuracy's distance from one half"""
KL_EXPLODED = 25.0
"""nats a response: twice the largest target among the runs of Rafailov et al. 2023 (12)"""
WIDE_INTERVAL = 0.20
"""from end to end: about 100 independent pairs at an accuracy of one half"""
NO_PREFERENCE = 1e-4
"""a mean margin below it is rounding: policy and reference are the same model, and accuracy means nothing"""


class Summary(NamedTuple):
    """Sentences without markup; each warning names its figure and what to do."""

    lines: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class Run:
    """What the warnings look at. Empty figures where there are none."""

    training: Figures
    held_out: Figures
    training_before: Figures
    held_out_before: Figures
    history: Sequence[Mapping[str, Any]]
    skipped: int
    held_out_seen: int = 0
    held_out_trained_on: int = 0
    overlong: float = 0.0
    """share of the examples that were left out for it"""
    unit: str = "pair"
    loss: str = ""

    @property
    def judged(self) -> tuple[str, Figures, Figures]:
        """Name, before and after of the split that tells most: held-out if there is one."""
        if self.held_out:
            return "held-out", self.held_out_before, self.held_out
        return "training", self.training_before, self.training


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
            parts.append(f"reward accuracy {_accuracy(after)}{_among(after, run.unit)}")
        if "rewards/margins" in after:
            parts.append(f"mean margin {after['rewards/margins']:+.3f}")
        if "reward" in before and "reward" in after:
            parts.append(f"mean reward {before['reward']:.3f} → {after['reward']:.3f} at KL {after['kl']:.2f} nats")
        if parts:
            lines.append(f"{name}: {'; '.join(parts)}.")
    name, before, after = run.judged
    if chosen := _moved("chosen", before, after):
        rejected = _moved("rejected", before, after)
        lines.append(f"On {name} data the {chosen}{'; the ' + rejected if rejected else ''}.")
    return lines


def _accuracy(figures: Figures) -> str:
    interval = ""
    if "rewards/accuracies_low" in figures:
        low, high = figures["rewards/accuracies_low"], figures["rewards/accuracies_high"]
        interval = f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * figures['rewards/accuracies']:.1f} %{interval}"


def _among(figures: Figures, unit: str) -> str:
    prompts = f" of {counted(int(figures['prompts']), 'prompt')}" if "prompts" in figures else ""
    return f" on {counted(int(figures['pairs']), unit)}{prompts}" if "pairs" in figures else ""


def _moved(which: str, before: Figures, after: Figures) -> str:
    name = f"logps/{which}"
    if name not in before or name not in after:
        return ""
    change = after[name] - before[name]
    return (
        f"{which} responses became {'more' if change >= 0 else 'less'} likely by {abs(change):.1f} nats "
        f"({before[name]:.1f} → {after[name]:.1f})"
    )


def not_numbers(run: Run) -> str | None:
    names = sorted(
        {
            name
            for figures in (run.training, run.held_out)
            for name, value in figures.items()
            if isinstance(value, float) and not math.isfinite(value)
        }
    )
    if names:
        return f"Not finite at the end: {', '.join(names)}; do not use this model, and lower --learning-rate."
    return None


def steps_skipped(run: Run) -> str | None:
    if run.skipped:
        steps = "1 step was" if run.skipped == 1 else f"{run.skipped:,} steps were"
        return f"{steps} skipped for a loss or gradient that is not finite; lower --learning-rate or look at the data."
    return None


def no_held_out(run: Run) -> str | None:
    if run.held_out:
        return None
    return (
        "No held-out data: nothing here says how the policy does on new prompts; "
        "set --eval-fraction 0.1 or --eval-data."
    )


def held_out_was_seen(run: Run) -> str | None:
    if run.held_out and run.held_out_seen:
        return (
            f"{run.held_out_seen:,} of the held-out prompts were trained on when the start model was made, so the "
            "held-out figures flatter; fine-tune it with the same --eval-fraction and --seed, which hold out the same."
        )
    return None


def held_out_is_trained_on(run: Run) -> str | None:
    if run.held_out_trained_on:
        return (
            f"{run.held_out_trained_on:,} held-out examples have a prompt that was trained on too, so the held-out "
            "figures flatter; leave those out of --eval-data, or let --eval-fraction hold out whole prompts."
        )
    return None


def many_overlong(run: Run) -> str | None:
    if run.overlong > MANY_DROPPED:
        return (
            f"{100 * run.overlong:.0f} % of the examples were left out, being longer than --max-length; raise it where "
            "the model takes more, or let another --overlong shorten them."
        )
    return None


def chosen_fell(run: Run) -> str | None:
    """Likelihood displacement: the margin grows although the wanted answers become rarer."""
    name, before, after = run.judged
    if "logps/chosen" not in before or "logps/chosen" not in after:
        return None
    fall = before["logps/chosen"] - after["logps/chosen"]
    if fall > max(DISPLACED_NATS, DISPLACED_SHARE * abs(before["logps/chosen"])):
        return (
            f"Chosen responses became less likely: log-probability {before['logps/chosen']:.1f} → "
            f"{after['logps/chosen']:.1f} nats on {name} data, so that probability went to other answers; "
            f"{_against_displacement(run)}."
        )
    return None


def _against_displacement(run: Run) -> str:
    """Of what may be set for this loss, by its unit and its repr; all of it where that is not known."""
    imitate = "raise --nll-weight" if "nll_weight=" in run.loss else "add --nll-weight 0.1"
    ways = [imitate] if run.unit == "pair" else []
    ways += ["raise --beta"] if "beta=" in run.loss or not run.loss else []
    return " or ".join(", ".join([*ways, "lower --learning-rate"]).rsplit(", ", 1))


def loss_rose(run: Run) -> str | None:
    before, after = run.training_before.get("loss"), run.training.get("loss")
    if before is not None and after is not None and after - before > OVERFIT_RISE * abs(before) and not _sampled(run):
        return f"Training loss rose: {before:.4f} → {after:.4f} on what was trained on; lower --learning-rate."
    return None


def reward_fell(run: Run) -> str | None:
    name, before, after = run.judged
    was, now = before.get("reward"), after.get("reward")
    if was is not None and now is not None and was - now > OVERFIT_RISE * abs(was):
        return f"The reward fell: {was:.3f} → {now:.3f} on {name} prompts; lower --learning-rate, or train longer."
    return None


def _sampled(run: Run) -> bool:
    """As PPO's, whose loss begins anew with each batch."""
    return "reward" in run.training


def margins_saturated(run: Run) -> str | None:
    margin = run.training.get("rewards/margins", 0.0)
    if margin > SATURATED_MARGIN and not loss_rose(run) and "Unlikelihood(" not in run.loss:
        larger = ", or a larger --beta" if "beta=" in run.loss or not run.loss else ""
        return (
            f"Margins are saturated: {margin:+.1f} on training pairs, where a pair hardly pulls any more; "
            f"fewer --epochs{larger}."
        )
    return None


def length_drift(run: Run) -> str | None:
    name, _, after = run.judged
    correlation = after.get("length_correlation", 0.0)
    if abs(correlation) > max(LENGTH_CORRELATION, 3 / math.sqrt(after.get("pairs", math.inf))):
        way = "longer" if correlation > 0 else "shorter"
        other = ", or use --loss sigmoid_norm" if "logps/chosen" in after else ""  # not of a reward model
        return (
            f"Rewards follow length: margins correlate by {correlation:+.2f} with the difference in length on {name} "
            f"{run.unit}s, so expect {way} answers; compare lengths when you judge{other}."
        )
    return None


def overfitted(run: Run) -> str | None:
    training, held_out = run.training.get("rewards/accuracies"), run.held_out.get("rewards/accuracies")
    if training is None or held_out is None:
        return None
    beyond = training > run.held_out.get("rewards/accuracies_high", held_out)
    if training - held_out > OVERFIT_GAP and beyond:
        return (
            f"Held-out accuracy {_accuracy(run.held_out)} is far below training's {_accuracy(run.training)}: "
            "what was learned does not carry over to new prompts; fewer steps or more data, if both are alike."
        )
    return None


def held_out_loss_rose(run: Run) -> str | None:
    curve = [
        (record["loss"], record["step"])
        for record in run.history
        if record["split"] == "eval" and math.isfinite(record.get("loss", math.nan))
    ]
    if len(curve) < 2:
        return None
    (lowest, at), (last, _) = min(curve), curve[-1]
    if last - lowest > OVERFIT_RISE * abs(curve[0][0]):
        instead = f"--max-steps {at}" if at else "a lower --learning-rate"
        return f"Held-out loss was lowest at step {at:,} ({lowest:.4f}) and ended at {last:.4f}; try {instead}."
    return None


def nothing_learned(run: Run) -> str | None:
    after = [figures for figures in (run.training, run.held_out) if "rewards/accuracies" in figures]
    near = [abs(figures["rewards/accuracies"] - 0.5) < NOTHING_LEARNED or _no_preference(figures) for figures in after]
    if after and all(near):
        shown = " and ".join(f"{figures['rewards/accuracies']:.3f}" for figures in after)
        _, before, now = run.judged
        rose = now.get("loss", 0.0) > before.get("loss", math.inf)
        do = "the loss rose, so lower --learning-rate" if rose else "raise --learning-rate or --epochs"
        return f"Nothing was learned: accuracy {shown}, where a coin gives 0.5; {do}."
    return None


def preference_reversed(run: Run) -> str | None:
    name, _, after = run.judged
    if after.get("rewards/accuracies_high", 1.0) < 0.5 and not _no_preference(after):
        return (
            f"The model prefers the rejected responses: {name} accuracy {_accuracy(after)}; "
            "check that chosen and rejected are not swapped."
        )
    return None


def kl_exploded(run: Run) -> str | None:
    name, _, after = run.judged
    kl = after.get("kl", 0.0)
    if kl > KL_EXPLODED:
        closer = "lower --target-kl, or raise --kl-coef where it is not set," if _sampled(run) else "raise --beta"
        return (
            f"The policy is far from its reference: KL {kl:.1f} nats on {name} data, where text often degenerates; "
            f"{closer} or lower --learning-rate, and read some samples."
        )
    return None


def interval_wide(run: Run) -> str | None:
    low, high = run.held_out.get("rewards/accuracies_low"), run.held_out.get("rewards/accuracies_high")
    if low is not None and high is not None and high - low > WIDE_INTERVAL:
        return f"Held-out accuracy is only known as {_accuracy(run.held_out)}; hold out more prompts to compare runs."
    return None


WARNINGS: tuple[Callable[[Run], str | None], ...] = (
    not_numbers,
    loss_rose,
    reward_fell,
    steps_skipped,
    nothing_learned,
    preference_reversed,
    overfitted,
    held_out_loss_rose,
    held_out_was_seen,
    held_out_is_trained_on,
    many_overlong,
    chosen_fell,
    margins_saturated,
    length_drift,
    kl_exploded,
    interval_wide,
    no_held_out,
)


def _no_preference(figures: Figures) -> bool:
    return abs(figures.get("rewards/margins", 1.0)) < NO_PREFERENCE


def with_interval(
    figures: Figures, accuracies: Sequence[float], prompts: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """``figures`` and the 95 % interval of the accuracy: ``accuracies`` [P] and ``prompts`` [P] (keys), one per pair.

    >>> with_interval({"rewards/accuracies": 1.0}, [1.0, 1.0], ["p", "p"])["prompts"]
    1
    """
    more: dict[str, float] = {"pairs": len(prompts), "prompts": len(set(prompts))}
    if len(accuracies) and not np.isnan(accuracies).any():
        _, low, high = proportion(accuracies, prompts, seed=seed)
        more |= {"rewards/accuracies_low": low, "rewards/accuracies_high": high}
    return {**figures, **more}


def length_correlation(margins: Sequence[float], length_differences: Sequence[float]) -> float:
    """Pearson's r of margins [P] and |y_w| − |y_l| [P], in tokens; 0.0 where either does not vary.

    >>> length_correlation([1.0, 2.0, 3.0], [10, 20, 30])
    1.0
    """
    x, y = np.asarray(margins, float), np.asarray(length_differences, float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return round(float(np.corrcoef(x, y)[0, 1]), 12)


ROWS: tuple[tuple[str, str, str], ...] = (
    ("loss", "loss", ".4f"),
    ("reward accuracy", "rewards/accuracies", ".3f"),
    ("mean margin", "rewards/margins", "+.3f"),
    ("log p(chosen)", "logps/chosen", ".1f"),
    ("log p(rejected)", "logps/rejected", ".1f"),
    ("mean reward", "reward", "+.3f"),
    ("KL to the reference", "kl", ".2f"),
    ("response length", "response_length", ".1f"),
    ("pairs", "pairs", ",.0f"),
    ("examples", "examples", ",.0f"),
)
"""what the table of before and after shows: a label, the metric, its format"""


def table_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of before and after; only what there is, "–" for what has no meaning."""
    columns = [
        (f"{label} {when}", split[when])
        for label, key in (("training", "training"), ("held-out", "held_out"))
        if (split := results.get(key))
        for when in ("before", "after")
        if split.get(when)
    ]
    header = ["", *(label for label, _ in columns)]
    return header, rows_of([figures for _, figures in columns], results.get("unit", "pair"))


def rows_of(columns: Sequence[Figures], unit: str) -> list[list[str]]:
    """A label, and a cell for each column."""
    rows = []
    for label, name, form in ROWS:
        if any(name in figures for figures in columns):
            label = f"{unit}s" if name == "pairs" else label
            rows.append([label, *(_cell(figures, name, form) for figures in columns)])
        if name == "rewards/accuracies" and any(f"{name}_low" in figures for figures in columns):
            rows.append(["  95 % interval", *(_interval(figures) for figures in columns)])
    return rows


def _cell(figures: Figures, name: str, form: str) -> str:
    if name not in figures or (name == "rewards/accuracies" and _no_preference(figures)):
        return "–"
    return format(figures[name], form)


def _interval(figures: Figures) -> str:
    if "rewards/accuracies_low" not in figures or _no_preference(figures):
        return "–"
    return f"{figures['rewards/accuracies_low']:.3f}–{figures['rewards/accuracies_high']:.3f}"


def _table(columns: Sequence[Sequence[str]]) -> Table:
    """Of labels and of figures, each with its header."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, (label, *cells) in enumerate(columns):
        widest = max(map(len, [*cells, *label.split()]))
        table.add_column(Text(label), justify="right" if number else "left", no_wrap=number == 0, min_width=widest)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*(Text(cell) for cell in row))
    return table


def render(summary: Summary, results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table and the words, to stdout unless told otherwise."""
    console = console or Console(highlight=False)
    header, rows = table_rows(results)
    if rows:
        labels, *columns = zip(header, *rows, strict=True)
        for beside in (4, 2, 1):  # as many columns as the window is wide for
            starts = range(0, len(columns), beside)
            tables = [_table([labels, *columns[i : i + beside]]) for i in starts]
            room = console.options.update_width(1000)
            if all(Measurement.get(console, room, table).minimum <= console.width for table in tables):
                break
        console.print(*tables)
    # Where no one's window sets the width, one sentence is one line, to be found by grep.
    for line in summary.lines:
        console.print(Text(printable(line)), soft_wrap=not console.is_terminal)
    for warning in summary.warnings:
        text = Text.assemble(("warning: ", "bold yellow"), printable(warning))
        console.print(text, soft_wrap=not console.is_terminal)
