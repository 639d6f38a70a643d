"""What a preference file holds, before anything is trained on it: counts, lengths, and what is odd, by line.

``check`` makes a Report, which is pure data; ``render`` shows it on a screen, ``to_json`` to a machine.
"""

from __future__ import annotations

import itertools
import json
import re
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import xxhash
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from prefopt.data.dataset import Usable, volume
from prefopt.data.encode import Draft, EncodedData, Encoder, Part, fit
from prefopt.data.findings import by_kind
from prefopt.data.mix import Source, open_sources
from prefopt.display import Display
from prefopt.errors import UserError
from prefopt.progress import UNSEEN, Advance, Shown
from prefopt.terminal import console, counted, printable
from prefopt.types import Content, Example, Finding, Overlong, TrainOn, comparisons

if TYPE_CHECKING:
    from prefopt.config import Check

POLICIES: tuple[Overlong, ...] = get_args(Overlong)
QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
SHOWN = 3  # places shown per kind of finding


@dataclass(frozen=True, slots=True)
class Cut:
    """What one policy would do: examples beyond the limit, dropped among them, responses without their end token."""

    overlong: int
    dropped: int
    ends_lost: int

    def __add__(self, other: Cut) -> Cut:
        return Cut(self.overlong + other.overlong, self.dropped + other.dropped, self.ends_lost + other.ends_lost)


@dataclass(slots=True)
class Report:
    """Everything that ``prefopt check`` knows.

    ``sample``: one example, a heading -> its text. ``lengths``: tokens of prompt, response and both, by quantile.
    """

    counts: dict[str, int]
    layouts: list[str]
    sample: dict[str, str]
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    max_length: int | None = None
    cuts: dict[str, Cut] = field(default_factory=dict)


def check(
    specs: Sequence[str],
    format: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    overlong: Overlong = "drop",
    train_on: TrainOn = "last-assistant",
    show: Shown = UNSEEN,
) -> Report:
    """Reads all of it as training would, and reports, holding none. UserError where files cannot be read at all.

    With a ``tokenizer`` it is read twice: how a text is encoded follows from all of them.
    """
    sources = open_sources(specs, format, alone=True)
    encoder = None if tokenizer is None else Encoder(tokenizer, max_length, overlong, train_on)
    with show.pass_("reading", volume(sources), "B") as advance:
        seen = Seen(sources, advance)
        usable = iter(seen)
        survey = encoder.survey(usable) if encoder else None
        deque(usable, maxlen=0)  # what is left of them: all, where nothing was surveyed
    report = Report(seen.counts(), [], _written(seen.first), [*seen.unread, *seen.odd])
    for source in sources:
        how = "guessed" if source.guessed else "as told"
        report.layouts.append(f"{source.name}: {source.layout.name}, {source.layout.about} ({how})")
        if source.unread:
            report.notes.append(source.unread_note)
    if encoder and survey and report.counts["usable"]:
        report.notes += encoder.prepare(survey)
        with show.pass_("encoding", volume(sources), "B") as advance:
            _tokens(report, encoder, encoder.parts(Usable(sources, advance), survey))
    return report


class Seen(Usable):
    """Counts what there is without a tokenizer as the examples stream by."""

    first: Example

    def __init__(self, sources: Sequence[Source], advance: Advance):
        super().__init__(sources, advance)
        self._counts = Counter(examples=0, pairs=0, responses=0)
        self._prompts = array("Q")

    def met(self, example: Example) -> None:
        if not self._prompts:
            self.first = example
        self._counts.update(examples=1, pairs=_pairs(example), responses=len(example.responses))
        self._prompts.append(xxhash.xxh3_64_intdigest(json.dumps(example.prompt).encode()))

    def counts(self) -> dict[str, int]:
        prompts = len(np.unique(self._prompts))
        return {"rows": self.rows, **self._counts, "prompts": prompts, "usable": sum(self.of_each)}


def _pairs(example: Example) -> int:
    """Comparisons that the scores of one example decide: 1 for a pair, up to K(K-1)/2 for a ranking."""
    return len(list(comparisons([response.score for response in example.responses])))


def _tokens(report: Report, encoder: Encoder, parts: Iterable[Part]) -> None:
    """Adds what only a tokenizer can tell."""
    lengths = {name: array("l") for name in ("prompt", "response", "prompt + response")}
    cuts, kept, joints = {policy: Cut(0, 0, 0) for policy in POLICIES}, EncodedData(), list[Finding]()
    report.counts["usable"] = 0
    for part in parts:
        report.findings += part.findings
        joints += borders(part)
        for draft in part.drafts:
            example = part.examples[draft.index - part.start]
            if not lengths["prompt"]:
                report.sample = _sample(encoder.tokenizer, draft, example)
            report.counts["usable"] += encoder.keep(draft, example, kept) is not None
            lengths["prompt"].append(len(draft.prompt))
            lengths["response"].extend(map(len, draft.responses))
            lengths["prompt + response"].extend(len(draft.prompt) + len(response) for response in draft.responses)
            if encoder.max_length is not None and draft.length > encoder.max_length:
                cuts = {policy: cut + _cut(encoder, draft, policy) for policy, cut in cuts.items()}
    report.findings += [*joints, *kept.findings]
    report.max_length = encoder.max_length
    report.lengths = {name: _quantiles(values) for name, values in lengths.items() if values}
    if encoder.max_length is not None:
        report.cuts = {str(policy): cut for policy, cut in cuts.items()}


def borders(part: Part) -> Iterator[Finding]:
    """Where a prompt is no token prefix: as one text, a token would reach across the border to the response."""
    texts = [item.prompt + "".join(s.text for s in response) for item in part.rendered for response in item.responses]
    joints, controls = iter(part.tokens.texts(texts)), part.tokens.controls
    for item, draft in zip(part.rendered, part.drafts, strict=True):
        source = part.examples[item.index - part.start].source
        found = [
            i
            for i, (response, joint) in enumerate(zip(draft.responses, joints, strict=False), 1)
            if item.prompt and not np.array_equal(np.concatenate([draft.prompt, response])[-len(joint) :], joint)
        ]
        if found:
            before, after = item.prompt[-12:], item.responses[found[0] - 1][0].text[:12]
            before, after = controls.name(before), controls.name(after)
            message = f"read as one text, a token would reach across the border of {before!r} and {after!r}"
            yield Finding(source, "border", message, drops=False)


def _written(example: Example) -> dict[str, str]:
    """An example as it was read."""

    def text(content: Content) -> str:
        return content if isinstance(content, str) else "\n".join(f"<{turn.role}> {turn.content}" for turn in content)

    return _headed(example, [text(example.prompt), *(text(r.content) for r in example.responses)])


def _sample(tokenizer: Any, draft: Draft, example: Example) -> dict[str, str]:
    """An example as the model will read it."""
    ids = [draft.prompt, *draft.responses]
    texts = _headed(example, [tokenizer.decode(i) for i in ids])
    return {f"{head}, {len(i)} tokens": text for (head, text), i in zip(texts.items(), ids, strict=True)}


def _headed(example: Example, texts: list[str]) -> dict[str, str]:
    heads = [f"{example.source} · prompt"]
    for i, response in enumerate(example.responses, 1):
        heads.append(f"response {i}" + ("" if response.score is None else f" · score {response.score:g}"))
    return dict(zip(heads, texts, strict=True))


def _quantiles(values: array[int]) -> dict[str, int]:
    return {label: int(np.quantile(values, q, method="higher")) for label, q in QUANTILES.items()}


def _cut(encoder: Encoder, draft: Draft, policy: Overlong) -> Cut:
    found = fit(draft, encoder.max_length, policy, encoder.head(draft))
    return Cut(1, int(found.draft is None), found.ends_lost)


# ---------------------------------------------------------------- showing it


def render(report: Report) -> Group:
    """The report for a screen: counts, layout and one example, lengths, truncation, findings by kind."""
    parts: list[Any] = [Text(_counts(report.counts), style="bold")]
    parts += [Text(printable(line)) for line in (*report.layouts, *report.notes)]
    parts.append(Panel.fit(_shown(report.sample), title="one example", title_align="left"))
    if report.lengths:
        parts.append(_table("tokens", list(QUANTILES), {k: list(v.values()) for k, v in report.lengths.items()}))
    if report.cuts:
        rows = {policy: [c.overlong, c.dropped, c.ends_lost] for policy, c in report.cuts.items()}
        columns = ["over-long", "dropped", "responses without end token"]
        parts.append(_table(f"at --max-length {report.max_length}", columns, rows))
    parts += _findings(report.findings)
    return Group(*parts)


def _counts(counts: dict[str, int]) -> str:
    """
    >>> _counts({"rows": 2, "examples": 1, "usable": 1})
    '2 rows, 1 example, 1 usable'
    """
    return ", ".join(
        counted(n, name.removesuffix("s")) if name.endswith("s") else f"{n:,} {name}" for name, n in counts.items()
    )


def _shown(sample: dict[str, str]) -> Text:
    """The beginning and the end of each part: the border between prompt and response is what to look at."""
    text = Text()
    for head, content in itertools.islice(sample.items(), 3):
        content = printable(content)
        clipped = content if len(content) <= 320 else f"{content[:120]} […] {content[-180:]}"
        text.append(printable(head) + "\n", style="bold").append(re.sub("\n{2,}", "\n", clipped).strip("\n") + "\n")
    text.rstrip()
    return text


def _table(title: str, columns: list[str], rows: dict[str, list[int]]) -> Table:
    table = Table(title, box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:,}" for value in values))
    return table


def _findings(findings: Sequence[Finding]) -> list[Text]:
    if not findings:
        return [Text("nothing odd found", style="green")]
    lines = []
    for kind, found in by_kind(findings).items():
        dropped = sum(finding.drops for finding in found)
        some = "" if dropped == len(found) else f"{dropped:,} of them "
        what = f", {some}cannot be trained on" if dropped else ", kept"
        lines.append(Text(f"{kind}: {len(found):,}{what}", style="bold red" if dropped else "bold yellow"))
        lines += [Text(printable(f"  {str(finding)[:300]}")) for finding in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(Text(f"  and {len(found) - SHOWN:,} more"))
    return lines


def to_json(report: Report) -> str:
    """One JSON object: the report's fields, every finding included."""
    return json.dumps(asdict(report), ensure_ascii=True)


# ---------------------------------------------------------------- the command


def run(config: Check) -> None:
    """``prefopt check``: print the report; UserError under ``--strict`` if anything was found."""
    tokenizer, max_length = None, config.max_length
    if config.model is not None:
        from prefopt.model.load import load_config, load_tokenizer, positions

        tokenizer = load_tokenizer(config.model)
        with suppress(UserError):  # there is only a tokenizer
            max_length = max_length or positions(load_config(config.model))
    with Display(0, "check") as display:
        report = check(config.data, config.format, tokenizer, max_length, config.overlong, config.train_on, display)
    if config.json:
        print(to_json(report))
    else:
        console().print(render(report))
    if config.strict and report.findings:
        raise UserError(
            f"{counted(len(report.findings), 'finding')} in {', '.join(config.data)}; --strict refuses such data"
        )
