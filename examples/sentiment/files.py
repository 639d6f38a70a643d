"""Files that are there whole or not at all, so that what is there is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write(file: Path, value: Any) -> None:
    """As JSON."""
    _write(file, [json.dumps(value, indent=1, ensure_ascii=False)])


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """As JSON lines."""
    _write(file, (json.dumps(row, ensure_ascii=False) for row in rows))


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def read_rows(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(file: Path, lines: Iterable[str]) -> None:
    aside = file.with_name(f".tmp-{file.name}")
    with open(aside, "w", encoding="utf-8") as opened:
        opened.writelines(f"{line}\n" for line in lines)
    os.replace(aside, file)
