"""From a YAML file, or from flags, to a configuration, and back.

A key that does not exist, or has the wrong type, is an error that says where it stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
import types
import typing
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

from prefopt.config.checks import SettingError, flag
from prefopt.config.commands import Sweep, axes
from prefopt.errors import UserError
from prefopt.terminal import described

C = TypeVar("C")


class Setting(NamedTuple):
    """What somebody set, and where: "sweep.yaml:3"; "--grid"; or "" for a flag of the key's name.

    The value of a flag is text, or a list of texts.

    >>> Setting("fast", "sweep.yaml:3").says("learning_rate", "must be a number")
    'sweep.yaml:3: learning_rate must be a number'
    >>> Setting("fast").says("learning_rate", "must be a number")
    '--learning-rate must be a number'
    """

    value: Any
    where: str = ""

    @property
    def is_text(self) -> bool:
        return not self.where or self.where.startswith("--")

    def says(self, key: str, problem: str) -> str:
        return f"{self.where}: {key} {problem}" if self.where else f"{flag(key)} {problem}"


def load(path: str | Path, cls: type[C]) -> C:
    """The configuration in a YAML file. UserError names file, line and key.

    >>> import tempfile
    >>> from prefopt.config import Train
    >>> file = Path(tempfile.mkdtemp()) / "ipo.yaml"
    >>> _ = file.write_text("model: base\\ndata: prefs.jsonl\\nout: runs/a\\nloss: ipo\\ntau: 0.2\\n")
    >>> load(file, Train).loss_options
    {'tau': 0.2}
    """
    return build(cls, read(path), needed_by=str(path))


def build(cls: type[C], settings: Mapping[str, Setting], needed_by: str) -> C:
    """A ``cls`` from what was set, by key; what is no field of it is an option of its loss.

    UserError names the flag, or the file and line, of what is wrong; ``needed_by`` is who misses a key.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name != "loss_options"}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {key: _typed(key, settings[key], hints[key]) for key in fields if key in settings}
    others = [key for key in settings if key not in fields]
    losses = _losses(values, str(fields["loss"].default)) if "loss" in fields and others else []
    known = {key: option for loss in losses for key, option in _loss_options(loss).items()}
    named = values.get("loss")
    if isinstance(named, str) and ".py:" in named and (taken := fields.keys() & _loss_options(named).keys()):
        raise UserError(f"{named} has a field {min(taken)}, which is a setting of the run: give it another name")
    for key in others:
        if key not in known:
            raise UserError(unknown(key, settings[key], [*fields, *known], losses))
    options = {key: _typed(key, settings[key], known[key].type) for key in others}
    for key, field in fields.items():
        if field.default is dataclasses.MISSING and key not in values:
            raise UserError(f"{needed_by} needs {flag(key)}: {helps(cls)[key]}")
    if options:
        values["loss_options"] = options
    try:
        return cls(**values)
    except SettingError as error:
        raise UserError(settings.get(error.key, Setting("")).says(error.key, error.problem)) from None
    except UserError as error:  # a loss names its option first: "beta must be ..."
        key, _, problem = str(error).partition(" ")
        raise UserError(settings[key].says(key, problem)) if key in options else error from None


def read(path: str | Path) -> dict[str, Setting]:
    """What a YAML file sets, by key. UserError where it is no YAML, not flat, or a key comes twice."""
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        pairs = [] if root is None else root.value
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}:{root.start_mark.line + 1}: expected lines of the form key: value")
        settings: dict[str, Setting] = {}
        for key_node, value_node in pairs:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in settings:
                raise UserError(f"{path}:{line}: {key} is set twice, first at {settings[key].where}")
            try:
                settings[key] = Setting(loader.construct_object(value_node, deep=True), f"{path}:{line}")
            except ValueError as error:  # a date that is none
                raise UserError(f"{path}:{line}: {key} cannot be read: {error}") from None
        return settings
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text, at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None


CHOSEN = "# Chosen by prefopt"


def recorded(path: str | Path) -> dict[str, Any]:
    """What a run's ``config.yaml`` tells of it: what was set, and what was chosen and stands behind it as comments."""
    given, chosen, behind = read(path), {}, False
    for line in Path(path).read_text(encoding="utf-8").split("\n"):
        behind = behind or line.startswith(CHOSEN)
        if behind and (found := re.fullmatch(r"# (\w+): (.+)", line)):
            with contextlib.suppress(ValueError):  # a comment of someone's own
                chosen[found[1]] = json.loads(found[2])
    return chosen | {key: setting.value for key, setting in given.items()}


def dump(config: Any, chosen: Set[str] = frozenset()) -> str:
    """YAML that `load` reads back as an equal configuration, with the defaults of the loss filled in.

    The keys that were ``chosen`` stand behind as comments, which `load` passes over and `recorded` reads. A loss that
    was handed over from Python and has no name is written as it prints, for people only.

    >>> from prefopt.config import Demo
    >>> print(dump(Demo(seed=3)), end="")
    out: runs/demo
    seed: 3
    full: false
    pairs: null
    seeds: null
    resume: false
    """
    lines = plain(config)
    given = {key: value for key, value in lines.items() if key not in chosen}
    comments = [f"# {key}: {json.dumps(value)}\n" for key, value in lines.items() if key in chosen]
    if comments:
        comments.insert(0, f"{CHOSEN}; another run that is given this file chooses anew:\n")
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True) + "".join(comments)


def chosen(given: Any, resolved: Any) -> set[str]:
    """The keys of ``resolved`` that nobody set: what was None when it was ``given``, and defaults of the loss.

    >>> from prefopt.config import Train
    >>> given = Train(model="base", data=("prefs.jsonl",), out=Path("run"), loss="ipo")
    >>> sorted(chosen(given, dataclasses.replace(given, warmup_steps=3)))
    ['nll_weight', 'tau', 'warmup_steps']
    """
    before, options = vars(given), getattr(given, "loss_options", None) or {}
    return {
        key
        for key, value in plain(resolved).items()
        if value is not None and key not in options and before.get(key) is None
    }


def plain(config: Any) -> dict[str, Any]:
    """What ``dump`` writes, by key: the options of a loss among them, those that were not set too."""
    lines: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "loss_options":
            if isinstance(config.loss, str) and not isinstance(config, Sweep):
                defaults = {name: option.default for name, option in _loss_options(config.loss).items()}
                lines |= {name: value for name, value in defaults.items() if isinstance(value, _PLAIN)}
            lines |= value or {}
        elif field.name == "loss":
            lines["loss"] = value if isinstance(value, str) else described(value)
        else:
            lines[field.name] = (
                str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            )
    return lines


def helps(cls: type) -> dict[str, str]:
    """The string below each field."""
    from docstring_parser import parse_from_object

    found = [parse_from_object(base).params for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    return {param.arg_name: param.description or "" for params in found for param in params}


def _losses(values: Mapping[str, Any], default: str) -> list[str]:
    """The losses that will be trained with: one, or those of a grid."""
    try:
        return axes(values["grid"])["loss"]
    except (KeyError, SettingError):  # what is wrong with a grid it says itself
        return [values.get("loss", default)]


def _loss_options(loss: str) -> dict[str, Any]:
    from prefopt.losses import options_of

    return options_of(loss)


def unchanged(before: Mapping[str, Any], now: Mapping[str, Any], keys: Set[str], begun: str) -> None:
    """SettingError where one of the ``keys`` is ``now`` not what it was ``before``, when the work was ``begun``."""
    for key, value in now.items():
        was = before.get(key)
        if key in keys and was != value:
            instead = "leave it as it was to continue, or choose another --out"
            raise SettingError(key, f"is {value} and was {was} when {begun}: {instead}")


MEANT = {
    "model": "policy", "policy": "model", "model_name_or_path": "model", "ref_model": "reference",
    "dataset": "data", "dataset_name": "data", "input": "data", "output": "out", "output_dir": "out",
    "lr": "learning_rate", "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size", "max_grad_norm": "clip", "lr_scheduler_type": "schedule",
    "loss_type": "loss", "bf16": "dtype", "report_to": "track", "gradient_checkpointing": "tokens_per_microbatch",
}  # fmt: skip
"""what other trainers, or our own other commands, call it"""


def unknown(key: str, setting: Setting, known: list[str], losses: list[str]) -> str:
    """What to say of a key that is neither a field nor an option of these losses."""
    from prefopt.losses import LOSSES

    spell = str if setting.where else flag
    if losses and any(key in _loss_options(other) for other in LOSSES):
        options = dict.fromkeys(option for loss in losses for option in _loss_options(loss))
        return setting.says(
            key, f"has no effect on {', '.join(losses)}, whose options are {', '.join(options) or 'none'}"
        )
    plain = key.replace("-", "_")
    near = [MEANT[plain]] if MEANT.get(plain) in known else difflib.get_close_matches(plain, known, n=1)
    what = f"{setting.where}: unknown key {key}" if setting.where else f"unknown flag {flag(key)}"
    return what + (f"; did you mean {spell(near[0])}?" if near else "")


def _typed(key: str, setting: Setting, hint: Any) -> Any:
    try:
        return _conform(_read_text(setting.value, hint) if setting.is_text else setting.value, hint)
    except TypeError as expected:
        value = setting.value
        shown = repr(value) if isinstance(value, str) else "null" if value is None else _said(value)
        raise UserError(setting.says(key, f"must be {expected}, not {shown}")) from None


def _read_text(text: Any, hint: Any) -> Any:
    """A flag's text as YAML would read it, where something else than text is wanted."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = typing.get_args(hint)[0]
    if hint is bool:
        return {"true": True, "false": False}.get(text, text)
    if hint is int:
        with contextlib.suppress(ValueError):
            return int(text)
    return text


def _conform(value: Any, hint: Any) -> Any:
    """``value`` as the type ``hint``; TypeError says what was expected."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # X | None
        return None if value is None else _conform(value, args[0])
    if origin is tuple:
        return tuple(_conform(item, args[0]) for item in _items(value))
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
        raise TypeError(f"{', '.join(args[:-1])} or {args[-1]}")
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-6 as text: it wants 1.0e-6
        with contextlib.suppress(ValueError):
            return float(value)
    if hint not in _KINDS:
        return value  # an option of the user's own loss, which says itself what it thinks of it
    accepted, expected = _KINDS[hint]
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise TypeError(expected)
    return Path(os.path.expanduser(value)) if hint is Path else value


def _items(value: Any) -> list[Any]:
    """A list as it is; one value as a list of one; and a mapping as flags would say it, KEY=VALUE or KEY=VALUE,VALUE.

    >>> _items({"beta": [0.1, 1], "loss": "ipo"})
    ['beta=0.1,1', 'loss=ipo']
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return [value]
    return [f"{key}={','.join(map(_said, _items(values)))}" for key, values in value.items()]


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_PLAIN = bool, int, float, str, list, types.NoneType
"""what YAML can say; an option's default may be another object, which can be set from Python only"""
_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
    Path: (str, "a path"),
}
