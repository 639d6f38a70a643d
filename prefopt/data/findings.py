"""What examples tell about themselves, without a tokenizer: empty, equal, tied, twice, or at odds.

One pass, in order, with a few hashes per example, so that a list of any length can be streamed through.
"""

from __future__ import annotations

import json
import re
import textwrap
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import xxhash

from prefopt.types import Content, Example, Finding, comparisons


def inspected(examples: Iterable[Example], said: Said) -> Iterator[tuple[Example, list[Finding]]]:
    """Each example, as it streams by, with its findings; those with ``drops`` cannot be trained on.

    ``said`` is told of the others, and knows at the end what they are among each other.

    >>> from prefopt.types import Response
    >>> one = Example("2+2=", (Response("4", 1.0), Response("4", 0.0)), "prefs.jsonl:7")
    >>> [str(finding) for _, findings in inspected([one], Said()) for finding in findings]
    ['prefs.jsonl:7: the responses are equal']
    """
    for number, example in enumerate(examples, 1):
        source = example.source or f"example {number}"
        findings = list(_alone(example, source))
        if not any(finding.drops for finding in findings):
            said.add(example, source)
        yield example, findings


WRITTEN_OUT = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
"""how a list of messages begins in a cell of a table"""


class Said:
    """What examples say of their responses, in 60 bytes a pair: who repeats an earlier one, or says the contrary."""

    def __init__(self) -> None:
        self._whole = array("Q")  # of each example, a hash of all that it says
        self._of, self._ahead, self._behind = array("q"), array("Q"), array("Q")  # of each comparison, see below
        self._sources, self._bounds = bytearray(), array("q", [0])

    def add(self, example: Example, source: str) -> None:
        prompt = _digest(example.prompt)
        responses = [_digest(r.content if r.ended else (r.content, False)) for r in example.responses]
        scores = [response.score for response in example.responses]
        for better, worse in _comparisons(responses, scores):
            self._of.append(len(self._whole))
            self._ahead.append(_joint(prompt, better, worse))
            self._behind.append(_joint(prompt, worse, better))
        self._whole.append(_joint(prompt, *responses, repr(_order(scores)).encode()))
        self._sources += source.encode("utf-8", "surrogatepass")
        self._bounds.append(len(self._sources))

    def findings(self) -> list[Finding]:
        """Of duplicates and contradictions, in the order of the examples."""
        _, first, which = np.unique(np.array(self._whole), return_index=True, return_inverse=True)
        earlier = first[which]
        repeats = np.flatnonzero(earlier < np.arange(len(earlier)))
        found = {i: ("duplicate", self._repeats(i, int(earlier[i]))) for i in repeats.tolist()}
        for one, other in self._contrary():
            found.setdefault(one, ("contradiction", f"{self._source(other)} prefers the other side"))
        return [Finding(self._source(i), *found[i], drops=False) for i in sorted(found)]

    def _repeats(self, one: int, other: int) -> str:
        source, earlier = self._source(one), self._source(other)
        return f"the same as {earlier}" if source != earlier else "read twice: two of the data named hold it"

    def _contrary(self) -> Iterator[tuple[int, int]]:
        """Examples with a comparison that an earlier example has the other way round."""
        of, ahead, behind = (np.array(column) for column in (self._of, self._ahead, self._behind))
        if len(of):
            different, first = np.unique(ahead, return_index=True)
            place = np.searchsorted(different, behind).clip(max=len(different) - 1)
            earlier = of[first[place]]
            contrary = (different[place] == behind) & (earlier < of)
            yield from zip(of[contrary].tolist(), earlier[contrary].tolist(), strict=True)

    def _source(self, i: int) -> str:
        return self._sources[self._bounds[i] : self._bounds[i + 1]].decode("utf-8", "surrogatepass")


def _alone(example: Example, source: str) -> Iterator[Finding]:
    def found(kind: str, message: str, drops: bool = True) -> Finding:
        return Finding(source, kind, message, drops)

    responses = example.responses
    judged = bool(responses) and responses[0].score is not None
    if (judged or not responses) and not _text(example.prompt).strip():
        yield found("empty", "the prompt is empty", drops=judged)
    empty = [i for i, response in enumerate(responses) if not _text(response.content).strip()]
    if empty:
        yield found("empty", f"{_side(empty[0], len(responses))} is empty")
    for i, response in enumerate(responses):
        if not response.ended and i not in empty:
            message = f"{_side(i, len(responses))} was cut off when it was sampled: no end token stands behind it"
            yield found("unended", message, drops=False)
    if len(responses) > 1 and not empty:
        scores = [response.score for response in responses]
        if len({response.content for response in responses}) == 1:
            yield found("equal", "the responses are equal")
        elif len(set(scores)) == 1:
            yield found("tie", f"a tie: every response has the score {scores[0]:g}")
        elif len(set(scores)) < len(scores):
            yield found("tie", "some of the ranked responses are tied", drops=False)
        elif len({response.content for response in responses}) < len(responses):
            yield found("equal", "some of the ranked responses are equal", drops=False)
    prompt = example.prompt
    if (
        responses
        and isinstance(prompt, str)
        and prompt.strip()
        and all(str(r.content).startswith(prompt) for r in responses)
    ):
        yield found("repeats-prompt", "the responses repeat the prompt, which stands before them anyway", drops=False)
    if any(isinstance(text, str) and WRITTEN_OUT.match(text) for text in (prompt, *(r.content for r in responses))):
        why = "messages written out as text are read as text; save the rows as JSONL, with lists of messages"
        yield found("messages-as-text", why, drops=False)


def _comparisons(responses: list[bytes], scores: list[float | None]) -> Iterator[tuple[bytes, bytes]]:
    """Which response is said to be better than which; an unpaired one is above or below all else."""
    if len(responses) == 1 and scores[0] is not None:
        yield (responses[0], ALL_ELSE) if scores[0] > 0 else (ALL_ELSE, responses[0])
    for better, worse in comparisons(scores):
        if responses[better] != responses[worse]:
            yield responses[better], responses[worse]


def _order(scores: list[float | None]) -> list[int]:
    """The ranks that scores give, so that 9 over 7 and 1 over 0 say the same."""
    levels = sorted({score for score in scores if score is not None}, reverse=True)
    single = len(scores) == 1
    return [-1 if score is None else int(score > 0) if single else levels.index(score) for score in scores]


def _side(index: int, count: int) -> str:
    return "the response" if count == 1 else ("chosen", "rejected")[index] if count == 2 else f"response {index + 1}"


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(turn.content for turn in content)


def _digest(content: Content | tuple[Content, bool]) -> bytes:
    return xxhash.xxh3_128_digest(json.dumps(content).encode())


def _joint(*digests: bytes) -> int:
    """Of digests, which are equally long, so that they need nothing between them."""
    return xxhash.xxh3_64_intdigest(b"".join(digests))


ALL_ELSE = bytes(16)


# --- telling of them ------


def by_kind(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """The most frequent kind first."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


WHY = 100
"""letters of a reason"""


def account(findings: Sequence[Finding]) -> list[str]:
    """One line for each kind of finding: how many, what became of them, where the first ones are, and why the first."""
    lines = []
    for kind, of_kind in by_kind(findings).items():
        dropped = sum(f.drops for f in of_kind)
        why = textwrap.shorten(of_kind[0].message.partition("\n")[0], WHY, placeholder=" …")
        first, *others = (f.source for f in of_kind[:3])
        places = ", ".join([f"{first} ({why})", *others, *(["..."] if len(of_kind) > 3 else [])])
        done = "dropped" if dropped == len(of_kind) else f"{dropped:,} dropped" if dropped else "kept"
        lines.append(f"{len(of_kind):,} {kind} ({done}): {places}")
    return lines
