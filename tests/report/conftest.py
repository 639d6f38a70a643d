"""Figures take most of a page's time: most tests of pages are not about them."""

from collections.abc import Callable

import pytest

from prefopt.report import figures


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is drawn as the same small one. Nothing of what pages are made of reaches a figure but numbers."""
    same_figure = figures.over_steps([figures.Curve([0, 1], [0, 1], "ink")], "figure")

    def same(draw: Callable, label: str, size: object = None) -> object:
        return same_figure

    monkeypatch.setattr(figures, "drawn", same)
