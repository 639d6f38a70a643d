"""From encoded examples to a token tree: sequences that begin alike are computed once.

Sorted as strings of token ids, sequences that share a beginning stand next to each other, and
what each adds to the one before it is exactly the tree in depth-first order. Prompts that several
responses share, equal beginnings of responses, several pairs of one prompt and successive turns of
a conversation need no case of their own.

The last token of a response is predicted but never read, so it is not part of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from prefopt.model.attention import Tree
from prefopt.transfer import to_device
from prefopt.types import Encoded, PackedBatch


def pack(
    examples: Sequence[Encoded], device: torch.device | str = "cpu", fill: Callable[[int], int] | None = None
) -> PackedBatch:
    """All responses of ``examples`` as one token tree; responses are numbered in the order given.

    ``fill``: up to how many tokens it is filled, by those that it has, with some that see but themselves.

    >>> AB, ones = np.array([65, 66], np.int32), lambda n: np.ones(n, bool)
    >>> pair = Encoded(AB, (np.array([67, 2], np.int32), np.array([68, 69, 2], np.int32)),
    ...                (ones(2), ones(3)), (1.0, 0.0), "", "", "")
    >>> batch = pack([pair])
    >>> [chr(i) for i in batch.ids[0].tolist()], batch.positions[0].tolist(), batch.subtree_end.tolist()
    (['A', 'B', 'C', 'D', 'E'], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
    >>> batch.source.tolist(), batch.target.tolist(), batch.owner.tolist()
    ([1, 2, 1, 3, 4], [67, 2, 68, 69, 2], [0, 0, 1, 1, 1])
    """
    rows, scored = _rows(examples)
    order = np.argsort(_sortable(rows), kind="stable")
    nodes = grow(rows[order])
    node = np.empty_like(nodes.node)
    node[order] = nodes.node  # [R, L] in the order given
    source = node[scored.owner, scored.at - 1]
    size = len(nodes.ids)
    room = fill(size) - size if fill else 0
    ids, depth = (np.pad(x, (0, room))[None] for x in (nodes.ids, nodes.depth))
    end = np.append(nodes.subtree_end, np.arange(size, size + room) + 1)
    return _batch(ids, depth, end, source, scored, device)


class Nodes(NamedTuple):
    """A tree of M nodes in depth-first order: ``ids``, ``depth``, ``parent`` (-1: none) and ``subtree_end`` [M].

    ``node`` [R, L]: which of them each token of the sequences is; meaningless behind their ends.
    """

    ids: np.ndarray
    depth: np.ndarray
    parent: np.ndarray
    subtree_end: np.ndarray
    node: np.ndarray


def grow(rows: np.ndarray) -> Nodes:
    """The tree of R sequences of up to L tokens, sorted, -1 behind their ends: ``rows`` [R, L].

    >>> tree = grow(np.array([[5, 6, -1], [5, 6, 7], [8, -1, -1]]))
    >>> tree.ids.tolist(), tree.depth.tolist(), tree.subtree_end.tolist()
    ([5, 6, 7, 8], [0, 1, 2, 0], [3, 3, 3, 4])
    """
    # A row of the sorted table begins a new node wherever its prefix differs from the row above.
    differs = np.ones(rows.shape, bool)
    differs[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    new = differs & (rows >= 0)
    node = np.where(new, np.cumsum(new).reshape(new.shape) - 1, -1)
    node = np.maximum.accumulate(node, axis=0)  # where nothing new begins, the row above's node goes on
    row, depth = np.nonzero(new)
    # A subtree ends with the first node of the next row that differs at its depth or before.
    first_node = np.append(0, np.cumsum(new.sum(1)))  # [R + 1] nodes begun before each row
    begins = np.where(differs, np.arange(len(rows))[:, None], len(rows))
    later = np.minimum.accumulate(begins[::-1], axis=0)[::-1]  # this row's or a later one
    following = np.append(later, np.full((1, rows.shape[1]), len(rows)), axis=0)[row + 1, depth]
    parent = np.where(depth > 0, node[row, depth - 1], -1)
    return Nodes(rows[row, depth], depth, parent, first_node[following], node)


def pack_rows(examples: Sequence[Encoded], device: torch.device | str = "cpu") -> PackedBatch:
    """The fallback: one sequence per row, padded at the right. Same types, same numbers, more work.

    >>> A, answer = np.array([65], np.int32), np.array([67, 2], np.int32)
    >>> pack_rows([Encoded(A, (answer,), (np.ones(2, bool),), (None,), "", "", "")]).ids.tolist()
    [[65, 67]]
    """
    rows, scored = _rows(examples)
    width = rows.shape[1]
    # Padding has no position of its own: -1 marks it, and the model's attention mask is made from that.
    positions = np.where(rows < 0, -1, np.arange(width))
    return _batch(rows.clip(0), positions, None, scored.owner * width + scored.at - 1, scored, device)


class Scored(NamedTuple):
    """Of N scored tokens whose response's they are, where in its sequence they stand, and which: [N] each."""

    owner: np.ndarray
    at: np.ndarray
    target: np.ndarray


def _rows(examples: Sequence[Encoded]) -> tuple[np.ndarray, Scored]:
    """What the model reads, [R, L]: prompt and response up to the last scored token, then -1; and what it predicts."""
    prompts = [example.prompt for example in examples for _ in example.responses]
    responses = [response for example in examples for response in example.responses]
    before, length = (np.array([len(part) for part in parts]) for parts in (prompts, responses))
    rows = np.full((len(responses), (before + length).max()), -1)
    owner, at = _places(before)
    rows[owner, at] = np.concatenate(prompts)
    owner, at = _places(length)
    at, ids = at + before[owner], np.concatenate(responses)
    rows[owner, at] = ids
    asked = np.concatenate([mask for example in examples for mask in example.scored])
    scored = Scored(owner[asked], at[asked], ids[asked])
    number = np.bincount(scored.owner, minlength=len(rows))
    assert number.all() and scored.at.min() > 0, (
        f"{examples[0].source} and others: nothing is scored, or there is no context for the first token"
    )
    last = scored.at[np.cumsum(number) - 1]
    width = last.max()
    rows = rows[:, :width]
    rows[np.arange(width) >= last[:, None]] = -1
    return rows, scored


def _places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For so many things one after the other: whose each is, and its place among its owner's.

    >>> [places.tolist() for places in _places(np.array([2, 3]))]
    [[0, 0, 1, 1, 1], [0, 1, 0, 1, 2]]
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]


def _sortable(rows: np.ndarray) -> np.ndarray:
    """[R] strings of bytes that sort as the rows of ids [R, L] do, shorter ones first."""
    return np.ascontiguousarray(rows + 1, ">u4").view(f"S{4 * rows.shape[1]}")[:, 0]


def _batch(ids, positions, subtree_end, source, scored, device) -> PackedBatch:
    def to(array: np.ndarray) -> torch.Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(array, np.int64)), device)

    return PackedBatch(
        ids=to(ids),
        positions=to(positions),
        subtree_end=None if subtree_end is None else torch.from_numpy(subtree_end),
        tree=None if subtree_end is None else Tree(torch.from_numpy(subtree_end)),
        source=to(source),
        target=to(scored.target),
        owner=to(scored.owner),
        responses=int(scored.owner[-1]) + 1,
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
