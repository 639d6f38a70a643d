"""The figures: small, in the page's colours, and with what they were given."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.report import figures
from prefopt.report.figures import Curve, Point

RNG = np.random.default_rng(0)
LONG = range(100_000)


@pytest.mark.parametrize(
    "svg",
    [
        lambda: figures.over_steps([Curve(LONG, RNG.random(100_000), "ink")] * 2, "long", level=0.5, percent=True),
        lambda: figures.over_steps([Curve(LONG, LONG, "held-out", "marks", (LONG, LONG))], "band"),
        lambda: figures.over_steps([Curve([1], [0.5], "held-out", "marks")], "one point"),
        lambda: figures.over_steps([Curve([1, 2], [0.5, 0.5], "ink")], "a constant"),
        lambda: figures.histogram([(RNG.random(100_000), "chosen"), ([0.0], "rejected")], "many"),
        lambda: figures.histogram([([1.0, 1.0], "chosen")], "all the same"),
        lambda: figures.ranked(RNG.random(100_000), [(0, 0.2, "rejected"), (0.2, 1, "chosen")], "many"),
        lambda: figures.ranked([0.5], [(0, 1, "chosen")], "one"),
        lambda: figures.frontier(
            [(0, 0), (1, 1)], [[Point(0.5, 0.4, "run-0", (0.4, 0.6), (0.3, 0.5))]], "a point", (5, 3)
        ),
        lambda: figures.frontier([], [[Point(k / 99, 0.4, "run-0") for k in range(100)]], "a path", (5, 3)),
    ],
)
def test_a_figure_is_small_and_takes_its_colours_from_the_page(svg):
    text = svg()
    assert len(text) < 60_000
    assert not re.search(r"#[0-9a-f]{6}\b", text), "a colour that would not follow light and dark"
    assert "font-family" not in text and "<style" not in text and "xmlns" not in text
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= set(figures.ROLES)


def test_the_label_is_said_to_those_who_do_not_see():
    assert 'role="img" aria-label="a &lt; b"' in figures.over_steps([Curve([0, 1], [0, 1], "ink")], "a < b")


def test_a_figure_that_stands_alone_has_colours_for_viewers_that_know_no_variables():
    alone = figures.standalone(figures.over_steps([Curve([1, 2], [0.5, 0.6], "chosen")], "a line"))
    drawn = alone.partition("</style>")[2]
    assert "stroke: #14807a; stroke: var(--chosen)" in drawn
    assert len(re.findall(r"var\(", drawn)) == len(re.findall(r"([\w-]+): #\w+; \1: var\(", drawn))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000))
@settings(max_examples=50, deadline=None)
def test_thinning_keeps_the_end_and_stays_within_bounds(values):
    x, y = figures.thinned(range(len(values)), values)
    assert len(x) == len(y) <= figures.POINTS
    assert (x[-1], y[-1]) == (len(values) - 1, values[-1])
    assert min(values) - 1e-6 <= y.min() and y.max() <= max(values) + 1e-6
    assert (np.diff(x) > 0).all()


def test_smoothing_by_hand():
    """48 values: an average over two neighbours to either side, and at the ends over what there is on both."""
    values = np.arange(48.0) ** 2
    smoothed = figures.smooth(values)
    assert smoothed[0] == 0 and smoothed[-1] == 47**2
    assert smoothed[1] == pytest.approx((0 + 1 + 4) / 3)
    assert smoothed[10] == pytest.approx((64 + 81 + 100 + 121 + 144) / 5)
