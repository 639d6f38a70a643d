"""The files that a name stands for: a file, those of a glob, or those of a folder and one of its splits."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from prefopt.data import hub
from prefopt.errors import UserError

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SPLITS = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE)
BOOKKEEPING = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # of datasets, no rows


def find_files(spec: str) -> list[Path] | None:
    """The files that ``spec`` names, sorted; None when it can only be a name on the hub."""
    try:
        return _named(spec)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise UserError(f"--data {spec} cannot be looked at: {error.strerror or error}") from error


def _named(spec: str) -> list[Path] | None:
    if not spec.strip():  # "$UNSET", which would be the folder that one stands in
        raise UserError("--data is empty: name a file, a folder or a data set")
    path = Path(os.path.expanduser(spec))
    if path.is_file():
        return [path]
    if path.is_dir():
        return _in_folder(path, split=None)
    folder, colon, split = str(path).rpartition(":")
    if colon and Path(folder).is_dir():
        return _in_folder(Path(folder), split)
    if glob.has_magic(spec):
        found = sorted(name for name in map(Path, glob.glob(str(path), recursive=True)) if _is_there(name))
        if not found:
            raise UserError(f"no file matches {spec}")
        return found
    if path.exists() or spec == "-":
        raise UserError(f"{spec} is no file but a stream, and data are read more than once: save them as a file")
    if kind_of(path) or not hub.NAME.fullmatch(spec) or ("/" in spec and path.parent.is_dir()):
        near = nearest(path)
        on_hub = "" if near or "/" in spec or kind_of(path) else ", and a data set on the hub is called owner/name"
        raise UserError(f"there is no file {spec}{near}{on_hub}")
    return None


def _in_folder(folder: Path, split: str | None) -> list[Path]:
    files = sorted(f for f in _below(folder) if kind_of(f) and f.name not in BOOKKEEPING)
    if not files:
        raise UserError(f"the folder {folder} holds no data files ({', '.join(KINDS)}, or those with .gz)")
    splits = {f: _split_of(f.relative_to(folder)) for f in files}
    names = sorted({name for name in splits.values() if name})
    if split is not None:
        files = [f for f in files if splits[f] == split]
        if not files:
            there = f"; there is {', '.join(names)}" if names else ""
            raise UserError(f'the folder {folder} has no files for the split "{split}"{there}')
    elif len(names) > 1:  # training on the test files must be a decision
        raise UserError(
            f"the folder {folder} holds the splits {', '.join(names)}: choose one, as in {folder}:{names[-1]}"
        )
    return [file for file in files if _is_there(file)]


def _below(folder: Path) -> list[Path]:
    """Every file in it, also behind links, but for what is hidden; one that has several names by that without a link.

    OSError where a folder may not be entered.
    """

    def visit(at: Path, above: frozenset[str]) -> Iterator[Path]:
        if (real := os.path.realpath(at)) in above:  # a link to a folder that it stands in
            return
        for entry in sorted(os.scandir(at), key=lambda entry: entry.name):
            if not entry.name.startswith("."):
                yield from visit(at / entry.name, above | {real}) if entry.is_dir() else [at / entry.name]

    def linked(file: Path) -> bool:
        return os.path.realpath(file) != os.path.join(os.path.realpath(folder), file.relative_to(folder))

    found: dict[str, Path] = {}
    for file in sorted(visit(folder, frozenset()), key=lambda file: (linked(file), file)):
        found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _is_there(file: Path) -> bool:
    """UserError where it is a link that leads nowhere: a file of the data is missing."""
    if file.is_symlink() and not file.exists():
        raise UserError(f"{file} is a link to {os.readlink(file)}, which is not there")
    return file.is_file()


def _split_of(path: Path) -> str | None:
    found = (SPLITS.match(part) for part in reversed(path.parts))
    return next((match[1].lower() for match in found if match), None)


def kind_of(path: Path) -> str | None:
    """The suffix that says how to read the file: ".jsonl" for both a.jsonl and a.jsonl.gz."""
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower() if suffix.lower() in KINDS else None


def nearest(path: Path) -> str:
    names = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
