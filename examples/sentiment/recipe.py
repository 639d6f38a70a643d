"""What a recipe's YAML file says: a section for each stage, most of them settings of a command of prefopt."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from prefopt import config
from prefopt.config import Setting
from prefopt.errors import UserError

C = TypeVar("C")
Given = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Each field is a section; a section that is named after a command holds settings of it."""

    file: str
    openings: Given
    """``least`` and ``most`` words of what is kept of a review; ``prefixes`` to learn from, and ``held_out`` ones"""
    new_model: Given | None = None
    """the model to begin with, if one is made"""
    model: str | None = None
    """or its folder or name"""
    sft: Given
    """the reference"""
    reward: str | None = None
    """the true reward, such as siebert/sentiment-roberta-large-english:POSITIVE; by default n-grams, trained here"""
    ngrams: Given | None = None
    """``l2``, and ``passages`` of each review that they are trained on"""
    sample: Given
    """the responses that pairs are made of"""
    reward_model: Given
    """prefopt reward, on the pairs"""
    train: Given
    """settings of prefopt train that its runs share; every ``save_every`` steps, a run is placed"""
    ppo: Given
    """and those of prefopt ppo"""
    runs: dict[str, Given]
    """by method: what its runs have in common, and one list, of the values that tell them apart"""
    best_of: Given
    """``n``, a list; ``draws`` for each of ``prompts``"""
    processes: int = 1
    """runs at once"""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.new_model is None):
            raise UserError(f"{self.file}: name a model, or the settings of a new_model")
        if (self.reward is None) == (self.ngrams is None):
            raise UserError(f"{self.file}: name a reward, or how ngrams are trained")

    def settings(self, cls: type[C], section: str, given: Mapping[str, Any], **rest: Any) -> C:
        """A command's settings, from a section and what the recipe itself decides."""
        where = f"{self.file}: {section}"
        values = {key: Setting(_plain(value), where) for key, value in {**given, **rest}.items()}
        return config.build(cls, values, needed_by=where)


def load(file: Path) -> Recipe:
    """UserError where it cannot be read, or a section is missing or unknown."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    known = {field.name: field for field in dataclasses.fields(Recipe) if field.name != "file"}
    if not isinstance(found, dict):
        raise UserError(f"{file}: it holds no sections; there are {', '.join(known)}")
    if unknown := found.keys() - known.keys():
        raise UserError(f"{file}: unknown section {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if missing := [n for n, field in known.items() if field.default is dataclasses.MISSING and n not in found]:
        raise UserError(f"{file}: there is no section {', '.join(missing)}")
    return Recipe(file=str(file), **found)


class Run(NamedTuple):
    """One of the runs: ``method`` "DPO" with ``own`` {"beta": 0.1}, in the folder ``name``; ``given`` is all of it."""

    method: str
    own: Given
    given: Given

    @property
    def name(self) -> str:
        """
        >>> Run("PPO, true reward", {"target_kl": 3}, {}).name
        'ppo-true-reward-target-kl-3'
        """
        words = self.method, *(f"{key} {value:g}" for key, value in self.own.items())
        return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower())


def runs(methods: Mapping[str, Given]) -> Iterator[Run]:
    """
    >>> [(run.own, run.given) for run in runs({"DPO": {"loss": "dpo", "beta": [0.1, 1]}})]
    [({'beta': 0.1}, {'loss': 'dpo', 'beta': 0.1}), ({'beta': 1}, {'loss': 'dpo', 'beta': 1})]
    """
    for method, given in methods.items():
        lists = [key for key, value in given.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise UserError(f"runs: {method} needs one list, of the values that tell its runs apart")
        yield from (Run(method, {lists[0]: value}, given | {lists[0]: value}) for value in given[lists[0]])


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
