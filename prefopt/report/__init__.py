"""One HTML file that shows a run, or several on the same axes: nothing to load, nothing that runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefopt.config import Report
from prefopt.errors import RunFailed, UserError
from prefopt.whole import whole


def run(config: Report) -> None:
    """``prefopt report``: writes ``config.out`` and prints where it is."""
    if config.out.is_dir():
        raise UserError(f"--out {config.out} is a folder: name the file to write, such as {config.out / 'report.html'}")
    if config.out.is_file() and not config.out.read_bytes().lower().lstrip().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"--out {config.out} exists and is no page: choose another file")
    try:
        text = page_of(config.runs)
    except OSError as error:
        raise RunFailed(f"{error.filename}: cannot be read ({error.strerror})") from error
    try:
        _put(text, config.out)
    except OSError as error:
        raise RunFailed(f"--out {config.out}: cannot be written ({error.strerror})") from error
    print(f"report   {config.out}")


def write(folders: Sequence[Path], out: Path) -> None:
    """The report about the runs in ``folders``. UserError where one holds no run; OSError if it cannot be written."""
    _put(page_of(folders), out)


def page_of(folders: Sequence[Path]) -> str:
    from prefopt.report.page import page
    from prefopt.report.read import read_runs

    return page(read_runs(folders))


def _put(text: str, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out, errors="backslashreplace") as file:
        file.write(text)
