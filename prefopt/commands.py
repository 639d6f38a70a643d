"""The commands: what each can be told, and the function that does it.

A command is a dataclass in `prefopt.config` and one line here.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prefopt import config
from prefopt.signals import deferred


class Command(NamedTuple):
    """``settings``: its dataclass. ``function``: "module:name", imported when the command runs.

    ``trains``: it takes --dry-run, and ``function`` a second argument that says so. ``rest``: the key that
    gets what stands on the command line without a flag.
    """

    settings: type
    function: str
    trains: bool = False
    rest: str = ""

    def run(self, settings: Any, dry_run: bool = False) -> None:
        module, _, name = self.function.partition(":")
        with deferred():
            function = getattr(importlib.import_module(module), name)
        function(settings, dry_run) if self.trains else function(settings)

    def flags(self) -> Iterator[Flag]:
        """One flag for each field, and those of every command."""
        hints, helps = typing.get_type_hints(self.settings), config.helps(self.settings)
        for field in dataclasses.fields(self.settings):
            if field.name != "loss_options":
                rare = self.trains and field.name in RARE
                yield Flag(field.name, hints[field.name], helps[field.name], field.default, rare)
        yield Flag("config", Path, "YAML file with these settings; flags override it", None)
        yield Flag("print_config", bool, "print the settings as YAML, for --config, and stop", False)
        if self.trains:
            yield Flag("dry_run", bool, "say what would be done (rows, tokens, steps, memory), and stop", False)


class Flag(NamedTuple):
    """What stands on a command line, and what ``--help`` says of it."""

    key: str
    hint: Any
    help: str
    default: Any
    rare: bool = False

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def repeatable(self) -> bool:
        return typing.get_origin(self.hint) is tuple

    @property
    def kind(self) -> Any:
        """Its type, without None and tuple around it.

        >>> Flag("eval_data", tuple[str, ...] | None, "held-out data", None).kind
        <class 'str'>
        """
        hint = self.hint
        while typing.get_origin(hint) in (types.UnionType, tuple):
            hint = typing.get_args(hint)[0]
        return hint


COMMANDS = {
    "demo": Command(config.Demo, "prefopt.demo.run:run"),
    "check": Command(config.Check, "prefopt.data.check:run", rest="data"),
    "new-model": Command(config.NewModel, "prefopt.model.new:run"),
    "sft": Command(config.SFT, "prefopt.train.run:sft", trains=True),
    "train": Command(config.Train, "prefopt.train.run:train", trains=True),
    "ppo": Command(config.PPO, "prefopt.rl.run:run", trains=True),
    "sweep": Command(config.Sweep, "prefopt.frontier.sweep:run", trains=True),
    "reward": Command(config.Reward, "prefopt.rl.reward_run:run", trains=True),
    "sample": Command(config.Sample, "prefopt.sample:run"),
    "score": Command(config.Score, "prefopt.score:run"),
    "report": Command(config.Report, "prefopt.report:run", rest="runs"),
}

# Settings of training that --help leaves to --help-all.
RARE = {"format", "tokens_per_microbatch", "optimizer", "weight_decay", "clip", "schedule", "overlong", "train_on"} | {
    "group_by_prompt", "save_every", "keep", "dtype", "device", "strict", "track"
}  # fmt: skip
