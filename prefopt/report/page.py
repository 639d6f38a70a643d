"""The whole page: head, sections, foot."""

from __future__ import annotations

from collections.abc import Sequence

import prefopt
from prefopt.report.figures import numbered
from prefopt.report.html import environment
from prefopt.report.read import Run
from prefopt.report.sections import SECTIONS
from prefopt.report.words import byline, verdict


def page(runs: Sequence[Run]) -> str:
    """One HTML document about one run or several."""
    names = " · ".join(run.name for run in runs)
    title = names if len(runs) == 1 or len(names) <= 60 else f"{len(runs)} runs side by side"
    sections = [section for make in SECTIONS if (section := make(runs)) is not None]
    html = environment.get_template("page.html").render(
        title=title,
        runs=runs,
        verdict=verdict(runs),
        byline=byline(runs),
        sections=sections,
        version=prefopt.__version__,
    )
    return numbered(html)
