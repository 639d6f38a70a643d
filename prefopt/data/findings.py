"""What examples tell about themselves, without a tokenizer: empty, equal, tied, twice, or at odds.

One pass, in order, with a few hashes per example: texts are compared by 128-bit digest, so a list of
any length can be streamed through.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator

import xxhash

from prefopt.types import Example, Finding, Message


def inspect_examples(examples: Iterable[Example]) -> list[Finding]:
    """All findings, in the order of the examples; those with ``drops`` cannot be trained on."""
    return [finding for _, findings in inspected(examples) for finding in findings]


def inspected(
    examples: Iterable[Example], seen: dict[bytes, str] | None = None
) -> Iterator[tuple[Example, list[Finding]]]:
    """Each example with its findings, as it streams by.

    ``seen`` is what is remembered: which example first held, or said, what has a digest.

    >>> from prefopt.types import Response
    >>> one = Example("2+2=", (Response("4", 1.0), Response("4", 0.0)), "prefs.jsonl:7")
    >>> [str(finding) for _, findings in inspected([one]) for finding in findings]
    ['prefs.jsonl:7: the responses are equal']
    """
    seen = {} if seen is None else seen
    for number, example in enumerate(examples, 1):
        source = example.source or f"example {number}"
        findings = list(_alone(example, source))
        if not any(finding.drops for finding in findings):
            findings += _among_others(example, source, seen)
        yield example, findings


def _alone(example: Example, source: str) -> Iterator[Finding]:
    def found(kind: str, message: str, drops: bool = True) -> Finding:
        return Finding(source, kind, message, drops)

    responses = example.responses
    judged = responses[0].score is not None
    if judged and not _text(example.prompt).strip():
        yield found("empty", "the prompt is empty")
    empty = [i for i, response in enumerate(responses) if not _text(response.content).strip()]
    if empty:
        yield found("empty", f"{_side(empty[0], len(responses))} is empty")
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
    if isinstance(prompt, str) and prompt.strip() and all(str(r.content).startswith(prompt) for r in responses):
        yield found("repeats-prompt", "the responses repeat the prompt, which stands before them anyway", drops=False)


def _among_others(example: Example, source: str, seen: dict[bytes, str]) -> Iterator[Finding]:
    prompt = _digest(example.prompt)
    responses = [_digest(response.content) for response in example.responses]
    scores = [response.score for response in example.responses]
    earlier = seen.setdefault(_joint(prompt, *responses, repr(_order(scores)).encode()), source)
    if earlier != source:
        yield Finding(source, "duplicate", f"the same as {earlier}", drops=False)
        return
    for better, worse in _comparisons(responses, scores):
        seen.setdefault(_joint(prompt, better, worse), source)
        if contrary := seen.get(_joint(prompt, worse, better)):
            yield Finding(source, "contradiction", f"{contrary} prefers the other side", drops=False)
            return


def _comparisons(responses: list[bytes], scores: list[float | None]) -> Iterator[tuple[bytes, bytes]]:
    """Which response is said to be better than which; an unpaired one is above or below all else."""
    if len(responses) == 1 and scores[0] is not None:
        yield (responses[0], ALL_ELSE) if scores[0] > 0 else (ALL_ELSE, responses[0])
    for (a, above), (b, below) in itertools.combinations(zip(responses, scores, strict=True), 2):
        if above is not None and below is not None and above > below and a != b:
            yield a, b


def _order(scores: list[float | None]) -> list[int]:
    """The ranks that scores give, so that 9 over 7 and 1 over 0 say the same."""
    levels = sorted({score for score in scores if score is not None}, reverse=True)
    single = len(scores) == 1
    return [-1 if score is None else int(score > 0) if single else levels.index(score) for score in scores]


def _side(index: int, count: int) -> str:
    return "the response" if count == 1 else ("chosen", "rejected")[index] if count == 2 else f"response {index + 1}"


def _text(content: str | tuple[Message, ...]) -> str:
    return content if isinstance(content, str) else "".join(turn.content for turn in content)


def _digest(content: str | tuple[Message, ...]) -> bytes:
    return xxhash.xxh3_128_digest(json.dumps(content).encode())


def _joint(*digests: bytes) -> bytes:
    """Of digests, which are equally long, so that they need nothing between them."""
    return xxhash.xxh3_128_digest(b"".join(digests))


ALL_ELSE = bytes(16)
