"""From a name and options to a loss."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args

from prefopt.errors import UserError
from prefopt.losses.base import Loss
from prefopt.losses.compose import WithNLL
from prefopt.losses.custom import Custom, load, nearest
from prefopt.losses.reference_free import CPO, ORPO, SFT, SimPO, Unlikelihood
from prefopt.losses.variants import APODown, APOZero, BCOPair, DiscoPOP, EXOPair, NCAPair, SPPOHard
from prefopt.losses.with_reference import DPO, IPO, KTO, Hinge, IPOMean, PlackettLuce, Robust, SigmoidNorm

LOSSES: dict[str, type[Loss]] = {
    "dpo": DPO,
    "robust": Robust,
    "ipo": IPO,
    "ipo_mean": IPOMean,
    "hinge": Hinge,
    "sigmoid_norm": SigmoidNorm,
    "orpo": ORPO,
    "simpo": SimPO,
    "cpo": CPO,
    "plackett_luce": PlackettLuce,
    "kto": KTO,
    "sft": SFT,
    "unlikelihood": Unlikelihood,
    "exo_pair": EXOPair,
    "nca_pair": NCAPair,
    "bco_pair": BCOPair,
    "sppo_hard": SPPOHard,
    "apo_zero": APOZero,
    "apo_down": APODown,
    "discopop": DiscoPOP,
}


TYPES: dict[Any, Any] = {kind.__name__: kind for kind in (float, int, bool, str)}  # annotations are often text


class Option(NamedTuple):
    """A field of a loss, as the command line shows it. ``default`` is dataclasses.MISSING where there is none."""

    type: type
    default: Any
    help: str


def options_of(spec: str | Callable[..., Any]) -> dict[str, Option]:
    """The options of a loss: its fields, and ``nll_weight`` where one example is a pair.

    >>> options_of("dpo")["beta"]
    Option(type=<class 'float'>, default=0.1, help='strength of the tie to the reference: larger stays closer')
    >>> list(options_of("simpo"))
    ['beta', 'gamma', 'nll_weight']
    """
    return _options(_definition(spec))


def make_loss(spec: str | Callable[..., Any], options: Mapping[str, object] | None = None) -> Loss:
    """A loss from its name, or ``my_file.py:MyLoss``, or your own class, instance or function; and its options.

    Values may be text, as from a command line. UserError where the name or an option does not exist or a value
    is of the wrong type or out of range.

    >>> make_loss("dpo", {"beta": "0.3"})
    DPO(beta=0.3, label_smoothing=0.0)
    >>> make_loss("dpo", {"betta": 0.3})
    Traceback (most recent call last):
    prefopt.errors.UserError: dpo has no option betta; did you mean beta? It has beta, label_smoothing, nll_weight
    """
    definition, given = _definition(spec), dict(options or {})
    label = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
    known = _options(definition)
    for name in given:
        if name not in known:
            raise UserError(f"{label} has no option {name}{nearest(name, known)} It has {', '.join(known) or 'none'}")
    for name, option in known.items():
        if option.default is dataclasses.MISSING and name not in given:
            raise UserError(f"{label} needs a value for {name}")

    values = {name: _convert(name, value, known[name].type) for name, value in given.items()}
    nll_weight = values.pop("nll_weight", 0.0) if _takes_nll_weight(definition) else 0.0
    try:
        loss: Any = definition(**values) if inspect.isclass(definition) else definition
    except (TypeError, ValueError) as error:  # what a loss of the user's own says of its options
        raise UserError(f"{label}: {error}") from error
    if not isinstance(loss, (*LOSSES.values(), WithNLL, Custom)):
        loss = Custom(loss, label)
    return WithNLL(loss, nll_weight) if nll_weight else loss


def spec_of(loss: Any) -> tuple[Any, dict[str, Any]]:
    """The way back: what ``make_loss`` takes to make an equal loss. One that has no name stands for itself.

    >>> spec_of(make_loss("ipo", {"tau": 0.2, "nll_weight": 1.0}))
    ('ipo', {'tau': 0.2, 'nll_weight': 1.0})
    """
    if isinstance(loss, WithNLL):
        spec, options = spec_of(loss.loss)
        return spec, options | {"nll_weight": loss.nll_weight}
    names = {definition: name for name, definition in LOSSES.items()}
    return (names[type(loss)], dataclasses.asdict(loss)) if type(loss) in names else (loss, {})


def _definition(spec: str | Callable[..., Any]) -> Any:
    """A loss's class; or, for one without options, the function or instance itself."""
    if not isinstance(spec, str):
        return spec
    if ".py:" in spec:
        file, name = spec.rsplit(":", 1)
        return load(Path(file), name)
    if spec.endswith(".py"):
        raise UserError(f"{spec} names no loss: write {spec}:MyLoss")
    if spec not in LOSSES:
        raise UserError(
            f"there is no loss {spec}{nearest(spec, LOSSES)} There are {', '.join(LOSSES)}, or my_file.py:MyLoss"
        )
    return LOSSES[spec]


def _takes_nll_weight(definition: Any) -> bool:
    """Not where the loss has a field of that name itself."""
    own = getattr(definition, "__dataclass_fields__", {})
    return getattr(definition, "unit", Loss.unit) == "pair" and "nll_weight" not in own


def _options(definition: Any) -> dict[str, Option]:
    from docstring_parser import parse_from_object  # reads the strings below the fields

    options = {}
    if inspect.isclass(definition) and dataclasses.is_dataclass(definition):
        try:
            helps = {param.arg_name: param.description or "" for param in parse_from_object(definition).params}
        except OSError:  # a class typed at the prompt has no source
            helps = {}
        for field in dataclasses.fields(definition):
            if field.init:
                made = field.default_factory
                default = field.default if made is dataclasses.MISSING else made()
                options[field.name] = Option(_kind(field.type), default, helps.get(field.name, ""))
    if _takes_nll_weight(definition):
        options["nll_weight"] = Option(float, 0.0, "weight of imitating the chosen response beside the loss")
    return options


def _kind(annotation: Any) -> Any:
    """
    >>> _kind("float"), _kind("str | None"), _kind(int | None), _kind("list[float]")
    (<class 'float'>, <class 'str'>, <class 'int'>, 'list[float]')
    """
    if isinstance(annotation, str):  # as most are
        return TYPES.get(annotation.removesuffix("| None").strip(), annotation)
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if isinstance(annotation, UnionType) and len(kinds) == 1 else annotation


def _convert(name: str, value: object, to: type) -> Any:
    """``value``, perhaps text from a command line, as a float, int, bool or str; or a UserError that names the key."""
    text = str(value).strip()
    if to is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if to is str and isinstance(value, str):
        return value
    if to in (int, float) and not isinstance(value, bool):
        try:
            return to(text)
        except ValueError:
            pass
    if to not in (bool, str, int, float):
        raise UserError(f"{name} is a {getattr(to, '__name__', to)}, which can be set from Python only")
    kind = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}[to]
    raise UserError(f"{name} must be {kind}, not {value!r}")
