"""``prefopt score``: what a policy thinks of each response, and its implicit reward against a reference.

One JSON object for each response, in the order of the data:

    {"source": "prefs.jsonl:12", "response": 0, "score": 1.0, "length": 31, "logp": -42.1,
     "reference_logp": -44.6, "reward": 0.25}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.config import Score
from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.data.shelf import each
from prefopt.errors import RunFailed, UserError
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import check_reference, load_model, load_tokenizer
from prefopt.progress import Advance, untold
from prefopt.statistics import proportion
from prefopt.train import defaults
from prefopt.train.display import Display
from prefopt.train.job import length_limit
from prefopt.train.prepare import account
from prefopt.types import Encoded

Logps = tuple[list[float], list[int]]
"""of one example's responses: log π(y|x) in nats, and tokens"""


def run(config: Score) -> int:
    """Writes JSON lines to ``config.out`` or stdout, and a few words to stderr."""
    tokenizer = load_tokenizer(config.policy)
    if config.reference is not None:
        check_reference(config.reference, config.policy, tokenizer)
    length = length_limit(config.max_length, config.policy, config.reference)
    with Display(0, "score") as display:
        encoder = Encoder(tokenizer, length, config.overlong, config.train_on)
        data = encoded(config.data, config.format, encoder, display)
        for text in [*dict.fromkeys(data.notes), *account(data.findings)]:
            display.note(text)
        if not data.examples:
            raise UserError(f"{', '.join(config.data)}: nothing is left to score")
        _check_writable(config.out)
        policy = _logps(config, config.policy, data.examples, display)
        reference = _logps(config, config.reference, data.examples, display) if config.reference else None
        rows = list(_rows(data.examples, policy, reference, config.beta))
        _write(config, rows)
        for text in _words(data.examples, rows):
            display.note(text)
    return 0


def _logps(config: Score, name: str, examples: Sequence[Encoded], display: Display) -> list[Logps]:
    """Per example: the sums and lengths of its responses under one model, which is let go again."""
    longest = max(prompt + max(responses) for prompt, *responses in each(examples, "lengths"))
    lm: LanguageModel = load_model(name, config.dtype, config.device, longest)
    if lm.why:
        display.note(lm.why)
    with display.pass_(name, len(examples)) as advance:
        return scored(lm, examples, config.tokens_per_microbatch, advance)


def scored(
    lm: LanguageModel,
    examples: Sequence[Encoded],
    budget: int | None = None,
    advance: Advance = untold,
) -> list[Logps]:
    """Per example: log π(y|x) of its responses, in nats, and their lengths; ``budget`` tokens are computed at once."""
    budget = budget or defaults.tokens_per_microbatch(lm.device)
    found: list[Logps] = []
    # A few thousand at a time, so that packing has something to choose from and progress is seen.
    for start in range(0, len(examples), 1024):
        some, known = examples[start : start + 1024], dict[int, Logps]()
        for group in lm.microbatches(some, budget):
            logps = lm.score(lm.pack(group))
            ends = np.cumsum([len(example.responses) for example in group])[:-1]
            sums = np.split(logps.sum.double().cpu().numpy(), ends)
            lengths = np.split(logps.length.long().cpu().numpy(), ends)
            for example, s, n in zip(group, sums, lengths, strict=True):
                known[id(example)] = (s.tolist(), n.tolist())
            advance(len(group))
        found += [known[id(example)] for example in some]
    return found


def _rows(examples: Sequence[Encoded], policy: list, reference: list | None, beta: float) -> Iterator[dict[str, Any]]:
    for i, example in enumerate(examples):
        for r, score in enumerate(example.scores):
            row: dict[str, Any] = {"source": example.source, "response": r, "score": score}
            row |= {"length": policy[i][1][r], "logp": policy[i][0][r]}
            if reference is not None:
                row["reference_logp"] = reference[i][0][r]
                row["reward"] = beta * (row["logp"] - row["reference_logp"])
            yield row


def _check_writable(out: Path | None) -> None:
    """UserError before anything is computed that could not be written then, or would be written over something."""
    if out and out.exists() and out.stat().st_size:
        raise UserError(f"--out {out} exists: choose another file, or remove it")
    try:
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.open("a").close()
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error


def _write(config: Score, rows: list[dict[str, Any]]) -> None:
    try:
        if config.out:
            config.out.parent.mkdir(parents=True, exist_ok=True)
        with open(config.out, "w", encoding="utf-8") if config.out else nullcontext(sys.stdout) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunFailed(f"{config.out or 'stdout'}: cannot be written ({error.strerror})") from error


def _words(examples: Sequence[Encoded], rows: list[dict[str, Any]]) -> Iterator[str]:
    """What a person wants to know first: how often the better response has the higher reward."""
    key = "reward" if "reward" in rows[0] else "logp"
    values = iter(rows)
    won, prompts = [], []
    for example in examples:
        mine = [next(values)[key] for _ in example.responses]
        for (i, a), (j, b) in ((x, y) for x in enumerate(example.scores) for y in enumerate(example.scores)):
            if a is not None and b is not None and a > b:
                won.append(float(mine[i] > mine[j]))
                prompts.append(example.prompt_key)
    yield f"{len(rows):,} responses of {len(examples):,} examples scored"
    if won:
        share = proportion(won, prompts)
        yield f"the better response has the higher {key} in {share} of {len(won):,} pairs (95 % interval)"
