"""The recipe's results.json as a figure and a table:

python examples/sentiment/show.py examples/sentiment/results.json --out docs
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from prefopt.report.figures import COLOUR, drawn, legend, standalone

FURTHEST = 20
"""nats, where the figure ends, as the paper's does; the table has what lies beyond"""


BEGIN, END = "<!-- made by examples/sentiment/show.py -->", "<!-- until here -->"


def main(file: Path, out: Path) -> None:
    """Writes ``sentiment.svg``, and the figures between the two marks of ``sentiment.md``, or all of that file."""
    results = json.loads(file.read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "sentiment.svg").write_text(picture(results) + "\n", encoding="utf-8")
    page = out / "sentiment.md"
    around = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, after = around.split(BEGIN)[0], around.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{figures(results)}\n\n{END}{after}", encoding="utf-8")
    print(f"{figures(results)}\n\n{out / 'sentiment.svg'}")


# --- the figures ---------------------------------------------------------------------------------


def figures(results: Mapping[str, Any]) -> str:
    """Markdown: what each method reached within some KL, where each run ended, what the stages gave, and samples."""
    return "\n\n".join(part(results) for part in (within, ends, stages, samples))


BUDGETS = 0.5, 1, 2, 4, 6, 10, FURTHEST
"""nats"""


def within(results: Mapping[str, Any]) -> str:
    """The best point of any of a method's runs with at most so much KL; the largest of many is a little too good."""
    methods = {method: [p for run in runs for p in run["points"]] for method, runs in by_method(results)}
    methods["Best-of-N"] = [{"kl": [best["kl"]], "reward": best["reward"]} for best in results["best_of"]]
    rows = []
    for method, points in methods.items():
        best = [max((p["reward"][0] for p in points if p["kl"][0] <= most), default=None) for most in BUDGETS]
        rows.append([method, *("–" if reward is None else f"{reward:.3f}" for reward in best)])
    return _markdown(["mean p(positive) at a KL of at most", *(f"{most:g}" for most in BUDGETS)], rows, 1)


def ends(results: Mapping[str, Any]) -> str:
    """Where each run ended, with 95 % intervals over prefixes; ``unended`` responses ran into the limit of tokens."""
    header = ["method", "setting", "KL, nats", "mean p(positive)", "tokens", "unended"]
    start = results["start"]
    rows = [["reference", "", "0", interval(start["reward"]), f"{start['tokens']:.1f}", f"{start['unended']:.0%}"]]
    for run in results["runs"]:
        end = run["points"][-1]
        figures = interval(end["kl"], 2), interval(end["reward"]), f"{end['tokens']:.1f}", f"{end['unended']:.0%}"
        rows.append([run["method"], setting(run), *figures])
    for best in results["best_of"]:
        rows.append(["Best-of-N", f"N = {best['n']}", f"≤ {best['kl']:.2f}", interval(best["reward"]), "", ""])
    return _markdown(header, rows, 2)


def stages(results: Mapping[str, Any]) -> str:
    """What the runs build on."""
    accuracies = [
        [f"the true reward is right on {name}, {found['texts']:,} texts", interval(found["accuracy"])]
        for name, found in results["reward"].items()
    ]
    learned = list(results["learned_reward"].values())
    rows = [
        ["reference, nats a token on test reviews", f"{results['reference']['nats_a_token']:.3f}"],
        *accuracies,
        ["the learned reward orders held-out pairs alike", interval(learned) if None not in learned else "–"],
        *([name.replace("_", "-"), f"{count:,}"] for name, count in results["data"].items()),
    ]
    return _markdown(["what the runs build on", ""], rows, 1)


def samples(results: Mapping[str, Any]) -> str:
    """The same prefixes, by the reference and, of each method, the run that ended with the most reward."""
    best = [max(runs, key=lambda run: run["points"][-1]["reward"][0]) for _, runs in by_method(results)]
    said = [("reference", results["start"]["samples"])]
    said += [(f"{run['method']}, {setting(run)}", run["points"][-1]["samples"]) for run in best]
    rows = [
        [name, f"**{_cell(one['prompt'])}**{_cell(one['response'])}", f"{one['reward']:.2f}"]
        for number in range(2)
        for name, drawn in said
        for one in drawn[number : number + 1]
    ]
    return _markdown(["", "response", "p(positive)"], rows, 2)


def _cell(text: str) -> str:
    """One cell of a table, whatever the model wrote."""
    return re.sub(r"([\\`*_\[\]|#<>~])", r"\\\1", " ".join(text.split("\n")))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first so many columns are words, and the others figures."""
    lines = [header, ["---" if i < words else "---:" for i in range(len(header))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NAMES = {"beta": "β", "alpha": "α", "target_kl": "target KL"}


def setting(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{NAMES.get(key, key)} = {value:g}" for key, value in run["own"].items())


def interval(ends: Sequence[float], digits: int = 3) -> str:
    """
    >>> interval((0.5, 0.4512, 0.55), 2)
    '0.50 (0.45–0.55)'
    """
    value, low, high = (f"{end:.{digits}f}" for end in ends)
    return f"{value} ({low}–{high})"


# --- the picture ---------------------------------------------------------------------------------


def picture(results: Mapping[str, Any]) -> str:
    """Each point is a policy at one moment of a run; the larger ones, where a run ended, have their intervals."""

    def plot(axes: Axes) -> None:
        for number, (method, runs) in enumerate(by_method(results)):
            colour = COLOUR[f"run-{number}"]
            for run in runs:
                draw(axes, [{"kl": [0, 0, 0], "reward": results["start"]["reward"]}, *run["points"]], colour)
            axes.plot([], [], color=colour, marker="o", markersize=4.5, label=method)
        best = results["best_of"]
        axes.plot([b["kl"] for b in best], [b["reward"][0] for b in best], color=COLOUR["ink"], marker="D",
                  markersize=3.6, linewidth=1, label="Best-of-N")  # fmt: skip
        axes.set_xlim(-0.3, FURTHEST)
        axes.set_xlabel("KL to the reference, nats")
        axes.set_ylabel("mean p(positive)")
        legend(axes)

    names = ", ".join(method for method, _ in by_method(results))
    label = f"Mean p(positive) against KL to the reference: {names}, Best-of-N"
    return standalone(drawn(plot, label, (6.8, 4.6)))


def by_method(results: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    for method in dict.fromkeys(run["method"] for run in results["runs"]):
        yield method, [run for run in results["runs"] if run["method"] == method]


def draw(axes: Axes, points: Sequence[Mapping[str, Any]], colour: str) -> None:
    x, y = [p["kl"][0] for p in points], [p["reward"][0] for p in points]
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.45)
    axes.plot(x[1:-1], y[1:-1], color=colour, linestyle="", marker="o", markersize=2.6, alpha=0.75)
    axes.plot(x[-1:], y[-1:], color=colour, linestyle="", marker="o", markersize=5.5)
    (kl, *kl_ends), (reward, *reward_ends) = points[-1]["kl"], points[-1]["reward"]
    axes.plot(kl_ends, [reward, reward], color=colour, linewidth=0.9, alpha=0.6)
    axes.plot([kl, kl], reward_ends, color=colour, linewidth=0.9, alpha=0.6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."), help="the folder to write to")
    given = parser.parse_args()
    main(given.results, given.out)
