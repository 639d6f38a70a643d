"""Trackers: copies of the metrics for those who watch a run elsewhere.

``metrics.jsonl`` is the truth. A tracker that cannot start or fails on the way is reported once and switched
off; the run goes on. What looks like a secret is taken out of the configuration before any tracker sees it.
To add a tracker: one class with the three methods, and its name in ``TRACKERS``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Protocol

from prefopt.config import plain
from prefopt.errors import UserError

PROJECT = "prefopt"
REDACTED = "[redacted]"


class Tracker(Protocol):
    """Where metrics are copied to. Constructed with the run directory; importing its package may fail."""

    def start(self, name: str, config: Mapping[str, Any], step: int) -> None:
        """Begin the run called ``name``, or continue it after ``step`` > 0. ``config`` holds JSON values only."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values``, named ``split/metric``."""

    def finish(self) -> None:
        """Flush and close."""


class TensorBoard:
    """Event files under ``OUT/tensorboard``: ``tensorboard --logdir OUT``."""

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open, self._folder = SummaryWriter, out / "tensorboard"

    def start(self, name: str, config: Mapping[str, Any], step: int) -> None:
        # Points after the checkpoint will be taken again; purge_step hides the old ones.
        self._writer = self._open(str(self._folder), purge_step=step + 1 if step else None)
        self._writer.add_text("config", "```json\n" + json.dumps(config, indent=2) + "\n```", step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases: online with ``WANDB_API_KEY`` or after ``wandb login``; else offline, under ``OUT/wandb``.

    ``WANDB_MODE`` decides where it is set. Offline runs are sent with ``wandb sync OUT/wandb/offline-run-*``.
    A resumed run is a new one in the same group.
    """

    def __init__(self, out: Path) -> None:
        import wandb

        self._wandb, self._out = wandb, out

    def start(self, name: str, config: Mapping[str, Any], step: int) -> None:
        mode: Any = os.environ.get("WANDB_MODE")
        if not mode:
            mode = "online" if self._wandb.login(prompt=False) else "offline"
        self._run = self._wandb.init(
            project=PROJECT, name=name, group=name, config=dict(config), dir=str(self._out), mode=mode
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


class Trackio:
    """trackio's local database: ``trackio show --project prefopt``. ``TRACKIO_DIR`` and its like are honoured."""

    def __init__(self, out: Path) -> None:
        import trackio

        self._trackio = trackio

    def start(self, name: str, config: Mapping[str, Any], step: int) -> None:
        self._run = self._trackio.init(
            project=PROJECT, name=name, config=dict(config), resume="allow" if step else "never"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


class Trackers:
    """The trackers that a run was asked for, as one; none is as good as any.

    >>> trackers = Trackers([], Path("runs/dpo"), warn=print)
    >>> trackers.start("dpo", {"beta": 0.1})
    >>> trackers.log(1, "train", {"loss": 0.6931})
    >>> trackers.finish()
    """

    def __init__(self, names: Iterable[str], out: Path, warn: Callable[[str], None]) -> None:
        """Imports the packages, so that a missing one is a UserError before any work is done."""
        self._active = {name: _load(name, out) for name in dict.fromkeys(names)}
        self._warn = warn

    def start(self, name: str, config: Any, step: int = 0) -> None:
        """``config``: a mapping or a dataclass, secrets and all; they are taken out here."""
        safe = redact(config)
        self._each(lambda tracker: tracker.start(name, safe, step))

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """The same line that goes to ``metrics.jsonl``."""
        named = {f"{split}/{name}": value for name, value in values.items()}
        self._each(lambda tracker: tracker.log(step, named))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self._active = {}

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._active.items()):
            try:
                act(tracker)
            except Exception as error:  # whatever another project's code raises must not end the training
                del self._active[name]
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self._warn(f"tracker {name} failed and is switched off; metrics.jsonl has everything ({reason})")


def _load(name: str, out: Path) -> Tracker:
    if name not in TRACKERS:
        raise UserError(f"--track {name}: no such tracker; there are {', '.join(TRACKERS)}")
    try:
        return TRACKERS[name](out)
    except ImportError as error:
        raise UserError(f"--track {name} needs a package that is missing ({error}); pip install {name}") from None


_SECRET_WORD = re.compile(r"\b(secrets?|pass(word|wd|phrase)|token|(api)?key|credentials?|auth(orization)?|bearer)\b")
# Keys of well-known services by their shape; and a password within a URL, or a secret among its parameters.
_SECRET_SHAPES = re.compile(
    r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA|AIza)[\w-]{12,}"
    r"|(?<=://)[^/\s@]+(?=@)"
    r"|(?<=[?&])(?:\w*(?:token|key|secret|password|signature|sig)\w*)=[^&#\s]+",
    re.IGNORECASE,
)


def redact(config: Any) -> Any:
    """``config`` as JSON values, with what is named like a secret or looks like one replaced.

    >>> redact({"beta": 0.1, "api_key": "abc", "data": ("https://me:pw@host/f.jsonl",), "tokens_per_microbatch": 2048})
    {'beta': 0.1, 'api_key': '[redacted]', 'data': ['https://[redacted]@host/f.jsonl'], 'tokens_per_microbatch': 2048}
    """
    if is_dataclass(config) and not isinstance(config, type):
        config = plain(config)
    if isinstance(config, Mapping):
        return {str(k): REDACTED if _names_a_secret(str(k)) and v else redact(v) for k, v in config.items()}
    if isinstance(config, (list, tuple, set, frozenset)):
        return [redact(value) for value in config]
    if config is None or isinstance(config, (bool, int, float)):
        return config
    return _SECRET_SHAPES.sub(REDACTED, str(config))


def _names_a_secret(key: str) -> bool:
    """Whether a word of it is one: ``hf_token``, ``apiKey``, but not ``tokens_per_microbatch`` or ``tokenizer``."""
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", key).lower()
    return _SECRET_WORD.search(re.sub(r"[^a-z]+", " ", words)) is not None
