"""Text from anywhere, safe to show: what would steer a terminal, or hide, is spelt out."""

from __future__ import annotations

import re
import unicodedata
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:  # what is slow to import waits until something is shown
    from rich.console import Console

NO_WINDOW = 10_000
"""letters of a line where no window sets their number: what reads a pipe or a file wants one thing on one line"""


def console(file: IO[str] | None = None, terminal: bool | None = None) -> Console:
    """Where a command shows something, by default stdout; lines are wrapped on a terminal alone.

    ``terminal=None`` finds out whether it is one.
    """
    from rich.console import Console

    made = Console(file=file, force_terminal=terminal, highlight=False)
    if not made.is_terminal:
        made.width, made.soft_wrap = NO_WINDOW, True
    return made


def counted(number: float, thing: str) -> str:
    """
    >>> counted(1, "step"), counted(2000, "step"), counted(0.5, "epoch")
    ('1 step', '2,000 steps', '0.5 epochs')
    """
    shown = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
    return f"{shown} {thing}{'' if shown == '1' else 's'}"


def described(value: object) -> str:
    """How it prints, without the address of what has no other description, which no two processes share.

    >>> described(0.1), described(len), described(lambda: 0)
    ('0.1', '<built-in function len>', '<function <lambda>>')
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def printable(text: str) -> str:
    r"""``text`` with control and bidirectional characters and lone surrogates made visible.

    >>> printable("a\x1b[31mb\tc\nd")
    'a\\x1b[31mb\tc\nd'
    """
    return "".join(c if c in "\n\t" or not _steers(c) else ascii(c)[1:-1] for c in text)


_BIDIRECTIONAL = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDIRECTIONAL


def duration(seconds: float) -> str:
    """
    >>> duration(59.6), duration(3600 * 26 + 61)
    ('1:00', '26:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """A number of bytes (put "B" behind) or parameters, for people.

    >>> size(1_940_000_000), size(24_000_000), size(512_000), size(7)
    ('1.9 G', '24 M', '512 k', '7 ')
    """
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.{0 if count >= 10 * unit else 1}f} {letter}"
    return f"{count:.0f} "
