"""From encoded examples to a token tree: sequences that begin alike are computed once.

Sorted as strings of token ids, sequences that share a beginning stand next to each other, and
what each adds to the one before it is exactly the tree in depth-first order. Prompts that several
responses share, equal beginnings of responses, several pairs of one prompt and successive turns of
a conversation need no case of their own.

The last token of a response is predicted but never read, so it is not part of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prefopt.data.prefixes import common, string
from prefopt.types import Encoded, PackedBatch


def pack(examples: Sequence[Encoded], device: torch.device | str = "cpu") -> PackedBatch:
    """All responses of ``examples`` as one token tree; responses are numbered in the order given.

    >>> AB, ones = np.array([65, 66], np.int32), lambda n: np.ones(n, bool)
    >>> pair = Encoded(AB, (np.array([67, 2], np.int32), np.array([68, 69, 2], np.int32)),
    ...                (ones(2), ones(3)), (1.0, 0.0), "", "", "")
    >>> batch = pack([pair])
    >>> [chr(i) for i in batch.ids[0].tolist()], batch.positions[0].tolist(), batch.subtree_end.tolist()
    (['A', 'B', 'C', 'D', 'E'], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
    >>> batch.source.tolist(), batch.target.tolist(), batch.owner.tolist()
    ([1, 2, 1, 3, 4], [67, 2, 68, 69, 2], [0, 0, 1, 1, 1])
    """
    sequences, scored = _sequences(examples)
    order = sorted(range(len(sequences)), key=lambda r: string(sequences[r]))
    room = sum(map(len, sequences))
    ids, positions, subtree_end = (np.empty(room, np.int64) for _ in range(3))
    path = np.empty(max(map(len, sequences), default=0), np.int64)  # node at each depth of the newest sequence
    paths: list[np.ndarray] = [path] * len(sequences)
    size, before = 0, np.empty(0, np.int32)
    for r in order:
        tokens = sequences[r]
        shared = common(before, tokens)
        subtree_end[path[shared : len(before)]] = size  # the branch that is left here ends here
        added = len(tokens) - shared
        ids[size : size + added] = tokens[shared:]
        positions[size : size + added] = np.arange(shared, len(tokens))
        path[shared : len(tokens)] = np.arange(size, size + added)
        size, before = size + added, tokens
        paths[r] = path[: len(tokens)].copy()
    subtree_end[path[: len(before)]] = size
    source = [paths[r][at - 1] for r, (at, _) in enumerate(scored)]
    return _batch(ids[None, :size], positions[None, :size], subtree_end[:size], source, scored, device)


def pack_rows(examples: Sequence[Encoded], device: torch.device | str = "cpu") -> PackedBatch:
    """The fallback: one sequence per row, padded at the right. Same types, same numbers, more work.

    >>> A, answer = np.array([65], np.int32), np.array([67, 2], np.int32)
    >>> pack_rows([Encoded(A, (answer,), (np.ones(2, bool),), (None,), "", "", "")]).ids.tolist()
    [[65, 67]]
    """
    sequences, scored = _sequences(examples)
    width = max(map(len, sequences))
    ids = np.zeros((len(sequences), width), np.int64)
    for r, tokens in enumerate(sequences):
        ids[r, : len(tokens)] = tokens
    lengths = np.array([len(s) for s in sequences])
    # Padding has no position of its own: -1 marks it, and the model's attention mask is made from that.
    positions = np.where(np.arange(width) < lengths[:, None], np.arange(width), -1)
    source = [r * width + at - 1 for r, (at, _) in enumerate(scored)]
    return _batch(ids, positions, None, source, scored, device)


def _sequences(examples: Sequence[Encoded]) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Per response: the tokens the model reads, and (where in it, which id) each scored token is."""
    sequences, scored = [], []
    for example in examples:
        for response, mask in zip(example.responses, example.scored, strict=True):
            whole = np.concatenate([example.prompt, response])
            at = len(example.prompt) + np.flatnonzero(mask)
            assert len(at) and at[0] > 0, (
                f"{example.source}: nothing is scored, or there is no context for its first token"
            )
            sequences.append(whole[: at[-1]])
            scored.append((at, whole[at]))
    return sequences, scored


def _batch(ids, positions, subtree_end, source, scored, device) -> PackedBatch:
    def to(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(device, non_blocking=True)

    return PackedBatch(
        ids=to(ids),
        positions=to(positions),
        subtree_end=None if subtree_end is None else torch.from_numpy(subtree_end),
        source=to(np.concatenate(source)),
        target=to(np.concatenate([ids for _, ids in scored])),
        owner=to(np.repeat(np.arange(len(scored)), [len(at) for at, _ in scored])),
        responses=len(scored),
    )


def visible(subtree_end: torch.Tensor, positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """[T, T] bool: whether token i (row) sees token j (column). The rule itself; for tests and small trees.

    >>> visible(torch.tensor([3, 2, 3]), torch.tensor([0, 1, 1])).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    i = torch.arange(len(subtree_end), device=subtree_end.device)
    sees = (i[None, :] <= i[:, None]) & (i[:, None] < subtree_end[None, :])
    if window is not None:
        sees &= positions[:, None] - positions[None, :] < window
    return sees
