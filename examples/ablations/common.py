"""What the ablations share: the model after SFT, a table, and a picture of lines."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from prefopt.demo.methods import Method, Outcome, jobs, perform
from prefopt.demo.processes import workers
from prefopt.demo.rewards import learn
from prefopt.demo.run import Size, imitate
from prefopt.demo.tune import Start
from prefopt.demo.world import the_world
from prefopt.frontier.exact import condition, expectation
from prefopt.model.load import load_model
from prefopt.report.figures import COLOUR, SERIES, drawn, legend, standalone


@dataclass(frozen=True)
class Setting:
    """Where an ablation writes, how much it reads, and over how many seeds it averages."""

    out: Path
    size: Size = field(default_factory=Size)
    seeds: int = 3

    def start(self, share: float = 1.0) -> Start:
        """The model after this share of the full demo's SFT: made once, and found by the next ablation."""
        folder, world = self.out / f"sft-{share:g}", the_world()
        model = folder / "sft" / "model"
        if not model.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            imitate(world, folder, self.size._replace(corpus_epochs=share * self.size.corpus_epochs), seed=0)
        reference = world.logps(load_model(str(model), device="cpu").module)
        return Start(model, reference, self.size.pairs, self.size.epochs, rewards=folder / "rewards")

    def outcomes(self, methods: Iterable[Method], start: Start, folder: str) -> list[Outcome]:
        """Each method once for each seed, which decides its pairs and their order; what is there is read."""
        asked = jobs(methods, start, self.out / folder, self.seeds)
        with workers(sum(not job.kept.exists() for job in asked)) as run:
            return list(run(perform, asked))

    def reward_models(self, start: Start) -> None:
        """One for the pairs of each seed."""
        with workers(self.seeds) as run:
            list(run(learn, [replace(start, seed=seed) for seed in range(self.seeds)]))


@dataclass(frozen=True)
class Finding:
    """``table``: Markdown; ``picture``: an SVG file."""

    table: str
    picture: str


def reward_of_all(logps: np.ndarray) -> float:
    """E[r] of a policy [X, Y], where what is no review has one point less than the worst review."""
    reward, (inside, missing) = the_world().reward, condition(np.maximum(logps, -1e4))  # nowhere quite impossible
    return float(np.mean((1 - missing) * expectation(inside, reward) + missing * (reward.min() - 1)))


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Their mean, and ± one standard deviation where there are several.

    >>> spread([1.0, 2.0]), spread([0.5], 1)
    ('1.500 ± 0.707', '0.5')
    """
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    >>> print(table(["β", "KL"], [["0.1", "2.0"]]))
    | β | KL |
    |---|---|
    | 0.1 | 2.0 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return (
        "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")
    )


Line = Sequence[tuple[float, Sequence[float]]]
"""x, and the values that were found there"""


def lines(named: Mapping[str, Line], x: str, y: str, log: bool = False) -> str:
    """Means with ± one standard deviation, each line with its name, in the reader's light or dark theme."""

    def draw(axes: Axes) -> None:
        for number, (name, line) in enumerate(named.items()):
            colour = COLOUR[f"run-{number % SERIES}"]
            at, means = [place for place, _ in line], [np.mean(values) for _, values in line]
            errors = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for _, values in line]
            axes.errorbar(at, means, errors, color=colour, marker="o", markersize=3.2, elinewidth=0.9, label=name)
        if log:
            axes.set_xscale("log")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        legend(axes)

    return standalone(drawn(draw, f"{y} against {x}: {', '.join(named)}", (6.4, 3.8)))
