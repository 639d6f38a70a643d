"""What ``--help`` prints: one line for each command or flag, in at most 100 columns, without slow imports."""

from __future__ import annotations

import shutil
import textwrap
import typing
from pathlib import Path

import prefopt
from prefopt.commands import COMMANDS, Flag
from prefopt.config import flag

WIDTH = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))


def usage() -> str:
    """``prefopt --help``."""
    return f"""usage: prefopt COMMAND [FLAGS]

{prefopt.__doc__}

commands:
{table([(name, str(command.settings.__doc__)) for name, command in COMMANDS.items()])}

prefopt COMMAND --help shows the flags of a command, prefopt --version the version.
"""


def usage_of(name: str, everything: bool = False, loss: str | None = None) -> str:
    """``prefopt NAME --help``; ``everything``: ``--help-all``; ``loss``: of this one alone, what each option is."""
    command = COMMANDS[name]
    flags = list(command.flags())
    shown = [flag for flag in flags if everything or not flag.rare]
    required = [left(flag) for flag in flags if flag.required and flag.key != command.rest]
    rest = [f"{command.rest.upper()}..."] if command.rest else []
    parts = [
        " ".join(["usage: prefopt", name, *rest, *required, "[FLAGS]"]),
        str(command.settings.__doc__),
        "flags:\n" + table([(left(flag), right(flag)) for flag in shown]),
    ]
    if "loss" in (flag.key for flag in flags):
        parts.append(
            f"flags of --loss {loss}:\n" + table(options(loss))
            if loss
            else "losses, their flags and defaults (--loss NAME --help explains them):\n" + table(losses())
        )
    if name == "check" and everything:
        parts.append("layouts of the data, for --format:\n" + table(layouts()))
    if len(shown) < len(flags):
        parts.append(f"--help-all shows {len(flags) - len(shown)} more flags.")
    return "\n\n".join(parts) + "\n"


def left(flag_: Flag) -> str:
    """A flag and what it takes.

    >>> left(Flag("eval_every", int | None, "steps between evaluations", None))
    '--eval-every INTEGER'
    """
    takes = {float: " NUMBER", int: " INTEGER", Path: " PATH", str: " TEXT", bool: ""}
    return flag(flag_.key) + takes.get(flag_.kind, " CHOICE")


def right(flag_: Flag) -> str:
    """What it is, the choices, and the default.

    >>> right(Flag("optimizer", typing.Literal["adamw", "rmsprop"], "rmsprop is the paper's", "adamw"))
    "rmsprop is the paper's (adamw, rmsprop) [adamw]"
    """
    choices = typing.get_args(flag_.kind)
    silent = flag_.required or flag_.default is False or flag_.default in (None, ())
    said = (
        flag_.help
        + (f" ({', '.join(choices)})" if choices else "")
        + ("; repeatable" if flag_.repeatable else "")
        + ("" if silent else f" [{flag_.default}]")
    )
    return said.strip()


def losses() -> list[tuple[str, str]]:
    """The losses and their options.

    >>> dict(losses())["dpo"]
    '--beta 0.1 --label-smoothing 0.0'
    """
    from prefopt.losses import LOSSES, options_of

    rows = []
    for name in LOSSES:
        options = {key: option.default for key, option in options_of(name).items() if key != "nll_weight"}
        rows.append((name, " ".join(f"{flag(key)} {default}" for key, default in options.items())))
    return [*rows, ("any of pairs", "--nll-weight 0.0 (of imitating the chosen response)")]


def layouts() -> list[tuple[str, str]]:
    """The layouts of data, with the columns that they need.

    >>> dict(layouts())["kto-messages"]
    'LLaMA-Factory, ms-swift: messages and label'
    """
    from prefopt.data.formats import LAYOUTS

    return [(name, layout.about) for name, layout in LAYOUTS.items()]


def options(loss: str) -> list[tuple[str, str]]:
    """The options of one loss, by its name or ``my_file.py:MyLoss``.

    >>> options("ipo")[0]
    ('--tau NUMBER', 'strength of the tie to the reference; the margin aimed at is 1/(2τ) nats [0.1]')
    """
    from prefopt.losses import options_of

    kinds = (bool, int, float, str)  # another can be set from Python only
    flags = [Flag(key, o.type, o.help, o.default) for key, o in options_of(loss).items() if o.type in kinds]
    return [(left(flag), right(flag)) for flag in flags] or [("none", "")]


def table(rows: list[tuple[str, str]]) -> str:
    """Two columns.

    >>> print(table([("--beta", "strength of the tie"), ("--tau", "likewise")]))
      --beta  strength of the tie
      --tau   likewise
    """
    column = 4 + max(len(left) for left, _ in rows)
    lines = []
    for left, right in rows:
        first, *rest = textwrap.wrap(right, WIDTH - column, break_on_hyphens=False) or [""]
        lines += [f"  {left}".ljust(column) + first, *(" " * column + more for more in rest)]
    return "\n".join(line.rstrip() for line in lines)
