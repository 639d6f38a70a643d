"""Figures as SVG that belongs to the page: its colours follow light and dark, its letters are the page's.

Drawn with matplotlib in colours that stand for roles, which then become the style sheet's variables.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, PercentFormatter

SERIES = 10
ROLES = ("ink", "muted", "grid", "chosen", "rejected", "reference", "held-out", *(f"run-{i}" for i in range(SERIES)))
"""names of CSS variables"""
COLOUR = {role: f"#fe{number:02x}fd" for number, role in enumerate(ROLES)}
_LONG = re.compile(r"-?\d+\.\d{3,}")
POINTS = 240
"""drawn of one curve: more than there are pixels to see them by"""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefopt",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOUR["grid"],
    "axes.labelcolor": COLOUR["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": COLOUR["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOUR["grid"],
    "ytick.color": COLOUR["grid"],
    "xtick.labelcolor": COLOUR["muted"],
    "ytick.labelcolor": COLOUR["muted"],
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


class Curve(NamedTuple):
    """Values over steps. ``how``: "steps" (noisy: also smoothed), "marks" (few points, each shown) or "dashes".

    ``band``: lower and upper ends of the values' intervals.
    """

    x: Sequence[float]
    y: Sequence[float]
    role: str
    how: str = "steps"
    band: tuple[Sequence[float], Sequence[float]] | None = None


class Point(NamedTuple):
    """A policy's place, with the intervals of both figures where they are estimates.

    ``each``: (KL, reward) of each seed, where the place is their mean. ``name``: what is written beside it.
    """

    kl: float
    reward: float
    role: str
    kl_interval: tuple[float, float] | None = None
    reward_interval: tuple[float, float] | None = None
    each: Sequence[tuple[float, float]] = ()
    name: str = ""


def over_steps(curves: Sequence[Curve], label: str, level: float | None = None, percent: bool = False) -> Markup:
    """``level``: a value to compare with, drawn as a line."""

    def draw(axes: Axes) -> None:
        if level is not None:
            axes.axhline(level, color=COLOUR["reference"], linewidth=1, dashes=(4, 3))
        for curve in curves:
            _draw(axes, curve)
        axes.set_xlabel("step")
        steps = {x for curve in curves for x in curve.x}
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True) if len(steps) > 1 else FixedLocator([*steps]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))

    return drawn(draw, label)


def _draw(axes: Axes, curve: Curve) -> None:
    colour = COLOUR[curve.role]
    x, y = thinned(curve.x, curve.y)
    if curve.how == "steps":
        if len(y) > 20:
            axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
        alone = np.isfinite(y).sum() == 1  # a line of one point would not be seen
        axes.plot(x, smooth(y), color=colour, marker="o" if alone else None, markersize=3.2)
    elif curve.how == "dashes":
        axes.plot(x, y, color=colour, dashes=(3, 2))
    else:
        few = len(x) <= 40
        axes.plot(x, y, color=colour, marker="o" if few else None, markersize=3.2)
    if curve.band:
        low, high = (thinned(curve.x, end)[1] for end in curve.band)
        if len(x) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
        else:  # a band needs two
            axes.vlines(x, low, high, color=colour, alpha=0.3, linewidth=4)


def histogram(groups: Sequence[tuple[Sequence[float], str]], label: str) -> Markup:
    """Shares of values, in the same bins for every (values, role); what lies far out is counted at the edge."""

    def draw(axes: Axes) -> None:
        pooled = np.concatenate([np.asarray(values, float) for values, _ in groups])
        low, high = np.quantile(pooled, [0.005, 0.995])
        edges = np.linspace(low, high, 33) if high > low else np.array([low - 0.5, low + 0.5])
        for values, role in groups:
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            heights = counts / max(1, len(values))
            axes.stairs(heights, edges, fill=True, color=COLOUR[role], alpha=0.28)
            axes.stairs(heights, edges, color=COLOUR[role], linewidth=1.3)
            axes.axvline(float(np.mean(values)), color=COLOUR[role], linewidth=1, dashes=(4, 3))
        axes.set_xlabel("reward")
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))

    return drawn(draw, label)


def ranked(values: Sequence[float], parts: Sequence[tuple[float, float, str]], label: str) -> Markup:
    """``values`` from the largest down, over the share of them; ``parts``: (from, to, role) of shares to colour."""

    def draw(axes: Axes) -> None:
        y = np.sort(np.asarray(values, float))[::-1]
        share = (np.arange(len(y)) + 0.5) / len(y)
        x = np.linspace(0, 1, POINTS)
        y = np.interp(x, share, y)
        for start, end, role in parts:
            # The neighbouring part begins where this one ends, so no gap is seen between them.
            inside = np.unique(np.concatenate([[start], x[(x > start) & (x < end)], [end]]))
            axes.fill_between(inside, 0, np.interp(inside, x, y), color=COLOUR[role], alpha=0.28, linewidth=0)
        axes.plot(x, y, color=COLOUR["ink"])
        _shares(axes)
        axes.set_ylim(bottom=min(0.0, float(y.min())))

    return drawn(draw, label)


def ranked_lines(groups: Sequence[tuple[Sequence[float], str]], label: str) -> Markup:
    """The same for several (values, role), as lines."""

    def draw(axes: Axes) -> None:
        for values, role in groups:
            y = np.sort(np.asarray(values, float))[::-1]
            x = np.linspace(0, 1, POINTS)
            axes.plot(x, np.interp(x, (np.arange(len(y)) + 0.5) / len(y), y), color=COLOUR[role])
        _shares(axes)

    return drawn(draw, label)


def calibration(
    predicted: Sequence[float], true: Sequence[float], label: str, intervals: Sequence[tuple[float, float]] = ()
) -> Markup:
    """Probabilities as they are predicted and as they are, with ``intervals`` of the latter, beside the line y = x."""

    def draw(axes: Axes) -> None:
        least = 0.5 if min(predicted) >= 0.5 else 0.0  # of the likelier of two, or of either
        axes.plot([least, 1], [least, 1], color=COLOUR["reference"], linewidth=1, dashes=(4, 3))
        for at, ends in zip(predicted, intervals, strict=False):
            axes.plot([at, at], ends, color=COLOUR["run-0"], linewidth=0.9, alpha=0.6)
        axes.plot(predicted, true, color=COLOUR["run-0"], marker="o", markersize=3.2)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))

    return drawn(draw, label)


def _shares(axes: Axes) -> None:
    axes.set_xlabel("share of the pairs")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def frontier(
    curve: Sequence[tuple[float, float]],
    paths: Sequence[Sequence[Point]],
    label: str,
    size: tuple[float, float],
    names: Mapping[str, str] | None = None,
    height: str = "expected reward",
) -> Markup:
    """``curve``: (KL, reward) of the most that is possible; ``paths``: points in the order that a run came by them.

    ``names``: what is drawn in which role, for a picture that stands alone. Where ends of paths have names of their
    own, these are written at the right edge, so that colour alone tells nothing.
    """

    def draw(axes: Axes) -> None:
        if curve:
            x, y = zip(*curve, strict=True)
            best = None if names is None else "the most that is possible"
            axes.plot(x, y, color=COLOUR["reference"], linewidth=2, label=best)
        for points in paths:
            kl, reward, colour = [p.kl for p in points], [p.reward for p in points], COLOUR[points[-1].role]
            if len(points) > 1:
                axes.plot(kl, reward, color=colour, linewidth=1, alpha=0.7)
                axes.plot(kl[:-1], reward[:-1], color=colour, linestyle="", marker="o", markersize=2.2, alpha=0.7)
            for p in points:
                if p.each:
                    seeds = zip(*p.each, strict=True)
                    axes.plot(*seeds, color=colour, linestyle="", marker="o", markersize=3, alpha=0.4)
                if p.reward_interval:
                    axes.plot([p.kl, p.kl], p.reward_interval, color=colour, linewidth=1)
                if p.kl_interval:
                    axes.plot(p.kl_interval, [p.reward, p.reward], color=colour, linewidth=1)
            axes.plot(kl[-1:], reward[-1:], color=colour, linestyle="", marker="o", markersize=5.5)
        for name, role in (names or {}).items():
            axes.plot([], [], color=COLOUR[role], linestyle="", marker="o", markersize=5.5, label=name)
        if axes.get_legend_handles_labels()[0]:
            legend(axes)
        axes.set_xlabel("KL to the reference, nats")
        axes.set_ylabel(height)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        _write_beside(axes, [points[-1] for points in paths if points[-1].name])

    return drawn(draw, label, size)


def legend(axes: Axes) -> None:
    """What the lines and points are, above the axes, where none of them can be."""
    figure = axes.get_figure()
    assert figure is not None
    figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=COLOUR["ink"], handletextpad=0.4)


def _write_beside(axes: Axes, points: Sequence[Point]) -> None:
    """Their names at the right edge, each with a line to its point."""
    ordered = sorted(points, key=lambda point: (point.reward, -point.kl))
    bottom, top = axes.get_ylim()
    at = spread([(point.reward - bottom) / (top - bottom) for point in ordered])
    for point, height in zip(ordered, at, strict=True):
        axes.annotate(
            point.name.replace("$", r"\$"), (point.kl, point.reward), (1.02, height),
            textcoords="axes fraction", va="center", color=COLOUR["ink"], size=8,
            arrowprops={"arrowstyle": "-", "color": COLOUR[point.role], "linewidth": 0.6, "alpha": 0.7, "shrinkB": 4},
        )  # fmt: skip


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


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most ``POINTS`` points, each the average of neighbours; the last one is never mixed with others.

    >>> x, y = thinned(range(1000), range(1000))
    >>> len(x) <= POINTS, float(y[-1])
    (True, 999.0)
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    every = -(-(len(xs) - 1) // (POINTS - 1)) if len(xs) > POINTS else 1
    if every == 1:
        return xs, ys
    starts = np.arange(0, len(xs) - 1, every)
    sizes = np.diff(np.append(starts, len(xs) - 1))
    means = [np.append(np.add.reduceat(v[:-1], starts) / sizes, v[-1]) for v in (xs, ys)]
    return means[0], means[1]


def smooth(values: np.ndarray) -> np.ndarray:
    """Average over a twelfth of the curve around each point, less at its ends.

    >>> smooth(np.array([1.0, 3.0])).tolist()
    [1.0, 3.0]
    """
    half = len(values) // 24
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, len(values) - 1 - at), half)
    return (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)


def drawn(draw: Callable[[Axes], None], label: str, size: tuple[float, float] = (5.0, 2.9)) -> Markup:
    """What ``draw`` puts on axes. ``size``: in units of 72 pixels of a phone."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return inline(buffer.getvalue(), label)


def inline(svg: str, label: str) -> Markup:
    """matplotlib's file as an element of a page: no prologue, no outside names, roles for colours, no ids in vain.

    Ids that are referred to are kept and still have to be made unique on their page, see `numbered`.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = svg.replace("xlink:href", "href")
    view = re.search(r'viewBox="([^"]*)"', svg)
    assert view is not None
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(label)}">'
    svg = head + svg[svg.index(">") + 1 :]
    for role, colour in COLOUR.items():
        svg = svg.replace(colour, f"var(--{role})")
    svg = re.sub(r"font-family:[^;]*; |transform=\"rotate\(-0 [^\"]*\"", "", svg)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _LONG.sub(lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), tag[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return Markup(re.sub(r"<g>\n?</g>\n?", "", svg))


def standalone(svg: str) -> str:
    """A figure of a page as a file of its own, with the page's colours, light or dark."""
    style = resources.files("prefopt.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    colours = style[: style.index("* {")] + "svg { background: var(--paper); font-family: system-ui, sans-serif; }"
    light = {name: colour for name, colour in reversed(re.findall(r"--([\w-]+): (#\w+)", colours))}

    def twice(value: re.Match[str]) -> str:  # viewers that know no variables stay with the first one
        return f"{value[1]}: {light[value[2]]}; {value[0]}"

    svg = re.sub(r"([\w-]+): var\(--([\w-]+)\)", twice, svg)
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{colours}</style>{rest}'


def numbered(html: str) -> str:
    """A page whose figures have ids of their own each.

    >>> numbered('<svg ><path id="a"/><use href="#a"/></svg> <svg ><g clip-path="url(#a)"/></svg>')
    '<svg ><path id="f1-a"/><use href="#f1-a"/></svg> <svg ><g clip-path="url(#f2-a)"/></svg>'
    """
    number = itertools.count(1)

    def own(figure: re.Match[str]) -> str:
        return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{next(number)}-", figure[0])

    return re.sub(r"<svg .*?</svg>", own, html, flags=re.S)  # in a text it would read &lt;svg
