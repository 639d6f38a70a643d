"""From files to the units that a run trains on and holds out, with an account of every row on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from prefopt.config import Training
from prefopt.data import plan
from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.data.findings import account
from prefopt.data.shelf import Chosen, each, longest
from prefopt.display import Display
from prefopt.errors import UserError
from prefopt.terminal import counted
from prefopt.types import Encoded, Finding, Unit


@dataclass(frozen=True)
class Prepared:
    """``train`` and ``held_out`` are units of the loss; ``counts`` tells how they came about."""

    train: Sequence[Encoded]
    held_out: Sequence[Encoded]
    counts: Counter[str] = field(default_factory=Counter)

    @cached_property
    def fingerprint(self) -> str:
        """Of what is trained on and held out, by content; a resumed run must find the same."""
        content = xxhash.xxh3_128()
        for part in (self.train, self.held_out):
            content.update(b"|")
            content.update("".join(each(part, "key")).encode())
        return content.hexdigest()

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(longest(self.train), longest(self.held_out))


Prepare = Callable[[Training, Any, Unit, int | None, Display], Prepared]
"""what ``prepare`` is"""


def prepare(config: Training, tokenizer: Any, unit: Unit, max_length: int | None, display: Display) -> Prepared:
    """Read, check, encode, split and plan. UserError when nothing is left, or with ``strict`` on any finding."""
    encoder = Encoder(tokenizer, max_length, config.overlong, config.train_on)
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    notes: list[str] = []

    def units(specs: Sequence[str]) -> Chosen:
        data = encoded(specs, config.format, encoder, display)
        counts.update(data.counts)
        findings.extend(data.findings)
        notes.extend(data.notes)
        examples = Chosen(data.examples, plan.repeated(data.weights, config.seed))
        made = plan.units(examples, unit)
        if unit == "response" and (rankings := sum(len(scores) > 2 for scores in each(examples, "scores"))):
            notes.append(f"of {counted(rankings, 'ranking')} only the best and the worst response are learned from")
        if unit == "response" and len(made):
            notes.append(_labels([score for (score,) in each(made, "scores")]))
        findings.extend(_unfit(made, unit))
        return made

    train: Sequence[Encoded] = units(config.data)
    held_out: Sequence[Encoded] = []
    if config.eval_data:
        held_out = units(config.eval_data)
        if not held_out:
            raise UserError(f"--eval-data {', '.join(config.eval_data)}: nothing of it can be evaluated on")
        if overlap := trained_on_too(train, held_out):
            notes.append(f"{overlap:,} of {len(held_out):,} held-out examples have a prompt that is trained on too")
            counts[TRAINED_ON_TOO] = overlap
    elif config.eval_fraction and train:
        train, held_out = plan.split(train, config.eval_fraction, config.seed)
        if not train:
            raise UserError(f"--eval-fraction {config.eval_fraction:g} holds out every prompt: lower it")
        if not held_out:
            notes.append(f"--eval-fraction {config.eval_fraction:g} of so few prompts is none: nothing is held out")
    if config.strict and findings:
        raise UserError(_strict(findings))
    if not train:
        reasons = ", ".join(f"{n} {kind}" for kind, n in Counter(f.kind for f in findings).most_common(3))
        files = ", ".join(config.data)
        raise UserError(f"{files}: nothing is left to train on ({reasons or 'no rows'}); see prefopt check")
    if lost := counts["end tokens lost"]:
        notes.append(f"{counted(lost, 'response')} cut, and so without an end token")
    for text in dict.fromkeys(notes):
        display.note(text)
    for line in account(findings):
        display.note(line)
    return Prepared(train, held_out, counts)


TRAINED_ON_TOO = "held out and trained on"


def trained_on_too(train: Sequence[Encoded], held_out: Sequence[Encoded]) -> int:
    """How many held-out examples have a prompt that is trained on."""
    seen = {*each(train, "prompt_key")}
    return sum(key in seen for key in each(held_out, "prompt_key"))


def _labels(scores: Sequence[float]) -> str:
    """How many are desirable: with one kind alone nothing is told from anything."""
    good = sum(score > 0 for score in scores)
    if 0 < good < len(scores):
        return f"{good:,} desirable responses and {len(scores) - good:,} undesirable ones"
    return f"all {len(scores):,} responses are {'desirable' if good else 'undesirable'}: nothing tells one from another"


UNFIT: dict[Unit, tuple[str, str]] = {
    "pair": ("unpaired", "it compares no two responses"),
    "ranking": ("unranked", "it ranks no responses"),
    "response": ("unlabelled", "nothing says whether the response is desirable"),
    "demonstration": ("undesirable", "its response is labelled undesirable, and so not imitated"),
}


def _unfit(made: Chosen, unit: Unit) -> list[Finding]:
    """Of the examples that units were made of, those that hold none."""
    without, sources = np.setdiff1d(np.arange(len(made.examples)), made.at), each(made.examples, "source")
    return [Finding(source, *UNFIT[unit]) for source in dict.fromkeys(sources[i] for i in without)]


def _strict(findings: Sequence[Finding]) -> str:
    first = findings[0]
    more = f", and {len(findings) - 1} more findings" if len(findings) > 1 else ""
    return f"{first.source}: {first.message}{more}; --strict refuses such data (prefopt check --json lists all of them)"
