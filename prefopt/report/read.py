"""What a run left in its folder, as far as it is there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefopt import config
from prefopt.errors import UserError
from prefopt.train.metrics import read_metrics
from prefopt.train.table import OF_NO_PAIR
from prefopt.train.track import redact

Row = Mapping[str, Any]


COUNTS = ("steps", "skipped_steps", "held_out_seen")
"""whole numbers of results.json"""
TELLING = {"reward": "ppo", "rankings": "reward"}
"""a setting, and the command without a loss that alone has it"""


@dataclass(frozen=True)
class Run:
    """``results`` of a run that has not finished are what its metrics tell so far.

    ``history``: records of metrics.jsonl. ``pairs`` and ``samples``: rows of the files of that name (see
    `prefopt.train.evidence`), empty where the run has none. ``estimate``: KL and reward from samples, where a sweep
    has drawn some. ``parts``: the runs of which a sweep consists.
    """

    folder: Path
    name: str
    finished: bool
    settings: Row
    results: Row
    history: Sequence[Row]
    pairs: Sequence[Row]
    samples: Sequence[Row]
    estimate: Row = field(default_factory=dict)
    parts: Sequence[Run] = ()

    @property
    def held_out(self) -> bool:
        return any(record["split"] == "eval" for record in self.history)

    @property
    def judged(self) -> Mapping[str, Row]:
        """Before and after, on the data that tell most: held out if there are such."""
        return self.results.get("held_out") or self.results.get("training") or {}

    @property
    def method(self) -> str:
        """As results.json calls it; before there is one, what the settings tell."""
        named = self.results.get("method") or self.settings.get("loss")
        told = next((command for key, command in TELLING.items() if key in self.settings), "sft")
        return str(named or (told if self.settings else "–"))

    @property
    def unit(self) -> str:
        """What one example is, which decides the words for it: see `prefopt.losses.base.Loss`."""
        return str(self.results.get("unit", "pair"))

    def records(self, split: str, *names: str) -> list[Row]:
        """Those of "train", "training" (the sample) or "eval" that know finite numbers of all these names."""
        return [r for r in self.history if r["split"] == split and all(_finite(r.get(name)) for name in names)]

    def pairs_of(self, split: str) -> list[Row]:
        """With a finite margin; ``split`` is "eval" or "training"."""
        return [p for p in self.pairs if p.get("split") == split and _finite(p.get("rewards/margins"))]

    @property
    def judged_pairs(self) -> list[Row]:
        return self.pairs_of("eval") or self.pairs_of("training")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """UserError where a folder holds no run, or a file of it is broken. Names are as short as tells them apart."""
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    found = [read_run(folder, name if unique else str(folder)) for folder, name in zip(folders, names, strict=True)]
    return [replace(run, parts=_runs_of(run, f"{run.name}/" if len(found) > 1 else "")) for run in found]


def apart(runs: Sequence[Run]) -> list[Run]:
    """The single runs, with those of sweeps in their place."""
    return [one for run in runs for one in (run.parts or [run])]


FILES = "config.yaml", "metrics.jsonl", "results.json"


def _is_run(folder: Path) -> bool:
    return any((folder / file).is_file() for file in FILES)


def read_run(folder: Path, name: str) -> Run:
    files = {part: folder / part for part in FILES}
    if not _is_run(folder):
        if folder.is_dir() and (runs := [inner.name for inner in sorted(folder.iterdir()) if _is_run(inner)]):
            return Run(folder, name, False, {}, {"runs": [{"name": run} for run in runs]}, [], [], [])
        what = "is no folder" if not folder.is_dir() else f"holds no run: none of {', '.join(files)} is in it"
        raise UserError(f"{folder} {what}; name the --out of a run")
    history = read_metrics(files["metrics.jsonl"]) if files["metrics.jsonl"].is_file() else []
    finished = files["results.json"].is_file()
    given = config.recorded(files["config.yaml"]) if files["config.yaml"].is_file() else {}
    return Run(
        folder,
        name,
        finished,
        redact(given),
        _results(files["results.json"]) if finished else _so_far(history),
        history,
        _rows(folder / "pairs.jsonl"),
        _rows(folder / "samples.jsonl"),
    )


def _runs_of(sweep: Run, prefix: str) -> list[Run]:
    """Those that did not fail, as the sweep tells of them, with what it estimated."""
    found = []
    for record in told(sweep):
        name, estimate = record["name"], record.get("estimate") or {}
        folder = sweep.folder / name
        if record.get("status", "done") == "done" and folder.name == name and _is_run(folder):
            found.append(replace(read_run(folder, prefix + name), estimate=estimate))
    return found


def told(sweep: Run) -> list[Row]:
    """What a sweep's results say of its runs; of anything else nothing."""
    runs = sweep.results.get("runs")
    named = runs if isinstance(runs, list) else []
    return [run for run in named if isinstance(run, dict) and isinstance(run.get("name"), str)]


def _so_far(history: Sequence[Row]) -> dict[str, Any]:
    """Results of an unfinished run: its first figures and its newest."""

    def figures(record: Row) -> Row:
        return {name: value for name, value in record.items() if name != "step" and isinstance(value, (int, float))}

    def around(split: str) -> dict[str, Row] | None:
        records = [record for record in history if record["split"] == split]
        first = next((figures(record) for record in records if record["step"] == 0), {})
        last = next((figures(record) for record in reversed(records) if record["step"]), {})
        return {"before": first, "after": last} if records else None

    steps = max((record["step"] for record in history), default=0)
    known = {name for record in history for name in record}
    sampled = "reward" in known  # of PPO every step is an evaluation
    so_far = {"steps": steps, "training": around("train" if sampled else "training"), "held_out": around("eval")}
    singly = known >= OF_NO_PAIR and "rewards/margins" not in known
    return so_far | ({"unit": "response"} if singly else {})


def _results(file: Path) -> dict[str, Any]:
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); mend it, or delete it to report without") from None
    if not isinstance(results, dict):
        raise UserError(f"{file}: not a JSON object; mend it, or delete it to report without")
    for key, value in results.items():
        if key in ("training", "held_out"):
            results[key] = _around(file, key, value)
        elif (key in COUNTS and type(value) is not int) or (
            key in ("data", "versions") and not isinstance(value, dict)
        ):
            raise UserError(f'{file}: "{key}" is not what a run writes there; mend it, or delete it')
    return results


def _around(file: Path, split: str, value: Any) -> dict[str, dict[str, float]] | None:
    """The figures before and after, with nan and inf, which JSON has no numbers for, as they were."""
    if value is None:
        return None
    try:
        return {when: {name: float(n) for name, n in value[when].items()} for when in ("before", "after")}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f'{file}: "{split}" must hold figures "before" and "after"; mend it, or delete it') from None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _rows(file: Path) -> list[Row]:
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            rows.append(None)
        if not isinstance(rows[-1], dict):
            raise UserError(f"{file}:{number}: not a JSON object; mend or delete the line") from None
    return rows
