"""What is read when: units of comparison, the held-out split, the order, and micro-batches.

All of it is a pure function of the data, the seed and one integer, the step. Nothing here holds a
position, so a run resumes exactly and a batch is the same however it is cut up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import torch
import xxhash

from prefopt.errors import UserError
from prefopt.types import Encoded, Preferences

Unit = Literal["pair", "ranking", "response", "demonstration"]
"""What a loss compares, and so what one example of a batch is."""


def units(examples: Sequence[Encoded], unit: Unit) -> list[Encoded]:
    """The examples that a loss with this ``unit`` trains on; each one's responses stand best first.

    ``pair``           every two responses with different scores (a ranking of K without ties: K(K-1)/2)
    ``ranking``        all responses of a prompt as one; equal scores are no order, so only the first of them stays
    ``response``       one at a time: unpaired data as labelled, of a comparison the best (desirable) and the worst
    ``demonstration``  the best response, unless it is labelled undesirable

    Raises UserError where the data hold nothing of that kind.
    """
    made = [part for example in examples for part in _SPLIT[unit](example)]
    if examples and not made:
        have = "single responses" if all(len(e.responses) == 1 for e in examples) else "comparisons without an order"
        other = "sft or kto" if unit in ("pair", "ranking") else "dpo"
        raise UserError(
            f"this loss needs {_NEEDS[unit]}, and the data hold {have} only: choose another --loss ({other})"
        )
    return made


def _pick(example: Encoded, chosen: Sequence[int], scores: Sequence[float | None] | None = None) -> Encoded:
    """``example`` with some of its responses."""
    return replace(
        example,
        responses=tuple(example.responses[i] for i in chosen),
        scored=tuple(example.scored[i] for i in chosen),
        scores=tuple(scores or (example.scores[i] for i in chosen)),
        key=xxhash.xxh3_128_hexdigest(f"{example.key}:{chosen}".encode()),
    )


def _pairs(example: Encoded) -> list[Encoded]:
    both = combinations(enumerate(example.scores), 2)
    return [_pick(example, (i, j)) for (i, a), (j, b) in both if a is not None and b is not None and a > b]


def _ranking(example: Encoded) -> list[Encoded]:
    s = example.scores
    strict = [i for i in range(len(s)) if s[i] is not None and s[i] not in s[:i]]
    return [_pick(example, strict)] if len(strict) > 1 else []


def _responses(example: Encoded) -> list[Encoded]:
    s = example.scores
    if len(s) == 1:
        return [] if s[0] is None else [example]
    if s[0] is None or s[-1] is None or s[0] <= s[-1]:
        return []
    return [_pick(example, (0,), (1.0,)), _pick(example, (len(s) - 1,), (0.0,))]


def _demonstration(example: Encoded) -> list[Encoded]:
    undesirable = len(example.scores) == 1 and example.scores[0] is not None and example.scores[0] <= 0
    return [] if undesirable else [_pick(example, (0,))]


_SPLIT = {"pair": _pairs, "ranking": _ranking, "response": _responses, "demonstration": _demonstration}
_NEEDS = {
    "pair": "pairs of a better and a worse response",
    "ranking": "ranked responses",
    "response": "responses labelled desirable or not",
    "demonstration": "responses to imitate",
}


def preferences(batch: Sequence[Encoded], unit: Unit, device: torch.device | str = "cpu") -> Preferences:
    """Who is compared with whom, when ``batch`` has been packed in this order.

    >>> one = np.ones(1, bool), np.array([7], np.int32)
    >>> pair = Encoded(one[1], (one[1],) * 2, (one[0],) * 2, (1.0, 0.0), "", "", "")
    >>> preferences([pair, pair], "pair").ranking.tolist()
    [[0, 1], [2, 3]]
    """
    sizes = [len(example.responses) for example in batch]
    ranking = torch.full((len(batch), max(sizes)), -1)
    first = 0
    for p, size in enumerate(sizes):
        ranking[p, :size] = torch.arange(first, first + size)
        first += size
    desirable = None
    if unit == "response":
        desirable = torch.tensor([bool(example.scores[0]) for example in batch], device=device)
    return Preferences(ranking.to(device), desirable)


def mismatched(batch: Sequence[Encoded], longest: int | None = None) -> list[Encoded]:
    """KTO's (x_i, y_{i+1}): each prompt with the next example's response, over one whole optimizer step.

    A long prompt may meet a long response, which is cut so that they have ``longest`` tokens at most.
    """
    room = [None if longest is None else longest - len(x.prompt) for x in batch]
    followers = [*batch[1:], batch[0]] if len(batch) > 1 else list(batch)
    return [
        replace(x, responses=tuple(r[:n] for r in y.responses), scored=tuple(s[:n] for s in y.scored))
        for x, y, n in zip(batch, followers, room, strict=True)
    ]


def split(examples: Sequence[Encoded], fraction: float, seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """(training, held out): by prompt, never by pair, so that no prompt is on both sides.

    Which prompts are held out depends on the prompts and the seed alone, not on their order or on how
    many pairs each has; a prompt stays on its side when data are added, but for those at the border.
    """
    rank = {e.prompt_key: xxhash.xxh3_64_intdigest(f"{seed}:{e.prompt_key}".encode()) for e in examples}
    held_out = set(sorted(rank, key=rank.__getitem__)[: round(fraction * len(rank))])
    train = [e for e in examples if e.prompt_key not in held_out]
    return train, [e for e in examples if e.prompt_key in held_out]


@dataclass(frozen=True)
class Order:
    """Which example stands where in the endless stream of epochs: a function of (seed, epoch, index).

    >>> order = Order(size=3, seed=0)
    >>> sorted(order.batch(step=0, batch_size=3))
    [0, 1, 2]
    >>> order.batch(1, 2) == [*order.batch(0, 4)[2:]]  # the stream does not depend on how it is cut
    True
    """

    size: int
    seed: int

    def batch(self, step: int, batch_size: int) -> list[int]:
        """Indices of the examples of optimizer step ``step``, exactly ``batch_size`` of them."""
        at = range(step * batch_size, (step + 1) * batch_size)
        epochs = {i // self.size: None for i in at}
        shuffled = {epoch: self._epoch(epoch) for epoch in epochs}
        return [int(shuffled[i // self.size][i % self.size]) for i in at]

    def _epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)


def repeated(weights: Sequence[float], seed: int) -> list[int]:
    """Which examples an epoch holds when each counts ``weight`` times; a fraction is drawn once, by the seed.

    >>> repeated([1.0, 2.0, 0.0], seed=0)
    [0, 1, 1]
    """
    w = np.asarray(weights, float)
    extra = np.random.default_rng([seed, 1]).random(len(w)) < w % 1
    return np.repeat(np.arange(len(w)), w.astype(int) + extra).tolist()


def microbatches(batch: Sequence[Encoded], budget: int) -> list[list[Encoded]]:
    """``batch`` in groups of about ``budget`` tokens, as even as they come; a longer example stands alone.

    Pairs of one prompt stay together, since they share its tokens.

    >>> ids, one = np.zeros(5, np.int32), np.ones(5, bool)
    >>> example = Encoded(ids, (ids,), (one,), (None,), "", "", "p")
    >>> [len(group) for group in microbatches([example] * 3, budget=15)]
    [2, 1]
    """
    groups: dict[str, list[Encoded]] = {}
    for example in batch:
        groups.setdefault(example.prompt_key, []).append(example)
    parts = [part for group in groups.values() for part in _within(group, budget)]
    tokens = [_tokens(part) for part in parts]
    bins: list[list[Encoded]] = [[] for _ in range(-(-sum(tokens) // budget))]
    load = [0] * len(bins)
    for i in sorted(range(len(parts)), key=lambda i: -tokens[i]):
        lightest = load.index(min(load))
        bins[lightest] += parts[i]
        load[lightest] += tokens[i]
    return [b for b in bins if b]


def _within(group: list[Encoded], budget: int) -> list[list[Encoded]]:
    """The examples of one prompt, cut where they outgrow the budget."""
    prompt = len(group[0].prompt)
    parts: list[list[Encoded]] = [[]]
    tokens = prompt
    for example in group:
        own = example.tokens - len(example.prompt)
        if parts[-1] and tokens + own > budget:
            parts.append([])
            tokens = prompt
        parts[-1].append(example)
        tokens += own
    return parts


def _tokens(group: Sequence[Encoded]) -> int:
    """Tokens of examples that share one prompt."""
    return len(group[0].prompt) + sum(example.tokens - len(example.prompt) for example in group)
