"""The prompts of any data, without their responses: what a policy is asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from prefopt.data.encode import Encoder
from prefopt.data.formats import ALONE
from prefopt.data.formats.layout import ANSWERS
from prefopt.data.mix import open_source
from prefopt.data.read import read_rows
from prefopt.errors import UserError
from prefopt.progress import untold
from prefopt.terminal import counted
from prefopt.types import Content, Example, Finding


def prompts(
    specs: Sequence[str],
    format: str | None = None,
    note: Callable[[str], object] = untold,
    repeated: Callable[[str], object] = untold,
) -> list[Example]:
    """The different prompts of these data, each where it stands first; of a row with only a ``prompt``, that.

    UserError where there is none. ``note`` hears of rows that cannot be read, ``repeated`` of those with one prompt.
    """
    found: dict[Content, Example] = {}
    rows = 0
    findings: list[Finding] = []
    for item in itertools.chain.from_iterable(_examples(spec, format) for spec in specs):
        if isinstance(item, Finding):
            findings.append(item)
        else:
            rows += 1
            found.setdefault(item.prompt, item)
    if not found:
        raise UserError(f"{', '.join(specs)}: there is no prompt in it{f', {findings[0]}' if findings else ''}")
    if findings:
        note(f"no response to {counted(len(findings), 'row')} that cannot be read, the first at {findings[0]}")
    if len(found) < rows:
        repeated(f"{counted(rows, 'row')} with {counted(len(found), 'different prompt')}: each is answered once")
    return list(found.values())


def tell_of_text(encoder: Encoder, asked: Sequence[Example], note: Callable[[str], object]) -> None:
    """That text is read as it is, where the tokenizer has a template that messages would go through."""
    count = sum(not example.is_chat for example in asked)
    if count and not encoder.bare:
        note(f"{counted(count, 'prompt')} of text, read as written: only messages go through the model's chat template")


def _examples(spec: str, format: str | None) -> Iterator[Example | Finding]:
    rows = read_rows(spec)
    first = next(rows, None)
    if format is None and first and not first.fields.keys() & ANSWERS and ALONE.fits(first.fields):
        return map(ALONE.read, itertools.chain([first], rows))
    return iter(open_source(spec, format))
