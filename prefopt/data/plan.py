"""What is read when: units of comparison, the held-out split, the order, and micro-batches.

All of it is a pure function of the data, the seed and one integer, the step. Nothing here holds a
position, so a run resumes exactly and a batch is the same however it is cut up.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash

from prefopt.data.prefixes import common, grown, ids_of, string
from prefopt.data.shelf import Chosen, Fact, each
from prefopt.errors import UserError
from prefopt.transfer import to_device
from prefopt.types import Encoded, Preferences, Unit, comparisons


def units(examples: Sequence[Encoded], unit: Unit) -> Units:
    """What a loss with this ``unit`` trains on, made of ``examples`` when asked for; responses stand best first.

    ``pair``           every two responses with different scores (a ranking of K without ties: K(K-1)/2)
    ``ranking``        all responses of a prompt as one; equal scores are no order, so only the first of them stays
    ``response``       one at a time: unpaired data as labelled, of a comparison the best (desirable) and the worst
    ``demonstration``  the best response, unless it is labelled undesirable

    Raises UserError where the data hold nothing of that kind.
    """
    split = lru_cache(1024)(_SPLIT[unit])  # most data have few different scores
    of, number = array("q"), array("q")  # of which example, and which of its parts
    every = each(examples, "scores")
    for i, scores in enumerate(every):
        parts = range(len(split(scores)))
        of.extend(i for _ in parts)
        number.extend(parts)
    if every and not of:
        have = "single responses" if all(len(scores) == 1 for scores in every) else "comparisons without an order"
        labelled = any(score is not None for scores in every for score in scores)
        single = "kto, or sft" if labelled else "sft"
        other = single if unit in ("pair", "ranking") else "dpo"
        if unit == "demonstration":
            have, other = "responses labelled undesirable", "kto"
        if unit == "response" and have == "single responses":
            have, other = "single responses without a label", "sft"
        raise UserError(
            f"this loss needs {_NEEDS[unit]}, and the data hold {have} only, which are for prefopt train --loss {other}"
        )
    return Units(examples, np.array(of, int), lambda scores, u: split(scores)[number[u]])


class Units(Chosen):
    """Parts of ``examples``; ``pick`` says of the scores of the one that unit ``u`` comes from which part that is."""

    def __init__(self, examples: Sequence[Encoded], at: np.ndarray, pick: Callable[[Scores, int], Pick]):
        super().__init__(examples, at)
        self._pick = pick

    def made(self, i: int) -> Encoded:
        example = super().made(i)
        return self._pick(example.scores, i).of(example)

    def each(self, fact: Fact) -> list[Any]:
        told = super().each(fact)
        if fact in ("prompt_key", "source"):
            return told
        picks = [self._pick(scores, u) for u, scores in enumerate(super().each("scores"))]
        return [pick.told(fact, of) for pick, of in zip(picks, told, strict=True)]


Scores = tuple[float | None, ...]


class Pick(NamedTuple):
    """Some responses of an example, by their numbers, or all of it as it is; ``scores`` are new ones."""

    chosen: Sequence[int] | None
    scores: tuple[float, ...] | None = None

    def of(self, example: Encoded) -> Encoded:
        """``example`` with these responses."""
        if self.chosen is None:
            return example
        return Encoded(
            example.prompt,
            tuple([example.responses[i] for i in self.chosen]),
            tuple([example.scored[i] for i in self.chosen]),
            self.told("scores", example.scores),
            example.source,
            self.told("key", example.key),
            example.prompt_key,
        )

    def told(self, fact: Fact, of: Any) -> Any:
        """What a fact is with these responses, where it is ``of`` with all of them."""
        if self.chosen is None:
            return of
        if fact == "key":
            return xxhash.xxh3_128_hexdigest(f"{of}:{self.chosen}".encode())
        if fact == "lengths":
            return (of[0], *[of[i + 1] for i in self.chosen])
        return self.scores or tuple([of[i] for i in self.chosen])


def _pairs(s: Scores) -> list[Pick]:
    return [Pick(both) for both in comparisons(s)]


def _ranking(s: Scores) -> list[Pick]:
    strict = [i for i in range(len(s)) if s[i] is not None and s[i] not in s[:i]]
    return [Pick(strict)] if len(strict) > 1 else []


def _responses(s: Scores) -> list[Pick]:
    if len(s) == 1:
        return [] if s[0] is None else [Pick(None)]
    if s[0] is None or s[-1] is None or s[0] <= s[-1]:
        return []
    return [Pick((0,), (1.0,)), Pick((len(s) - 1,), (0.0,))]


def _demonstration(s: Scores) -> list[Pick]:
    undesirable = len(s) == 1 and s[0] is not None and s[0] <= 0
    return [] if undesirable else [Pick((0,))]


_SPLIT: dict[Unit, Callable[[Scores], list[Pick]]] = {
    "pair": _pairs,
    "ranking": _ranking,
    "response": _responses,
    "demonstration": _demonstration,
}
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
        desirable = to_device(torch.tensor([bool(example.scores[0]) for example in batch]), device)
    return Preferences(to_device(ranking, device), desirable)


def mismatched(batch: Sequence[Encoded], longest: int | None = None) -> list[Encoded]:
    """KTO's (x_i, y_{i+1}): each prompt with the response to another one, over one whole optimizer step.

    Examples of one prompt stand together here, and the responses move on by as many as the largest of these
    groups has: no prompt meets a response of its own, unless it has more than half of the step. A long prompt may
    meet a long response, which is cut so that they have ``longest`` tokens at most.
    """
    of = _by_prompt(batch)
    together = [example for group in of.values() for example in group]
    by = max(map(len, of.values())) % len(batch) or 1
    room = [None if longest is None else longest - len(x.prompt) for x in together]
    return [
        replace(x, responses=tuple(r[:n] for r in y.responses), scored=tuple(_some(s[:n]) for s in y.scored))
        for x, y, n in zip(together, [*together[by:], *together[:by]], room, strict=True)
    ]


def _some(scored: np.ndarray) -> np.ndarray:
    """What is scored of a response; all of it where the cut has left nothing that is."""
    return scored if scored.any() else np.ones_like(scored)


def _by_prompt(batch: Sequence[Encoded]) -> dict[str, list[Encoded]]:
    groups: dict[str, list[Encoded]] = {}
    for example in batch:
        groups.setdefault(example.prompt_key, []).append(example)
    return groups


def split(examples: Sequence[Encoded], fraction: float, seed: int) -> tuple[Chosen, Chosen]:
    """(training, held out): by prompt, never by pair, so that no prompt is on both sides.

    Which prompts are held out depends on the prompts and the seed alone, not on their order or on how
    many pairs each has; a prompt stays on its side when data are added, but for those at the border.
    """
    rank = _hashes(f"{seed}:{key}" for key in each(examples, "prompt_key"))
    different = np.unique(rank)
    held_out = np.isin(rank, different[: round(fraction * len(different))])
    return Chosen(examples, np.flatnonzero(~held_out)), Chosen(examples, np.flatnonzero(held_out))


def _hashes(texts: Iterable[str]) -> np.ndarray:
    """[n] uint64, equal for equal texts and, for all that may be expected, for no others."""
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), np.uint64)


@dataclass(frozen=True, eq=False)
class Order:
    """Which example stands where in the endless stream of epochs: a function of (seed, epoch, index).

    ``groups`` [size] says which examples belong together: in each epoch a group stands where the first of its
    members would, so that they meet in a step, or in two where it ends between them.

    >>> order = Order(size=3, seed=0)
    >>> sorted(order.batch(step=0, batch_size=3))
    [0, 1, 2]
    >>> order.batch(1, 2) == [*order.batch(0, 4)[2:]]  # the stream does not depend on how it is cut
    True
    >>> Order(4, 0).batch(0, 4), Order(4, 0, groups=np.array([0, 1, 1, 0])).batch(0, 4)
    ([2, 0, 1, 3], [2, 1, 0, 3])
    """

    size: int
    seed: int
    groups: np.ndarray | None = None

    def batch(self, step: int, batch_size: int) -> list[int]:
        """Indices of the examples of optimizer step ``step``, exactly ``batch_size`` of them."""
        at = range(step * batch_size, (step + 1) * batch_size)
        return [int(self._epoch(i // self.size)[i % self.size]) for i in at]

    @lru_cache(maxsize=2)  # noqa: B019  # a step reads one epoch, or two; what is kept dies with the process
    def _epoch(self, epoch: int) -> np.ndarray:
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        if self.groups is None:
            return shuffled
        groups = self.groups[shuffled]
        first = np.empty(groups.max() + 1, np.int64)
        first[groups[::-1]] = np.arange(self.size)[::-1]  # of several assignments the last one stays: the first place
        return shuffled[np.argsort(first[groups], kind="stable")]


def order(units: Sequence[Encoded], seed: int, group_by_prompt: bool = False) -> Order:
    """The order of ``units``; where they are grouped, those of one prompt meet in a step."""
    if not group_by_prompt:
        return Order(len(units), seed)
    return Order(len(units), seed, np.unique(_hashes(each(units, "prompt_key")), return_inverse=True)[1])


def repeated(weights: Sequence[float] | np.ndarray, seed: int) -> np.ndarray:
    """Which examples an epoch holds when each counts ``weight`` times; a fraction is drawn once, by the seed.

    >>> repeated([1.0, 2.0, 0.0], seed=0)
    array([0, 1, 1])
    """
    w = np.asarray(weights, float)
    extra = np.random.default_rng([seed, 1]).random(len(w)) < w % 1
    return np.repeat(np.arange(len(w)), w.astype(int) + extra)


def microbatches(batch: Sequence[Encoded], budget: int) -> list[list[Encoded]]:
    """``batch`` in groups of about ``budget`` tokens, as even as they come; a longer example stands alone.

    Tokens are counted as the tree has them, each shared one once. Pairs of one prompt stay together where they
    fit, and so do the turns of a conversation, whose prompts begin with one another; what all begin with, such as
    a system prompt, is in every group.

    >>> ids, one = np.zeros(5, np.int32), np.ones(5, bool)
    >>> answer = lambda i: (np.full(5, i, np.int32),)
    >>> examples = [Encoded(ids, answer(i), (one,), (None,), "", "", "p") for i in range(3)]
    >>> [len(group) for group in microbatches(examples, budget=15)]
    [2, 1]
    """
    if sum(example.tokens for example in batch) <= budget:
        return [list(batch)]
    prompts = sorted(((string(example.prompt), i) for i, example in enumerate(batch)))
    (first, _), (last, _) = prompts[0], prompts[-1]
    everywhere = first[: 4 * common(ids_of(first), ids_of(last))]  # sorted, these two share what all share
    room = max(1, budget - len(everywhere) // 4)
    families = _families([(prompt, batch[i]) for prompt, i in prompts])
    parts = [part for family in families for part in _within(family, everywhere, room)]
    bins: list[list[Encoded]] = [[] for _ in range(-(-sum(tokens for tokens, _ in parts) // room))]
    loads = [(0, b) for b in range(len(bins))]
    for tokens, part in sorted(parts, key=lambda part: -part[0]):
        load, lightest = heappop(loads)
        bins[lightest] += part
        heappush(loads, (load + tokens, lightest))
    return [b for b in bins if b]


def in_rows(batch: Sequence[Encoded], budget: int) -> list[list[Encoded]]:
    """``batch`` in groups for a model that reads a row for each response, all padded to the longest of a group.

    As many as have ``budget`` tokens with their padding; the longest first, so that like stands with like.
    """
    groups: list[list[Encoded]] = []
    width = rows = 0
    for example in sorted(batch, key=_longest, reverse=True):
        if groups and (rows + len(example.responses)) * width <= budget:
            groups[-1].append(example)
            rows += len(example.responses)
        else:
            groups.append([example])
            width, rows = _longest(example), len(example.responses)
    return groups


def _longest(example: Encoded) -> int:
    return len(example.prompt) + max(map(len, example.responses))


def _families(prompts: Sequence[tuple[bytes, Encoded]]) -> list[list[Encoded]]:
    """Examples, sorted by their prompts, whose prompts begin with the family's first one."""
    families: list[list[Encoded]] = []
    eldest = None
    for prompt, example in prompts:
        if eldest is None or not prompt.startswith(eldest):
            eldest = prompt
            families.append([])
        families[-1].append(example)
    return families


def _within(family: Sequence[Encoded], everywhere: bytes, room: int) -> list[tuple[int, list[Encoded]]]:
    """A family, cut where it outgrows the room; each part with its tokens beyond what is ``everywhere``."""
    parts: list[tuple[int, list[Encoded]]] = []
    tree = [everywhere]
    for example in family:
        sequences = [string(np.concatenate([example.prompt, response])) for response in example.responses]
        together, more = grown(tree, sequences)
        if parts and parts[-1][0] + more <= room:
            tokens, members = parts.pop()
            parts.append((tokens + more, [*members, example]))
        else:
            together, tokens = grown([everywhere], sequences)
            parts.append((tokens, [example]))
        tree = together
    return parts
