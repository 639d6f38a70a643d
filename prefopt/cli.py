"""The command line: flags and the YAML file of ``--config`` become one configuration, and one function gets it.

Nothing slow is imported until a command runs, so ``--help`` answers at once.

Exit codes: 0 done; 1 failed; 2 the user's input is wrong; 75 stopped by a signal, with what was done kept;
130 interrupted, by SIGINT, SIGTERM or SIGHUP, where there was nothing to go on from. With PREFOPT_DEBUG=1 in the
environment, what a user did wrong shows its traceback too.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import prefopt
from prefopt import config, usage
from prefopt.commands import COMMANDS, Command
from prefopt.config import Setting
from prefopt.environment import prepare
from prefopt.errors import RunFailed, Stopped, UserError
from prefopt.signals import term_interrupts

HELP = {"--help", "-h", "--help-all"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    prepare()
    try:
        with term_interrupts():
            _run(argv)
        sys.stdout.flush()
        return 0
    except (UserError, RunFailed, Stopped) as error:
        if os.environ.get("PREFOPT_DEBUG"):
            traceback.print_exc()
        print(f"prefopt: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1 if isinstance(error, RunFailed) else 75
    except KeyboardInterrupt:
        print("prefopt: interrupted; finished files are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read our output, such as `head`, has seen enough
        _say_no_more()
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"prefopt: {error.filename or 'the output'} cannot be written: {error.strerror}", file=sys.stderr)
            _say_no_more()
            return 1
        traceback.print_exc()
        print(f"prefopt: failed by a fault of its own: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _say_no_more() -> None:
    """Python must not flush, as it ends, into an output that takes nothing."""
    with suppress(OSError):  # where stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h", "--help-all", "help"):
        print(usage.usage(), end="")
    elif argv[0] == "--version":
        print(f"prefopt {prefopt.__version__}")
    elif argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {argv[0]}; {hint}")
    elif HELP & set(argv):
        print(usage.usage_of(argv[0], everything="--help-all" in argv, loss=_loss_among(argv)), end="")
    else:
        _execute(argv[0], COMMANDS[argv[0]], argv[1:])


def _loss_among(words: list[str]) -> str | None:
    """
    >>> _loss_among(["train", "--loss", "ipo", "--help"]), _loss_among(["--loss=ipo"]), _loss_among(["--loss"])
    ('ipo', 'ipo', None)
    """
    named = [value for word, value in zip(words, [*words[1:], "-"], strict=True) if word == "--loss"]
    named += [word.removeprefix("--loss=") for word in words if word.startswith("--loss=")]
    return next((name for name in named if not name.startswith("-")), None)


def _execute(name: str, command: Command, words: list[str]) -> None:
    given = parse(command, words)
    file, printing = given.pop("config", None), given.pop("print_config", "false") == "true"
    dry_run = command.trains and given.pop("dry_run", "false") == "true"
    settings = config.read(file) if file else {}
    settings |= {key: Setting(value) for key, value in given.items()}
    resolved: Any = config.build(command.settings, settings, needed_by=f"prefopt {name}")
    if not printing:
        command.run(resolved, dry_run)
    elif dry_run or getattr(resolved, "resume", False):
        raise UserError(f"--print-config runs nothing: drop it, or {'--dry-run' if dry_run else '--resume'}")
    else:
        print(config.dump(resolved), end="")


def parse(command: Command, words: list[str]) -> dict[str, Any]:
    """The text of each flag by key, a list where the flag is repeatable.

    A flag that is not the command's own is kept as well: it may be an option of a loss.

    >>> parse(COMMANDS["train"], "--data a --data b --resume --loss=ipo --tau 0.1".split())
    {'data': ['a', 'b'], 'resume': 'true', 'loss': 'ipo', 'tau': '0.1'}
    >>> parse(COMMANDS["check"], ["--strict", "--", "--odd-name.jsonl"])
    {'strict': 'true', 'data': ['--odd-name.jsonl']}
    """
    flags = {flag.key: flag for flag in command.flags()}
    given: dict[str, Any] = {}
    left, flag = list(words), "data"
    while left:
        word = left.pop(0)
        if word == "--" and command.rest:  # whatever follows is no flag, even if it begins like one
            given.setdefault(command.rest, []).extend(left)
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            key = name.removeprefix("--").replace("-", "_")
        elif command.rest:
            key, equals, value = command.rest, "=", word
        else:
            raise UserError(f"unexpected {word!r}: a value follows its flag, as in --{flag.replace('_', '-')} {word}")
        switch = key in flags and flags[key].kind is bool
        if not equals:
            follows = bool(left) and not left[0].startswith("--")
            if key in flags and not switch and not follows:
                raise UserError(f"{name} needs a value: {flags[key].help}")
            value = left.pop(0) if follows and not switch else "true"
        if switch and value not in ("true", "false"):
            raise UserError(f"{name} must be true or false, not {value!r}")
        flag = key if key in flags and flags[key].repeatable else "data"  # that a word too many may be meant for
        if key in flags and flags[key].repeatable:
            given.setdefault(key, []).append(value)
        elif key in given:
            raise UserError(f"{name} is given twice")
        else:
            given[key] = value
    return given
