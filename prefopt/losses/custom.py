"""A loss of the user's own: found in a file, and checked as it runs."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
import traceback
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import RunFailed, UserError
from prefopt.losses.base import Loss
from prefopt.terminal import described
from prefopt.types import LogProbs, LossOutput, Preferences, Unit

RESERVED = {"loss", "grad_norm", "learning_rate", "pairs", "tokens", "pairs_per_second", "tokens_per_second"}
RESERVED |= {"step", "split", "nonfinite", "source", "prompt", "chosen", "rejected", "examples", "prompts"}
RESERVED |= {"length_correlation", "rewards/accuracies_low", "rewards/accuracies_high"}
"""what a line of metrics.jsonl or pairs.jsonl says beside what a loss does"""


@dataclass(frozen=True, repr=False)
class Custom(Loss):
    """A loss of the user's own: what it leaves unsaid is `Loss`'s default, and what it returns is checked."""

    loss: Callable[..., Any]
    name: str

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise UserError(f"{self.name} cannot be called: give it __call__(self, policy, reference, preferences)")
        if self.unit not in typing.get_args(Unit):
            raise UserError(f"{self.name}.unit must be one of {', '.join(typing.get_args(Unit))}, not {self.unit!r}")

    def __repr__(self) -> str:
        return described(self.loss)

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        return getattr(self.loss, "unit", Loss.unit)

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return getattr(self.loss, "needs_reference", Loss.needs_reference)

    @property
    def needs_baseline(self) -> bool:  # type: ignore[override]
        return getattr(self.loss, "needs_baseline", Loss.needs_baseline)

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        try:
            out = self.loss(policy, reference, preferences)
        except (UserError, RunFailed):
            raise
        except Exception as error:  # whatever a person's own code raises; PREFOPT_DEBUG=1 shows its traceback
            _, *theirs = traceback.extract_tb(error.__traceback__)
            place = f"{theirs[0].filename}:{theirs[0].lineno}: " if theirs else ""
            raise UserError(f"{place}{self.name} fails: {type(error).__name__}: {error}") from error
        if not isinstance(out, LossOutput):
            raise UserError(f"{self.name} returned a {type(out).__name__}: return a LossOutput")
        if out.loss.shape != preferences.ranking.shape[:1]:
            examples, shape = len(preferences.ranking), list(out.loss.shape)
            raise UserError(f"{self.name} returned a loss of shape {shape}: return one for each of {examples} examples")
        if policy.sum.requires_grad and not out.loss.requires_grad:
            raise UserError(f"{self.name} returned a loss without a gradient: compute it from policy, not detached")
        for key, value in out.metrics.items():
            if key in RESERVED:
                raise UserError(f"{self.name} returned a metric {key}, which is taken: give it another name")
            if not hasattr(value, "detach"):
                raise UserError(
                    f"{self.name} returned a metric {key} that is a {type(value).__name__}: return a tensor"
                )
        return LossOutput(out.loss, {name: value.detach() for name, value in out.metrics.items()})


def load(file: Path, name: str, flag: str = "--loss") -> Any:
    """What ``name`` is in the user's Python file, which ``flag`` asked for."""
    file = file.expanduser()
    if not file.is_file():
        raise UserError(f"{file}: no such file (for {flag} {file}:{name})")
    path = str(file.resolve())
    module_name = f"{file.stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module  # dataclasses and inspect look a class's module up there
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        at = error.lineno if isinstance(error, SyntaxError) and error.filename == path else None
        line = at or (lines[-1] if lines else None)
        raise UserError(f"{file}:{line or 1}: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
        raise UserError(f"{file} defines no {name}{nearest(name, own)} It defines {', '.join(own) or 'nothing'}")
    return getattr(module, name)


def nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else "."
