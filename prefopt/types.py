"""The types that flow, from what a person wrote to what a loss reads.

    Example --encode--> Encoded --pack--> PackedBatch --forward--> LogProbs --loss--> LossOutput

Each is a plain value; none holds a model, a file or a random state. Shapes use
T tokens in a batch, N scored tokens, R responses, P examples, K responses in a ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:  # both are slow to import, and the command line's help needs neither
    import numpy as np
    from torch import Tensor


class Message(NamedTuple):
    """One turn of a conversation.

    >>> Message("user", "What is 2 + 2?").role
    'user'
    """

    role: str
    content: str


Content = str | tuple[Message, ...]
"""text, or turns of a conversation"""
Overlong = Literal["drop", "cut-prompt", "cut-response"]
"""what becomes of an example that is longer than a model takes"""
TrainOn = Literal["last-assistant", "all-assistant"]
"""which turns of a conversation are the response"""
Unit = Literal["pair", "ranking", "response", "demonstration"]
"""what a loss compares, or imitates: two responses, all of a prompt, one with a label, the best one"""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to a prompt, and how good it is.

    ``content`` is text when the prompt is text, messages when the prompt is messages (the last one
    an assistant's). ``score`` is higher for better and only compared within one Example; for
    unpaired data (KTO) it is 1.0 for desirable and 0.0 for undesirable; None for a demonstration.
    ``ended``: it came to its end; one that was cut off as it was sampled has no end token.

    >>> Response("4", score=1.0).score
    1.0
    """

    content: Content
    score: float | None = None
    ended: bool = True


def comparisons(scores: Sequence[float | None]) -> Iterator[tuple[int, int]]:
    """Which responses are better than which, by their numbers.

    >>> list(comparisons([9.0, 7.0, 7.0, None]))
    [(0, 1), (0, 2)]
    """
    for (i, a), (j, b) in permutations(enumerate(scores), 2):
        if a is not None and b is not None and a > b:
            yield i, j


@dataclass(frozen=True, slots=True)
class Example:
    """What a person wrote: one prompt and its n responses (a pair: 2; SFT and KTO: 1; a ranking: K).

    ``prompt`` is either text, which is used as it is, or messages, which go through the chat
    template. Responses with scores stand best first. ``source`` is where it came from.

    >>> pair = Example("2+2=", (Response("4", 1.0), Response("5", 0.0)), source="prefs.jsonl:12")
    >>> len(pair.responses)
    2
    """

    prompt: Content
    responses: tuple[Response, ...]
    source: str = ""

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)

    def texts(self) -> Iterator[str]:
        """All that is written in it: of the prompt, then of each response, message by message."""
        for content in (self.prompt, *(response.content for response in self.responses)):
            yield from (content,) if isinstance(content, str) else (message.content for message in content)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know about one row of the data.

    ``kind`` is one word to count by ("missing", "equal", ...). ``drops``: the row cannot be trained on
    and is left out, or refused under --strict; otherwise it is only reported.

    >>> str(Finding("prefs.jsonl:501", "missing", 'no "rejected"'))
    'prefs.jsonl:501: no "rejected"'
    """

    source: str
    kind: str
    message: str
    drops: bool = True

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a tokenizer made of an Example.

    ``prompt`` int32 [L]: the context that inference will see before the first response token.
    ``responses`` n arrays int32 [L_r]: each continues the prompt, its end token included if it has ended.
    ``scored`` n bool arrays [L_r]: which response tokens count (all, unless several assistant turns
    are trained on and user turns stand between them). ``key`` identifies prompt and responses by
    content: equal token ids and masks, equal key. ``prompt_key`` does so for the whole prompt, before
    anything of it was cut.

    >>> import numpy as np
    >>> ids = np.array([5, 6], np.int32)
    >>> one = Encoded(ids, (np.array([7, 2], np.int32),), (np.array([True, True]),), (None,), "f.jsonl:1", "k", "p")
    >>> one.tokens  # what this example costs without sharing anything but the prompt
    4
    """

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    scored: tuple[np.ndarray, ...]
    scores: tuple[float | None, ...]
    source: str
    key: str
    prompt_key: str

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the prompt and of each response."""
        return (len(self.prompt), *map(len, self.responses))

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """What a model reads: R responses as a token tree (or, as a fallback, one sequence per row).

    Tree: ``ids`` and ``positions`` are [1, T], tokens in depth-first order with their depth as
    position, and token j is visible to token i exactly when ``j <= i < subtree_end[j]``. ``subtree_end``
    stays on the CPU, where attention's masks are planned.
    Rows: ``ids`` and ``positions`` are [R, L], padded at the right (position -1), and ``subtree_end`` is None.
    ``source``, ``target``, ``owner`` [N]: the hidden state at flat index ``source[n]`` predicts the
    token id ``target[n]``, which belongs to response ``owner[n]``.

    The last token of a response is predicted but never read, so it is in ``target`` only. Two
    responses "C ." and "D E ." to the prompt "A B":

        ids          A B C D E
        positions    0 1 2 2 3
        subtree_end  5 5 3 5 5
        source       1 2 1 3 4      (B predicts C and also D, C and E predict the end)
        target       C . D E .
        owner        0 0 1 1 1
    """

    ids: Tensor
    positions: Tensor
    subtree_end: Tensor | None
    source: Tensor
    target: Tensor
    owner: Tensor
    responses: int
    tree: Any = None
    """attention's plan of it, a `prefopt.model.attention.Tree`; None where ``subtree_end`` is"""


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Log-probabilities of R responses under one model, in nats.

    ``sum`` [R]: log π(y|x), over the scored tokens, end token included. ``length`` [R]: how many.
    ``token`` and ``owner`` [N]: the single tokens and the response each belongs to; None where only
    the sums are known (a reference read from the store).

    >>> import torch
    >>> lp = LogProbs.from_tokens(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0, 1, 1]), responses=2)
    >>> lp.sum.tolist(), lp.mean.tolist()
    ([-1.0, -5.0], [-1.0, -2.5])
    """

    sum: Tensor
    length: Tensor
    token: Tensor | None = None
    owner: Tensor | None = None

    @classmethod
    def from_tokens(cls, token: Tensor, owner: Tensor, responses: int) -> LogProbs:
        zeros = token.new_zeros(responses)

        def added(each: Tensor) -> Tensor:
            """In the same order every time, which on a GPU index_add does not have, and elsewhere index_put."""
            if each.is_cuda:
                return zeros.index_put((owner,), each, accumulate=True)
            return zeros.index_add(0, owner, each)

        return cls(added(token), added(token.new_ones(len(token))), token, owner)

    @property
    def mean(self) -> Tensor:
        """[R] average per token. An empty response has no mean, and none is ever scored."""
        return self.sum / self.length

    def detach(self) -> LogProbs:
        token = None if self.token is None else self.token.detach()
        return LogProbs(self.sum.detach(), self.length, token, self.owner)


@dataclass(frozen=True, slots=True)
class Preferences:
    """Which of the R responses of a batch are compared, by explicit index.

    ``ranking`` long [P, K]: indices into R, best first; -1 pads a shorter ranking. A pair is K = 2,
    a demonstration or an unpaired answer K = 1. ``desirable`` bool [P] is set for unpaired data
    only, and ``baseline`` is KTO's z0 (a scalar, already averaged over the whole step).

    >>> import torch
    >>> two_pairs = Preferences(torch.tensor([[0, 1], [3, 2]]))
    >>> two_pairs.chosen.tolist(), two_pairs.rejected.tolist()
    ([0, 3], [1, 2])
    """

    ranking: Tensor
    desirable: Tensor | None = None
    baseline: Tensor | None = None

    @property
    def chosen(self) -> Tensor:
        return self.ranking[:, 0]

    @property
    def rejected(self) -> Tensor:
        return self.ranking[:, 1]


@dataclass(frozen=True, slots=True)
class LossOutput:
    """``loss`` [P]: one value per example, unreduced, in the loss's own units.

    ``metrics``: name -> values, one per example that the metric applies to; the loop turns them into
    (sum, count). None of them carries a gradient.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
