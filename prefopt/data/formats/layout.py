"""A layout, the table of them all, and the guess which one some rows have."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefopt.data.formats.columns import MESSAGES, TEXT, BadRow, Kind, shown, type_of
from prefopt.data.formats.conversation import SCORES, Content, Fields
from prefopt.data.read import Row
from prefopt.errors import UserError
from prefopt.types import Example, Finding

# what a row tells; where two layouts fit, the one that tells more wins
PROMPT, DEMONSTRATION, UNPAIRED, PREFERENCE = range(4)

# names under which people keep what we call "prompt"
PROMPTS = {"prompt", "prompts", "question", "instruction", "input", "inputs", "query", "context", "history", "user"}
PROMPTS |= {"human", "messages", "conversation", "conversations", "text", "post", "article", "document", "problem"}
PROMPTS |= {"request", "task", "system"}
# names of columns that hold responses
ANSWERS = {"chosen", "rejected", "completion", "responses", "answers", "output", "response", "completions"}


Convert = Callable[[Fields], Content]


def always(row: Fields) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Layout:
    """One way to lay out a row.

    ``columns`` must be there, with these types; ``optional`` ones may be. ``guess``: may a row that has
    them be taken for this layout without being told so?

    >>> answers = LAYOUTS["stackexchange"]
    >>> answers.read(Row({"question": "2+2?", "response_j": "4", "response_k": "5"}, "a.jsonl:1")).prompt
    (Message(role='user', content='2+2?'),)
    >>> str(answers.read(Row({"question": "2+2?", "response_j": None}, "a.jsonl:2")))
    'a.jsonl:2: "response_j" is null'
    """

    task: int
    name: str
    about: str
    columns: Mapping[str, Kind]
    convert: Convert
    optional: tuple[str, ...] = ()
    guess: Callable[[Fields], bool] = always

    def fits(self, row: Fields) -> bool:
        return all(name in row and kind.holds(row[name]) for name, kind in self.columns.items())

    def lacks(self, row: Fields) -> list[str]:
        return [name for name in self.columns if name not in row]

    def lacks_one(self, row: Fields) -> bool:
        """All columns but one are there, with their types."""
        return len(self.lacks(row)) == 1 and all(k.holds(row[name]) for name, k in self.columns.items() if name in row)

    def may_be(self, row: Fields) -> bool:
        return self.fits(row) and self.guess(row)

    def unread(self, row: Fields) -> list[str]:
        """The columns that this layout does not look at."""
        known = {*self.columns, *self.optional}
        known |= {form.format(side) for form in SCORES for side in ("chosen", "rejected")}
        return [name for name in row if name not in known]

    def read(self, row: Row) -> Example | Finding:
        """The row as an Example, or what is wrong with it."""
        try:
            for bad in self.amiss(row.fields):
                raise bad
            example = Example(*self.convert(row.fields), row.source)
            for text in example.texts():
                text.encode()
            return example
        except BadRow as bad:
            return Finding(row.source, bad.kind, str(bad))
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            return Finding(row.source, "encoding", f"the text holds {half}, half a character")

    def amiss(self, row: Fields) -> Iterator[BadRow]:
        """For each column that is not there, or not of its type, what is wrong with it."""
        for name, kind in self.columns.items():
            if name not in row:
                close = difflib.get_close_matches(name, set(row) - set(self.columns), n=1)
                yield BadRow("missing", f'no "{name}"' + (f'; if "{close[0]}" is meant, rename it' if close else ""))
            elif row[name] is None:
                yield BadRow("null", f'"{name}" is null')
            elif not kind.holds(row[name]):
                yield BadRow("type", f'"{name}" is {shown(row[name])}, not {kind.name}')


LAYOUTS: dict[str, Layout] = {}


def _definer(task: int) -> Callable[..., Callable[[Convert], Convert]]:
    def define(
        name: str, about: str, *, optional: str = "", guess: Callable[[Fields], bool] = always, **columns: Kind
    ) -> Callable[[Convert], Convert]:
        def register(convert: Convert) -> Convert:
            assert name not in LAYOUTS, name
            LAYOUTS[name] = Layout(task, name, about, columns, convert, tuple(optional.split()), guess)
            return convert

        return register

    return define


# decorators of a function row -> (prompt, responses): what it is called, what it is, the types of its columns
preference = _definer(PREFERENCE)
unpaired = _definer(UNPAIRED)
demonstration = _definer(DEMONSTRATION)


ALL_OF_THEM = "prefopt check --help-all lists all layouts"


def named(name: str) -> Layout:
    """The layout of that name; UserError with the nearest otherwise."""
    if name not in LAYOUTS:
        close = difflib.get_close_matches(name.lower(), LAYOUTS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"there is no format {name}; {hint}{ALL_OF_THEM}")
    return LAYOUTS[name]


def detect(rows: Sequence[Row], name: str) -> Layout:
    """The layout that at least half of the rows fit: which tells most, with the most columns, or reads those and more.

    UserError, naming the columns and the way out, when none does or two fit equally.

    >>> detect([Row({"question": "2+2?", "response_j": "4", "response_k": "5"}, "a.jsonl:1")], "a.jsonl").name
    'stackexchange'
    """
    fitting = [one for one in LAYOUTS.values() if 2 * sum(one.may_be(row.fields) for row in rows) >= len(rows)]
    if not fitting:
        raise UserError(f"{name}: {_no_layout(rows)}")
    most = max((one.task, len(one.columns)) for one in fitting)
    best = [one for one in fitting if (one.task, len(one.columns)) == most]
    rest = [one for one in fitting if one.task == most[0] and one not in best]
    needed = {column for one in best for column in one.columns}
    best = [one for one in rest if needed <= {*one.columns, *one.optional}] or best  # its own column would go unread
    if len(best) > 1:
        choices = " or ".join(f"--format {one.name} ({one.about})" for one in best)
        raise UserError(f"{name}: the rows fit {len(best)} layouts equally; say {choices}")
    return best[0]


SHOWN = 20
"""columns that are named where none fits"""


def _no_layout(rows: Sequence[Row]) -> str:
    """What the columns are, and what they might have been meant to be."""
    columns = {column: value for row in reversed(rows) for column, value in row.fields.items()}
    found = ", ".join(f'"{column[:40]}" ({type_of(value)})' for column, value in [*columns.items()][:SHOWN])
    found += f" and {len(columns) - SHOWN:,} more" if len(columns) > SHOWN else ""
    parts = [f"no layout fits its columns {found or '(none)'}"]
    if meant := _renamed(columns):
        parts.append('column "{}": did you mean "{}"? Then rename it'.format(*meant))
    fitting = (one for one in LAYOUTS.values() if one.fits(columns) and one.name != "preference-implicit")
    read = [one for one in fitting if isinstance(one.read(Row(columns, "")), Example)]
    if told := " or ".join(f"--format {one.name} ({one.about})" for one in read):
        parts.append(f"or say {told}" if meant else f"say {told}")
    if asks_only(rows):
        parts.append("prompts alone are for prefopt sample and prefopt ppo; here their responses are needed too")
    if len(parts) == 1:
        parts += [_nearest(columns), ALL_OF_THEM]
    return "; ".join(parts)


def _nearest(columns: Fields) -> str:
    """The layouts of which most is there, and what is not."""
    alike = [one for one in LAYOUTS.values() if one.columns.keys() & columns]
    amiss = {one: [str(bad) for bad in one.amiss(columns)] for one in alike}
    near = [one for one in alike if amiss[one]]
    near.sort(key=lambda one: (len(one.lacks(columns)), -len(one.columns), len(amiss[one])))
    if not near:
        return "rename them to prompt, chosen and rejected, or as another layout has them"
    return "they come nearest to " + ", ".join(f"{one.name} ({', '.join(amiss[one])})" for one in near[:3])


def asks_only(rows: Sequence[Row]) -> bool:
    """Whether there are prompts, and nothing that could be a response to one, its column misspelt.

    A single word may be one by its column's name only: else it is a category, or an identifier.
    """
    asked = any((TEXT | MESSAGES).holds(row.fields.get("prompt")) for row in rows)
    others = [column for row in rows for column in row.fields.items() if column[0] != "prompt"]
    if not asked or any(isinstance(v, list | dict) or (isinstance(v, str) and len(v.split()) > 1) for _, v in others):
        return False
    names = {name.lower() for name, value in others if isinstance(value, str)}
    return not any(difflib.get_close_matches(name, ANSWERS, n=1, cutoff=0.75) for name in names)


def _renamed(columns: Fields) -> tuple[str, str] | None:
    """(column, the name that it should have), where one layout lacks a single column that another could be."""
    for one in sorted(LAYOUTS.values(), key=lambda one: (-one.task, -len(one.columns))):
        missing = one.lacks(columns)
        spare = [c for c in columns if c not in one.columns]
        if one.lacks_one(columns) and len(one.columns) > 1:
            close = [c for c in spare if missing == ["prompt"] and c.lower() in PROMPTS]
            close += difflib.get_close_matches(missing[0], spare, n=1, cutoff=0.75)
            close = [c for c in close if one.fits({**columns, missing[0]: columns[c]})]
            if close:
                return close[0], missing[0]
    return None
