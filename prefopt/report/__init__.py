"""One HTML file that shows a run, or several on the same axes: nothing to load, nothing that runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(folders: Sequence[Path], out: Path) -> None:
    """The report about the runs in ``folders``. UserError where one holds no run, OSError where ``out`` cannot be written."""
    from prefopt.report.page import page
    from prefopt.report.read import read_runs

    text = page(read_runs(folders))
    out.write_text(text, encoding="utf-8")
