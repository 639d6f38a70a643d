"""What a run shows of single examples, for people to read: ``pairs.jsonl`` and ``samples.jsonl``.

pairs.jsonl     every pair that was scored at the end, with its text and its own metrics:
                {"source": "prefs.jsonl:12", "split": "eval", "prompt": "2+2=", "chosen": "4", "rejected": "5",
                 "rewards/chosen": 0.2, "rewards/rejected": -0.9, "rewards/margins": 1.1, "weights": 0.25, ...}
samples.jsonl   a few prompts, and what the model answered before and after:
                {"source": "prefs.jsonl:12", "key": "5d41...", "prompt": "2+2=", "before": "5", "after": "4"}
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from prefopt.data.decode import decoded
from prefopt.data.encode import Encoder
from prefopt.errors import RunFailed
from prefopt.generate import TransformersGenerator
from prefopt.model.language_model import LanguageModel
from prefopt.train.loop import Evaluation
from prefopt.types import Encoded
from prefopt.whole import whole

SAMPLES, SAMPLE_TOKENS = 6, 64
"""prompts that are answered, and the most tokens of an answer: seconds, beside a run's minutes"""
TEXT = 1000
"""characters of a text that is kept: of a prompt its end, of a response its beginning"""


class Scored(NamedTuple):
    """Some units and what an evaluation found of each."""

    units: Sequence[Encoded]
    evaluation: Evaluation


def write_pairs(file: Path, tokenizer: Any, scored: Mapping[str, Scored]) -> None:
    """``scored``: by split. Nothing is written where the units are no pairs."""
    rows = [row for split, found in scored.items() for row in _pairs(tokenizer, split, found)]
    if rows:
        _write(file, rows)


def _pairs(tokenizer: Any, split: str, scored: Scored) -> Iterator[dict[str, Any]]:
    units, singly = scored.units, scored.evaluation.singly
    if len(singly) != len(units):
        return
    for unit, metrics in zip(units, singly, strict=True):
        yield {
            "source": unit.source,
            "split": split,
            "prompt": _text(tokenizer, unit.prompt)[-TEXT:],
            "chosen": _text(tokenizer, unit.responses[0])[:TEXT],
            "rejected": _text(tokenizer, unit.responses[-1])[:TEXT],
            **{name: value if math.isfinite(value) else None for name, value in metrics.items()},
        }


def write_samples(
    file: Path, lm: LanguageModel, encoder: Encoder, units: Sequence[Encoded], when: Literal["before", "after"]
) -> None:
    """What ``lm`` answers, greedily, to a few prompts, beside what the file says that it answered before.

    A model that cannot generate costs a run its samples, not its end.
    """
    asked = _prompts(units, encoder.max_length)
    if not asked:
        return
    generator = TransformersGenerator(lm, encoder, temperature=0, max_new_tokens=SAMPLE_TOKENS)
    prompts = [_text(encoder.tokenizer, unit.prompt)[-TEXT:] for unit in asked]
    try:  # a prompt is shown as the model read it, as text, and an answer goes on from there
        answers = decoded(encoder, prompts, generator.ids([unit.prompt for unit in asked]))
    except Exception as error:  # whatever an architecture's own code may raise
        logging.getLogger(__name__).warning(
            "no samples: the model cannot generate (%s: %s)", type(error).__name__, error
        )
        return
    known = {row["key"]: row for row in _read(file)} if when == "after" else {}
    rows = []
    for unit, prompt, (answer,) in zip(asked, prompts, answers, strict=True):
        row = known.get(unit.prompt_key, {"source": unit.source, "key": unit.prompt_key, "prompt": prompt})
        rows.append({**row, when: answer[:TEXT]})
    _write(file, rows)


def _prompts(units: Sequence[Encoded], longest: int | None) -> list[Encoded]:
    """The first few different prompts that leave room for an answer."""
    room = math.inf if longest is None else longest - SAMPLE_TOKENS
    different: dict[str, Encoded] = {}
    fitting = (unit for unit in units if len(unit.prompt) <= room)
    while len(different) < SAMPLES and (unit := next(fitting, None)):
        different.setdefault(unit.prompt_key, unit)
    return list(different.values())


def _text(tokenizer: Any, ids: np.ndarray) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True).strip("\n")


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        with whole(file) as opened:
            opened.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise RunFailed(
            f"{file}: cannot be written ({error.strerror}): make room, then continue with --resume"
        ) from error
