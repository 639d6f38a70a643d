"""The table of before and after: which figures there are, in what words and with how many digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Figures = Mapping[str, float]

NO_PREFERENCE = 1e-4
"""a mean margin below it is rounding: policy and reference are the same model, and accuracy means nothing"""


def undecided(figures: Figures) -> bool:
    """Whether policy and reference are still the same model, so that an accuracy means nothing."""
    means = [figures.get(f"rewards/{name}", 0.0) for name in ("margins", "chosen", "rejected")]
    return "rewards/margins" in figures and all(abs(value) < NO_PREFERENCE for value in means)


def meaningful(figures: Figures) -> Figures:
    """Without the accuracy, and its interval, where there is none yet; here alone it is decided.

    >>> meaningful({"rewards/accuracies": 0.0, "rewards/margins": 0.0})
    {'rewards/margins': 0.0}
    """
    if not undecided(figures):
        return figures
    return {name: value for name, value in figures.items() if not name.startswith("rewards/accuracies")}


def accuracy(figures: Figures) -> str:
    """
    >>> accuracy({"rewards/accuracies": 0.845, "rewards/accuracies_low": 0.767, "rewards/accuracies_high": 0.917})
    '84.5 % (95 % interval 76.7 to 91.7)'
    """
    interval = ""
    if "rewards/accuracies_low" in figures:
        low, high = figures["rewards/accuracies_low"], figures["rewards/accuracies_high"]
        interval = f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * figures['rewards/accuracies']:.1f} %{interval}"


def mean_reward(figures: Figures) -> str:
    """
    >>> mean_reward({"reward": 1.5, "reward_low": 1.25, "reward_high": 2.0}), mean_reward({"reward": 1.5})
    ('1.500 (95 % interval 1.250 to 2.000)', '1.500')
    """
    interval = ""
    if "reward_low" in figures:
        interval = f" (95 % interval {figures['reward_low']:.3f} to {figures['reward_high']:.3f})"
    return f"{figures['reward']:.3f}{interval}"


ROWS: tuple[tuple[str, str, str], ...] = (
    ("loss", "loss", ".4f"),
    ("reward accuracy", "rewards/accuracies", ".3f"),
    ("mean margin", "rewards/margins", "+.3f"),
    ("reward(chosen)", "rewards/chosen", "+.3f"),
    ("reward(rejected)", "rewards/rejected", "+.3f"),
    ("log p(chosen)", "logps/chosen", ".1f"),
    ("log p(rejected)", "logps/rejected", ".1f"),
    ("mean reward", "reward", "+.3f"),
    ("KL to the reference", "kl", ".2f"),
    ("response length", "response_length", ".1f"),
    ("ended by themselves", "ended", ".3f"),
    ("pairs", "pairs", ",.0f"),
    ("examples", "examples", ",.0f"),
)
"""what the table of before and after shows: a label, the metric, its format"""
OF_NO_PAIR = {"rewards/chosen", "rewards/rejected"}
"""are shown where there are no pairs, and so no margins"""
DESIRABLE = {"chosen": "desirable", "rejected": "undesirable"}
"""what these are of responses that are labelled one by one"""


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
    columns = [meaningful(figures) for figures in columns]  # of runs that wrote all of them, too
    rows = []
    paired = any("rewards/margins" in figures for figures in columns)
    for label, name, form in ROWS:
        if any(name in figures for figures in columns) and not (paired and name in OF_NO_PAIR):
            label = f"{unit}s" if name == "pairs" else worded(label, unit)
            rows.append([label, *(_cell(figures, name, form) for figures in columns)])
        if any(f"{name}_low" in figures for figures in columns):
            rows.append(["  95 % interval", *(_interval(figures, name, form) for figures in columns)])
    return rows


def worded(label: str, unit: str) -> str:
    """
    >>> worded("log p(chosen)", "response"), worded("log p(chosen)", "pair")
    ('log p(desirable)', 'log p(chosen)')
    """
    for word, other in DESIRABLE.items() if unit == "response" else ():
        label = label.replace(word, other)
    return label


def _cell(figures: Figures, name: str, form: str) -> str:
    return format(figures[name], form) if name in figures else "–"


def _interval(figures: Figures, name: str, form: str) -> str:
    """
    >>> _interval({"kl_low": 0.5, "kl_high": 1.0}, "kl", ".2f"), _interval({"a_low": -1.0, "a_high": 2.0}, "a", "+.1f")
    ('0.50–1.00', '-1.0 to +2.0')
    """
    if f"{name}_low" not in figures:
        return "–"
    low, high = (format(figures[f"{name}_{end}"], form) for end in ("low", "high"))
    return f"{low} to {high}" if form.startswith("+") else f"{low}–{high}"
