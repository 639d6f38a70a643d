"""The whole page: head, sections, foot."""

from __future__ import annotations

from collections.abc import Sequence

import prefopt
from prefopt.report.figures import numbered
from prefopt.report.html import environment
from prefopt.report.read import Run, apart, told
from prefopt.report.sections import OF_ALL, OF_EACH
from prefopt.report.words import byline, verdict
from prefopt.terminal import counted


def page(runs: Sequence[Run]) -> str:
    """One HTML document about one run or several."""
    names = " · ".join(run.name for run in runs)
    title = names if len(runs) == 1 or len(names) <= 60 else f"{len(runs)} runs side by side"
    if len(runs) == 1:  # a run may be part of something that has a name
        title = str(runs[0].results.get("title", title))
    each = apart(runs)
    sections = [section for make in OF_ALL if (section := make(runs)) is not None]
    sections += [section for make in OF_EACH if (section := make(each)) is not None]
    html = environment.get_template("page.html").render(
        title=title,
        kicker=_kicker(runs, each),
        runs=each,
        failed=[record for run in runs for record in told(run) if record.get("status") == "failed"],
        verdict=verdict(each),
        byline=byline(runs),
        sections=sections,
        version=prefopt.__version__,
    )
    return numbered(html)


def _kicker(runs: Sequence[Run], each: Sequence[Run]) -> str:
    if len(runs) == 1 and runs[0].finished and told(runs[0]):
        return f"Report on a sweep of {counted(len(runs[0].parts), 'run')}"
    return "Report on a run" if len(each) == 1 else f"Report on {len(each)} runs"
