"""The sections of a page, in their order: each is a function of the runs that returns HTML, or None without its data.

To add a section, write such a function and name it in ``OF_ALL`` or ``OF_EACH``, where a sweep is its runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from prefopt.errors import UserError
from prefopt.report import figures
from prefopt.report.exact import best_of_n, calibration, noise, realignment
from prefopt.report.figures import SERIES, Curve
from prefopt.report.frontier import accurate, frontier
from prefopt.report.html import part
from prefopt.report.read import Row, Run
from prefopt.report.words import prefers
from prefopt.train.summary import summarize
from prefopt.train.table import OF_NO_PAIR, rows_of, table_rows, worded

WORST = 6
"""pairs that are shown with their text"""
DATA = {"eval": " Held-out data.", "train": " Training data."}
LEARNED = 0.1
"""a weight below it, a fifth of where every pair began, is one of a pair that was long learned"""


def role(index: int) -> str:
    """The colour of the run with this number."""
    return f"run-{index % SERIES}"


# --- the outcome -----------------------------------------------------------------------------------


def outcome(runs: Sequence[Run]) -> Markup | None:
    """The table of before and after, or of several runs after."""
    header, rows = table_rows(runs[0].results) if len(runs) == 1 else _compared(runs)
    if not rows:
        return None
    note = ""
    if any("95 %" in row[0] for row in rows):
        note = "Intervals are bootstraps over prompts, since what shares a prompt is not independent."
    known = [run for run in runs if run.finished]
    data = {(run.results.get("unit"), str(run.results.get("data", {}).get("fingerprint"))) for run in known}
    if len(data) > len({unit for unit, _ in data}):  # a fingerprint is of units: those of DPO and KTO differ anyway
        note += " These runs did not have the same data, so their figures do not compare directly."
    units = {run.unit for run in runs}
    if "response" in units and len(units) > 1:
        note += " Of responses that were labelled one by one, chosen means desirable, and rejected undesirable."
    title = "Before and after" if len(runs) == 1 else "The runs side by side"
    colours = [role(i) for i in range(len(runs))] if len(runs) > 1 else []
    return part(
        "section", title, part("table", header, rows, columns=colours and ["", *colours], strong=not colours), note
    )


def _compared(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """A column for each run, after training, on its held-out data if it has some."""
    on = ["held-out" if run.results.get("held_out") else "training" for run in runs]
    units = {run.unit for run in runs}
    rows = [["method", *(run.method for run in runs)]]
    rows += [["data", *on]] if len(set(on)) > 1 else []
    rows += rows_of([run.judged.get("after", {}) for run in runs], units.pop() if len(units) == 1 else "pair")
    sampled = [dict(_sampled(run)) for run in runs]
    labels = dict.fromkeys(label for column in sampled for label in column)
    rows += [[label, *(column.get(label, "–") for column in sampled)] for label in labels]
    return [f"{on[0]}, after" if len(set(on)) == 1 else "after", *(run.name for run in runs)], rows


def _sampled(run: Run) -> Iterator[tuple[str, str]]:
    """KL and reward of what the policy was seen to answer."""
    for axis, label in (("kl", "KL"), ("reward", "reward")):
        if found := _interval(run, axis):
            value, low, high = found
            yield f"{label}, of samples", f"{value:.3f}"
            yield f"  interval of the {label}", f"{low:.3f} to {high:.3f}"


def _interval(run: Run, axis: str) -> tuple[float, float, float] | None:
    """The value and the ends of its interval."""
    try:
        found = run.estimate.get(axis)
        return found and (float(found["value"]), float(found["low"]), float(found["high"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        file = run.folder.parent / "results.json"
        raise UserError(f'{file}: the "{axis}" of {run.name} must hold "value", "low" and "high"') from None


def against_kl(runs: Sequence[Run]) -> Markup | None:
    """Where no reward is known, what each policy paid in KL for its accuracy."""
    places = {}
    for i, run in enumerate(runs):
        kl, after = _interval(run, "kl"), (run.results.get("held_out") or {}).get("after", {})
        if kl and "rewards/accuracies_low" in after and not run.estimate.get("reward"):
            places[i] = accurate(kl, after, role(i))
    if len(places) < 2:
        return None
    label = "Held-out accuracy against KL"
    svg = figures.frontier([], [[place] for place in places.values()], label, (5.0, 3.3), height="held-out accuracy")
    keys = [(role(i), "marks", runs[i].name) for i in places]
    caption = "Up is better, left is closer to the reference; KL from samples, both with 95 % intervals."
    return part("section", "Accuracy against KL", part("grid", [part("figure", "", svg, keys, caption)]))


def warnings(runs: Sequence[Run]) -> Markup | None:
    """What to be wary of, in the words of the end of a run."""
    found = [
        (run.name if len(runs) > 1 else "", text)
        for run in runs
        if run.history and (run.finished or run.judged.get("after"))
        for text in summarize(run.history, run.results).warnings
    ]
    return part("section", "To be wary of", part("warnings", found)) if found else None


# --- over the steps --------------------------------------------------------------------------------


def curves(runs: Sequence[Run]) -> Markup | None:
    alone = len(runs) == 1
    found = [
        _metric(runs, "reward", "Reward", "Mean reward of what the model answers; higher is better."),
        *_losses(runs),
        _metric(
            runs, "rewards/accuracies", "Accuracy",
            "How often the chosen response has the higher reward. The dashed line is a coin"
            + ("; shaded is the 95 % interval." if alone and runs[0].held_out else "."),
            level=0.5, percent=True,
        ),
        _metric(
            runs, "rewards/margins", "Margin",
            "Reward of the chosen response minus that of the rejected one, on average; above the dashed line is right.",
            level=0.0,
        ),
        _sides(runs, "rewards", "Rewards", "Mean rewards", "the further apart, the better told apart"),
        _sides(
            runs, "logps", "Log-probability", "How likely the model finds the responses, in nats",
            "where both fall, probability goes to other answers",
        ),
        _metric(runs, "kl", "KL to the reference", "How far the model has moved, in nats a response."),
    ]  # fmt: skip
    drawn = [figure for figure in found if figure is not None]
    return part("section", "Over the steps", part("grid", drawn)) if drawn else None


def _losses(runs: Sequence[Run]) -> list[Markup | None]:
    """A figure for each method: the losses of two may lie so far apart that neither would be seen to move."""
    if len(runs) == 1:
        more = "; held-out rising while training falls is learning by heart" if runs[0].held_out else ""
        return [_metric(runs, "loss", "Loss", f"Lower is better{more}.")]
    caption = "Lower is better, but only between runs with the same loss and its options."
    methods = dict.fromkeys(run.method for run in runs if any(_records(run, s, "loss") for s in ("train", "eval")))
    return [
        _metric(runs, "loss", "Loss" if len(methods) == 1 else f"Loss, {method}", caption, method=method)
        for method in methods
    ]


def _metric(
    runs: Sequence[Run],
    name: str,
    title: str,
    caption: str,
    level: float | None = None,
    percent: bool = False,
    method: str | None = None,
) -> Markup | None:
    """``method``: of several runs only those that were trained so."""
    lines, keys = [], []
    if len(runs) == 1:
        for split, colour, how, label in (
            ("train", "ink", "steps", "training"),
            ("eval", "held-out", "marks", "held-out"),
        ):
            if curve := _curve(runs[0], split, name, colour, how):
                lines.append(curve)
                keys.append((colour, how, label))
    else:
        shown = [(i, run) for i, run in enumerate(runs) if method in (None, run.method)]
        split = _split([run for _, run in shown], name)
        caption += DATA[split]
        for i, run in shown:
            if curve := _curve(run, split, name, role(i), "marks" if split == "eval" else "steps"):
                lines.append(curve._replace(band=None))
                keys.append((role(i), "line", run.name))
    if not lines:
        return None
    return part("figure", title, figures.over_steps(lines, f"{title} over the steps", level, percent), keys, caption)


def _split(runs: Sequence[Run], *names: str) -> str:
    """On which data to compare the runs that know one of these figures."""
    know = [(run, name) for run in runs for name in names if any(_records(run, s, name) for s in ("train", "eval"))]
    held_out = [len(_records(run, "eval", name)) for run, name in know]
    trained = any(_records(run, "train", name) for run, name in know)
    return "eval" if all(held_out) and (max(held_out, default=0) > 1 or not trained) else "train"


def _records(run: Run, split: str, name: str) -> list[Row]:
    """Those that a curve is drawn from."""
    records = run.records(split, name)
    if name == "loss" and run.records(split, "reward"):
        return []  # PPO's begins anew with each batch of answers, and tells nothing over the steps
    if name in OF_NO_PAIR and run.records(split, "rewards/margins"):
        return []
    return [record for record in records if name != "rewards/accuracies" or prefers(record)]


def _curve(run: Run, split: str, name: str, colour: str, how: str) -> Curve | None:
    records = _records(run, split, name)
    if not records:
        return None
    bounds = [f"{name}_low", f"{name}_high"]
    known = split == "eval" and all(bound in record for record in records for bound in bounds)
    low, high = ([record.get(bound, math.nan) for record in records] for bound in bounds)
    return Curve([r["step"] for r in records], [r[name] for r in records], colour, how, (low, high) if known else None)


def _sides(runs: Sequence[Run], what: str, title: str, caption: str, of_both: str) -> Markup | None:
    """``what`` of chosen and of rejected responses, or of desirable and of undesirable ones; or of all there are."""
    lines, keys, sides = [], [], {}
    compared = _split(runs, f"{what}/chosen", f"{what}/rejected")
    for i, run in enumerate(runs):
        for side, dashed in (("chosen", False), ("rejected", True)):
            name, word = f"{what}/{side}", worded(side, run.unit)
            if len(runs) > 1:
                if curve := _curve(run, compared, name, role(i), "dashes" if dashed else "marks"):
                    lines.append(curve)
                    keys += [] if dashed else [(role(i), "line", run.name)]
                    sides[word] = dashed
                continue
            for split, how, label in (("train", "steps", "training"), ("eval", "marks", "held-out")):
                if curve := _curve(run, split, name, side, how):
                    lines.append(curve)
                    keys.append((side, how, f"{word}, {label}"))
                    sides[word] = dashed
    if not lines:
        return None
    svg = figures.over_steps(lines, f"{title} of the {' and the '.join(sides)} responses over the steps")
    both = any(sides.values())
    caption += f"; {of_both}." if both else "."
    if len(runs) > 1:
        caption += f" Dashed: {' or '.join(word for word, dashed in sides.items() if dashed)}." if both else ""
        caption += DATA[compared]
    return part("figure", title, svg, keys, caption)


# --- single pairs ----------------------------------------------------------------------------------


def rewards(runs: Sequence[Run]) -> Markup | None:
    """How rewards are spread, and how much each pair still pulls."""
    histograms = [_histogram(run, f"Rewards of {run.name}" if len(runs) > 1 else "Rewards") for run in runs]
    drawn = [figure for figure in (*histograms, _weights(runs)) if figure is not None]
    return part("section", "Pair by pair", part("grid", drawn)) if drawn else None


def _histogram(run: Run, title: str) -> Markup | None:
    pairs = [p for p in run.judged_pairs if "rewards/chosen" in p and "rewards/rejected" in p]
    if not pairs:
        return None
    groups = [([pair[f"rewards/{side}"] for pair in pairs], side) for side in ("chosen", "rejected")]
    keys = [("chosen", "area", "chosen"), ("rejected", "area", "rejected")]
    which = "held-out" if run.pairs_of("eval") else "training"
    caption = f"Rewards of {len(pairs):,} {which} pairs, their means dashed; the less overlap, the better told apart."
    return part("figure", title, figures.histogram(groups, "Histogram of rewards"), keys, caption)


def _weights(runs: Sequence[Run]) -> Markup | None:
    pairs = {run.name: _weighted(run) for run in runs}
    if not all(pairs.values()):
        return None
    label = "Weight of each pair in the gradient, sorted"
    if len(runs) > 1:
        groups = [([p["weights"] for p in of_run], role(i)) for i, of_run in enumerate(pairs.values())]
        keys = [(role(i), "line", name) for i, name in enumerate(pairs)]
        svg, caption = figures.ranked_lines(groups, label), "How strongly each training pair still pulls, sorted."
        return part("figure", "Weight in the gradient", svg, keys, caption)
    (of_run,) = pairs.values()
    weights = sorted((p["weights"] for p in of_run), reverse=True)
    n, total = len(weights), sum(weights) or 1.0
    wrong = sum(p["rewards/margins"] <= 0 for p in of_run)
    learned = min(sum(w < LEARNED for w in weights), n - wrong)
    parts = [
        (0.0, wrong / n, "rejected"),
        (wrong / n, 1 - learned / n, "reference"),
        (1 - learned / n, 1.0, "chosen"),
    ]
    keys = [("rejected", "area", "still wrong"), ("reference", "area", "right"), ("chosen", "area", "long learned")]
    caption = (
        f"σ(−βh), sorted: the {wrong / n:.0%} of the training pairs that the model gets wrong make "
        f"{sum(weights[:wrong]) / total:.0%} of the pull that is left; {learned / n:.0%} are long learned, with "
        f"{sum(weights[n - learned :]) / total:.0%} of it."
    ).replace("%", " %")
    svg = figures.ranked(weights, [p for p in parts if p[1] > p[0]], label)
    return part("figure", "Weight in the gradient", svg, keys, caption)


def _weighted(run: Run) -> list[Row]:
    pairs = run.pairs_of("training") or run.pairs_of("eval")
    return [pair for pair in pairs if isinstance(pair.get("weights"), (int, float))]


def reliability(runs: Sequence[Run]) -> Markup | None:
    """A reward model's probabilities beside how often they come true."""
    drawn = []
    for run in runs:
        found = run.results.get("reliability")
        if isinstance(found, Mapping) and found.get("curve"):
            label = f"Predicted preference of {run.name} against the held-out one"
            predicted, true = ([point[key] for point in found["curve"]] for key in ("predicted", "true"))
            caption = (
                f"{run.name}: {found['pairs']:,} held-out pairs, equally many in each point, with 95 % intervals; on "
                "the dashed line a predicted probability is what comes true. "
                f"Average error {100 * found['error']:.1f} points."
            )
            svg = figures.calibration(predicted, true, label, [(p["low"], p["high"]) for p in found["curve"]])
            drawn.append(part("figure", "", svg, [("run-0", "marks", run.name)], caption))
    return part("section", "Reliability", part("grid", drawn)) if drawn else None


THOUGHT = {"rewards/chosen", "rewards/rejected", "rewards/margins"}
"""what is shown of a pair; a loss of the user's own need not tell it"""


def worst(runs: Sequence[Run]) -> Markup | None:
    """The pairs with the lowest margins, among those that every run has scored."""
    known = [
        {(p["split"], p.get("source"), p.get("chosen")): p for p in run.judged_pairs if p.keys() >= THOUGHT}
        for run in runs
    ]
    shared = [key for key in known[0] if all(key in of_run for of_run in known)]
    wrong = [key for key in shared if any(of_run[key]["rewards/margins"] < 0 for of_run in known)]
    if not wrong:
        return None
    wrong.sort(key=lambda key: (-sum(of_run[key]["rewards/margins"] < 0 for of_run in known),
                                sum(of_run[key]["rewards/margins"] for of_run in known)))  # fmt: skip
    cards = [
        {
            **known[0][key],
            "thought": [
                {"name": run.name, "chance": _chance(of_run[key]), **of_run[key]}
                for run, of_run in zip(runs, known, strict=True)
            ],
        }
        for key in wrong[:WORST]
    ]
    which = "held-out" if wrong[0][0] == "eval" else "training"
    lead = (
        f"The {len(cards)} worst of {len(wrong):,} {which} pairs in which the rejected response has the higher reward"
    )
    lead += ", for any of the runs." if len(runs) > 1 else ". Read them: some may be labelled the wrong way round."
    return part("section", "Where the model disagrees", part("pairs", cards, len(runs) > 1), lead)


def _chance(pair: Row) -> float | None:
    """σ(margin), the probability that Bradley-Terry gives the label; only where the loss itself speaks of it."""
    margin, weight = pair["rewards/margins"], pair.get("weights")
    chance = 1 / (1 + math.exp(-margin)) if margin > -700 else 0.0
    return chance if weight is not None and abs(1 - weight - chance) < 1e-3 else None


def samples(runs: Sequence[Run]) -> Markup | None:
    answered = [{row.get("key"): row for row in run.samples} for run in runs]
    prompts = [key for key in answered[0] if all(key in of_run for of_run in answered)]
    if not prompts:
        return None
    cards = []
    for key in prompts:
        first = answered[0][key]
        before = [("before", first.get("before"))] if len(runs) == 1 or _same_start(runs) else []
        after = [
            ("after" if len(runs) == 1 else run.name, of_run[key].get("after"))
            for run, of_run in zip(runs, answered, strict=True)
        ]
        cards.append({"prompt": first.get("prompt", ""), "source": first.get("source", ""), "answers": before + after})
    lead = f"The likeliest words one by one (greedy), without choosing: the first {len(cards)} prompts."
    return part("section", "What it answers", part("samples", cards), lead)


def _same_start(runs: Sequence[Run]) -> bool:
    return len({str(run.settings.get("model")) for run in runs}) == 1


# --- how it was made -------------------------------------------------------------------------------


def settings(runs: Sequence[Run]) -> Markup | None:
    blocks: list[tuple[str, Any]] = []
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    differ = [key for key in keys if len({str(run.settings.get(key)) for run in runs}) > 1]
    if differ:
        rows = [[key, *(_value(run.settings.get(key)) for run in runs)] for key in differ]
        blocks.append(("Settings that differ", part("table", ["", *(run.name for run in runs)], rows)))
    same = [(key, _value(runs[0].settings.get(key))) for key in keys if key not in differ]
    same = [(key, value) for key, value in same if value != "–"]
    if same:
        blocks.append(("Settings" if len(runs) == 1 else "Settings in common", part("facts", same)))
    for run in runs:
        suffix = f", {run.name}" if len(runs) > 1 else ""
        if made := _made(run):
            blocks.append((f"Data and versions{suffix}", part("facts", made)))
    return part("section", "How it was made", part("blocks", blocks)) if blocks else None


def _made(run: Run) -> list[tuple[str, str]]:
    results = run.results
    facts = [(f"data, {key}", _value(value)) for key, value in (results.get("data") or {}).items()]
    facts += [
        (name, _value(results[key])) for name, key in (("optimizer steps", "steps"), ("loss", "loss")) if key in results
    ]
    if isinstance(results.get("seconds"), (int, float)):
        facts.append(("time", f"{results['seconds']:,.0f} s"))
    if isinstance(results.get("peak_memory"), (int, float)):
        facts.append(("peak memory", f"{results['peak_memory'] / 1e9:.1f} GB"))
    return facts + [(name, _value(version)) for name, version in (results.get("versions") or {}).items()]


def _value(value: Any) -> str:
    if value is None or value == [] or value is False:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


Section = Callable[[Sequence[Run]], Markup | None]
OF_ALL: tuple[Section, ...] = (frontier, best_of_n, realignment, noise, calibration)
"""of what was asked to be shown"""
OF_EACH: tuple[Section, ...] = (
    against_kl,
    outcome,
    warnings,
    curves,
    rewards,
    reliability,
    worst,
    samples,
    settings,
)
