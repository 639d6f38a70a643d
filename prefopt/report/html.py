"""From values to HTML: every text is escaped by the template engine, and bounded here."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from prefopt.terminal import printable

LONGEST = 2000
"""characters of one text that a page shows"""


def shown(value: object, limit: int = LONGEST) -> str:
    r"""``value`` as text that cannot steer its reader: control and bidirectional characters visible, and not endless.

    >>> shown("a\u202eb", 10), shown("0123456789abc", 10)
    ('a\\u202eb', '0123456789 … (3 more characters)')
    """
    text = str(value)
    more = f" … ({len(text) - limit:,} more characters)" if len(text) > limit else ""
    return printable(text[:limit]) + more


def ending(value: object, limit: int = 600) -> str:
    """The end of a long text, such as a conversation's last turn, which is what was answered.

    >>> ending("0123456789abc", 10)
    '(3 characters before) … 3456789abc'
    """
    text = str(value)
    before = f"({len(text) - limit:,} characters before) … " if len(text) > limit else ""
    return before + shown(text[-limit:])


def number(text: str) -> str:
    """With a minus sign, which is as wide as a plus, where a hyphen stands before a figure.

    >>> number("-0.5"), number("1e-05")
    ('−0.5', '1e−05')
    """
    return re.sub(r"-(?=[\d.])", "−", text)


def flags(text: str) -> Markup:
    """Escaped, and with command-line flags as code, so that no line ends within one.

    >>> flags("set --beta < 1")
    Markup('set <code>--beta</code> &lt; 1')
    """
    return Markup(re.sub(r"(--[a-z][a-z-]*)", r"<code>\1</code>", str(escape(text))))


environment = Environment(
    loader=PackageLoader("prefopt.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.filters |= {"shown": shown, "ending": ending, "number": number, "flags": flags}


def part(name: str, *arguments: Any, **named: Any) -> Any:
    """A macro of parts.html, as Markup."""
    return getattr(environment.get_template("parts.html").module, name)(*arguments, **named)
