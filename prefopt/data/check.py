"""What a preference file holds, before anything is trained on it: counts, lengths, and what is odd, by line.

``check`` makes a Report, which is pure data; ``render`` shows it on a screen, ``to_json`` to a machine.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from prefopt.data.encode import Draft, EncodedData, Encoder, Overlong, Tokens, TrainOn, fit
from prefopt.data.findings import inspect_examples
from prefopt.data.mix import Loaded, load
from prefopt.data.render import Rendered
from prefopt.errors import UserError
from prefopt.terminal import printable
from prefopt.types import Example, Finding, Message

if TYPE_CHECKING:
    from prefopt.config import Check

POLICIES: tuple[Overlong, ...] = ("drop", "cut-prompt", "cut-response")
QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
SHOWN = 3  # places shown per kind of finding


@dataclass(frozen=True, slots=True)
class Cut:
    """What one policy would do: examples beyond the limit, dropped among them, responses without their end token."""

    overlong: int
    dropped: int
    ends_lost: int


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
) -> Report:
    """Reads all of it as training would, and reports. UserError where the files cannot be read at all."""
    loaded = load(specs, format)
    report = Report(_counts(loaded), [], _written(loaded.examples[0]), [*loaded.findings])
    for source in loaded.sources:
        how = "guessed" if source.guessed else "as told"
        report.layouts.append(f"{source.name}: {source.layout.name}, {source.layout.about} ({how})")
        if source.unread:
            report.notes.append(f"{source.name}: these columns are not read: {', '.join(source.unread)}")
    odd = inspect_examples(loaded.examples)
    report.findings += odd
    bad = {finding.source for finding in odd if finding.drops}
    good = [example for example in loaded.examples if example.source not in bad]
    report.counts["usable"] = len(good)
    if tokenizer is not None and good:
        _tokens(report, good, Encoder(tokenizer, max_length, overlong, train_on))
    return report


def _counts(loaded: Loaded) -> dict[str, int]:
    examples = loaded.examples
    return {
        "rows": loaded.rows,
        "examples": len(examples),
        "pairs": sum(_pairs(example) for example in examples),
        "responses": sum(len(example.responses) for example in examples),
        "prompts": len({example.prompt for example in examples}),
    }


def _pairs(example: Example) -> int:
    """Comparisons that the scores of one example decide: 1 for a pair, up to K(K-1)/2 for a ranking."""
    return sum(a.score != b.score for a, b in itertools.combinations(example.responses, 2))


def _tokens(report: Report, examples: list[Example], encoder: Encoder) -> None:
    """Adds what only a tokenizer can tell."""
    survey = encoder.survey(examples)
    report.notes += encoder.prepare(survey)
    drafts: list[Draft] = []
    joints: list[Finding] = []
    for part in encoder.parts(examples, survey):
        drafts += part.drafts
        report.findings += part.findings
        joints += borders(part.tokens, part.rendered, part.drafts, examples)
    kept = EncodedData()
    report.counts["usable"] = sum(encoder.keep(d, examples[d.index], kept) is not None for d in drafts)
    report.findings += [*joints, *kept.findings]
    report.max_length = encoder.max_length
    if drafts:
        report.sample = _sample(encoder.tokenizer, drafts[0], examples[drafts[0].index])
        report.lengths = _lengths(drafts)
    if encoder.max_length is not None:
        report.cuts = {policy: _cut(encoder, drafts, policy) for policy in POLICIES}


def borders(
    tokens: Tokens, rendered: Sequence[Rendered], drafts: Sequence[Draft], examples: Sequence[Example]
) -> Iterator[Finding]:
    """Where a prompt is no token prefix: as one text, a token would reach across the border to the response."""
    texts = [item.prompt + "".join(s.text for s in response) for item in rendered for response in item.responses]
    joints = iter(tokens.texts(texts))
    for item, draft in zip(rendered, drafts, strict=True):
        source = examples[item.index].source
        found = [
            i
            for i, (response, joint) in enumerate(zip(draft.responses, joints, strict=False), 1)
            if item.prompt and not np.array_equal(np.concatenate([draft.prompt, response])[-len(joint) :], joint)
        ]
        if found:
            before, after = item.prompt[-12:], item.responses[found[0] - 1][0].text[:12]
            before, after = tokens.controls.name(before), tokens.controls.name(after)
            message = f"read as one text, a token would reach across the border of {before!r} and {after!r}"
            yield Finding(source, "border", message, drops=False)


def _written(example: Example) -> dict[str, str]:
    """An example as it was read."""

    def text(content: str | tuple[Message, ...]) -> str:
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


def _lengths(drafts: Sequence[Draft]) -> dict[str, dict[str, int]]:
    lengths = {
        "prompt": [len(d.prompt) for d in drafts],
        "response": [len(r) for d in drafts for r in d.responses],
        "prompt + response": [len(d.prompt) + len(r) for d in drafts for r in d.responses],
    }
    return {
        name: {label: int(np.quantile(values, q, method="higher")) for label, q in QUANTILES.items()}
        for name, values in lengths.items()
    }


def _cut(encoder: Encoder, drafts: Sequence[Draft], policy: Overlong) -> Cut:
    long = [draft for draft in drafts if encoder.max_length is not None and draft.length > encoder.max_length]
    fits = [fit(draft, encoder.max_length, policy, encoder.head(draft)) for draft in long]
    return Cut(len(long), sum(f.draft is None for f in fits), sum(f.ends_lost for f in fits))


# ---------------------------------------------------------------- showing it


def render(report: Report) -> Group:
    """The report for a screen: counts, layout and one example, lengths, truncation, findings by kind."""
    parts: list[Any] = [Text(", ".join(f"{n:,} {name}" for name, n in report.counts.items()), style="bold")]
    parts += [Text(printable(line)) for line in (*report.layouts, *report.notes)]
    parts.append(Panel(_shown(report.sample), title="one example", title_align="left"))
    if report.lengths:
        parts.append(_table("tokens", list(QUANTILES), {k: list(v.values()) for k, v in report.lengths.items()}))
    if report.cuts:
        rows = {policy: [c.overlong, c.dropped, c.ends_lost] for policy, c in report.cuts.items()}
        columns = ["over-long", "dropped", "responses without end token"]
        parts.append(_table(f"at --max-length {report.max_length}", columns, rows))
    parts += _findings(report.findings)
    return Group(*parts)


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


def by_kind(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """The most frequent kind first."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _findings(findings: Sequence[Finding]) -> list[Text]:
    if not findings:
        return [Text("nothing odd found", style="green")]
    lines = []
    for kind, found in by_kind(findings).items():
        dropped = sum(finding.drops for finding in found)
        what = f", {dropped:,} cannot be trained on" if dropped else ", kept"
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
        from prefopt.model.load import load_config, load_tokenizer

        tokenizer = load_tokenizer(config.model)
        max_length = max_length or _limit(config.model, load_config)
    report = check(config.data, config.format, tokenizer, max_length, config.overlong, config.train_on)
    if config.json:
        print(to_json(report))
    else:
        console = Console(highlight=False)
        console.width = console.width if console.is_terminal else 120
        console.print(render(report))
    if config.strict and report.findings:
        raise UserError(f"{len(report.findings):,} findings in {', '.join(config.data)}; --strict refuses such data")


def _limit(model: str, load_config: Any) -> int | None:
    """The model's own limit; None where there is only a tokenizer, or no limit."""
    try:
        return getattr(load_config(model).get_text_config(), "max_position_embeddings", None)
    except UserError:
        return None
