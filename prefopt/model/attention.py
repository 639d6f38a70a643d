"""Attention over a token tree, as one function that transformers calls in every layer.

A tree falls into *runs*: stretches without a branch. What a run's queries see is the path from the
root to it, then the run itself, causally. Along a path every depth occurs once, so the gathered keys
stand at their positions, and the mask of a run is a plain band, whatever the tree: key k is visible to
query q exactly when ``q - window < k <= q``. Short runs that follow one another are computed as one
*block*, against the path to the first of them, under the mask of the rule itself. Where all texts are
short, so would the blocks be, and many; there the tree is cut into *stretches* of equal size, which are
computed in one call. No T x T mask is ever built.

On CUDA, where heads are at least 16 wide, it is FlexAttention with a block mask of the same rule (flex.py).

Registered under ``NAME`` with transformers' AttentionInterface. The mask that a model is given is the Tree
itself, and it travels through the layers (and through their recomputation) to the attention function.
Without a tree (generation, rows) the function is plain SDPA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefopt.model import flex

NAME = "prefopt_tree"
QUERIES_AT_ONCE = 1024  # bounds the mask of a long run: this many rows times its keys
CALL = 4096  # query-key products that cost about as much as one more call
STRETCH = 64  # nodes; used where the path above the first node of each is at most as long


class Tree(BlockMask):
    """The runs of one packed batch, and the blocks they are computed in: what every layer's attention needs.

    It is a BlockMask only so that transformers takes it for a finished mask and hands it on. Without a mask it would
    look whether the positions are those of packed sequences, for which the host waits for the device.

    >>> tree = Tree(torch.tensor([5, 5, 3, 5, 5]))
    >>> tree.lengths, tree.ancestors, tree.blocks
    ([2, 1, 2], [[], [0], [0]], [range(0, 3)])
    """

    def __init__(self, subtree_end: Tensor):
        self._end = subtree_end.numpy()
        self._starts = np.flatnonzero(np.diff(self._end, prepend=-1))
        self._masks: dict[tuple, Tensor] = {}
        self._planned: dict[int | None, list[Tensor]] = {}
        self._block_masks: dict[int | None, BlockMask] = {}
        self.recorded = False

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, 1, len(self._end), len(self._end)

    ndim = 4

    def __repr__(self) -> str:
        return f"Tree of {len(self._end)} tokens in {len(self.lengths)} runs"

    __str__ = __repr__

    def plan(self, windows: Iterable[int | None], device: torch.device) -> None:
        """Work out the blocks ahead of the forward, and on CUDA the block masks of these windows."""
        if device.type == "cuda":
            for window in windows:
                self.block_mask(window, device)
        elif self.stretches is None:
            _ = self.blocks

    def read_once(self) -> Tree:
        """The same plan for one forward and its backward, with which the masks that it makes are gone."""
        twin = copy(self)
        twin._masks = {}
        return twin

    @cached_property
    def lengths(self) -> list[int]:
        """Of each run."""
        return np.diff(self._starts, append=len(self._end)).tolist()

    @cached_property
    def ancestors(self) -> list[list[int]]:
        """The runs above each run."""
        found: list[list[int]] = []
        path: list[int] = []
        for run, start in enumerate(self._starts):
            while path and self._end[self._starts[path[-1]]] <= start:
                path.pop()
            found.append(list(path))
            path.append(run)
        return found

    @cached_property
    def positions(self) -> np.ndarray:
        """[T] the depth of each token: how many of those before it have not ended."""
        i = np.arange(len(self._end))
        return i - np.searchsorted(np.sort(self._end), i, side="right")

    @cached_property
    def stretches(self) -> np.ndarray | None:
        """[S, A + STRETCH] the path above a stretch's first node, then the stretch; -1 where none is.

        None if a path is longer than a stretch, or all is one stretch.
        """
        first = np.arange(0, len(self._end), STRETCH)
        longest = self.positions[first].max(initial=0)
        if longest > STRETCH or len(first) < 2:
            return None
        nodes = np.full((len(first), longest + STRETCH), -1)
        j = np.arange(len(self._end))
        stretch, above = np.nonzero((j < first[:, None]) & (first[:, None] < self._end))
        nodes[stretch, self.positions[above]] = above
        nodes[j // STRETCH, longest + j % STRETCH] = j
        return nodes

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """For FlexAttention; made once for all layers with this window."""
        if window not in self._block_masks:
            if self.recorded:
                raise RuntimeError(f"attention looks back {window} tokens, which was not planned")
            self._planned[window] = flex.plan(self._end, self.positions, window, device)
            self._block_masks[window] = flex.mask(len(self._end), window, self._planned[window])
        return self._block_masks[window]

    def tensors(self) -> list[Tensor]:
        """What FlexAttention reads on the device of the block masks that are planned."""
        return [tensor for planned in self._planned.values() for tensor in planned]

    def copied(self) -> Tree:
        """The same for a recording, with tensors of its own: what was not planned would be this batch's for ever."""
        twin = self.read_once()
        twin.recorded = True
        twin._planned = {window: [tensor.clone() for tensor in planned] for window, planned in self._planned.items()}
        twin._block_masks = {window: flex.mask(len(self._end), window, own) for window, own in twin._planned.items()}
        return twin

    def path(self, block: range) -> list[int]:
        """The runs whose keys a block needs: those above its first run, then its own."""
        return [*self.ancestors[block[0]], *block]

    @cached_property
    def blocks(self) -> list[range]:
        """Runs in groups: joined while what is computed in vain costs less than another call would."""
        blocks: list[range] = []
        alone = 0  # query-key products of the runs of the newest block, each for itself
        depths = [sum(self.lengths[r] for r in ancestors) for ancestors in self.ancestors]
        for run, (length, depth) in enumerate(zip(self.lengths, depths, strict=True)):
            area = length * (depth + length)
            if blocks:
                first = blocks[-1][0]
                joined = sum(self.lengths[first : run + 1])
                if joined * (depths[first] + joined) <= alone + area + CALL:
                    blocks[-1], alone = range(first, run + 1), alone + area
                    continue
            blocks.append(range(run, run + 1))
            alone = area
        return blocks

    def band(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """[queries, keys] additive mask for the last ``queries`` of ``keys`` positions."""

        def sees() -> Tensor:
            band = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            return band if window is None else band.triu(keys - queries - window + 1)

        return self._kept((queries, keys, window), sees, like)

    def rule(self, block: range, window: int | None, like: Tensor) -> Tensor:
        """[queries, keys] additive mask of a block of several runs."""

        def sees() -> Tensor:
            key = np.concatenate([np.arange(self.lengths[r]) + self._starts[r] for r in self.path(block)])
            queries = sum(self.lengths[r] for r in block)
            return torch.from_numpy(self._visible(key[-queries:, None], key, window))

        return self._kept((block, window), sees, like)

    def stretch_rule(self, window: int | None, like: Tensor) -> Tensor:
        """[S, 1, STRETCH, A + STRETCH] additive mask of all stretches."""

        def sees() -> Tensor:
            assert self.stretches is not None
            i, j = self.stretches[:, None, -STRETCH:, None], self.stretches[:, None, None, :]
            # a query that is none sees all, and counts nowhere; one that saw nothing would be nan
            return torch.from_numpy((i < 0) | ((j >= 0) & self._visible(i, j, window)))

        return self._kept((STRETCH, window), sees, like)

    def _visible(self, i: np.ndarray, j: np.ndarray, window: int | None) -> np.ndarray:
        """The rule: whether token i sees token j."""
        sees = (j <= i) & (i < self._end[j])
        return sees if window is None else sees & (self.positions[i] - self.positions[j] < window)

    def _kept(self, name: tuple, sees: Callable[[], Tensor], like: Tensor) -> Tensor:
        """The mask of that name, made once for all layers."""
        if name not in self._masks:
            hidden = ~sees().to(like.device)
            self._masks[name] = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
                hidden, float("-inf")
            )
        return self._masks[name]


def tree_attention(
    tree: Tree,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """[1, heads, T, v] from query and key [1, heads, T, d] and value [1, heads, T, v]."""
    if tree.stretches is not None and query.device.type == "cpu":
        return _stretch_attention(tree, tree.stretches, query, key, value, scaling, window, softcap)
    # split, not slices: the backward of a split is one concatenation, that of each slice a full-size zero.
    keys, values = key.split(tree.lengths, dim=2), value.split(tree.lengths, dim=2)
    sizes = [sum(tree.lengths[r] for r in block) for block in tree.blocks]
    out: list[Tensor] = []
    for block, q in zip(tree.blocks, query.split(sizes, dim=2), strict=True):
        path = tree.path(block)
        k, v = (x[path[0]] if len(path) == 1 else torch.cat([x[r] for r in path], dim=2) for x in (keys, values))
        if len(block) == 1:
            out.extend(_run_attention(tree, q, k, v, scaling, window, softcap))
        else:
            out.append(_attend(q, k, v, tree.rule(block, window, q), scaling, softcap))
    return torch.cat(out, dim=2)


def _stretch_attention(tree, stretches, query, key, value, scaling, window, softcap) -> Tensor:
    """All stretches in one call, each with a copy of the keys and values that it sees."""
    heads, length, size = query.shape[1:]
    q, k, v = (x[0].transpose(0, 1).reshape(length, -1) for x in (query, key, value))  # [T, heads · d]
    seen = torch.from_numpy(stretches.clip(0).reshape(-1))
    k, v = (x.index_select(0, seen).view(*stretches.shape, heads, -1).transpose(1, 2) for x in (k, v))
    q = F.pad(q, (0, 0, 0, len(stretches) * STRETCH - length)).view(-1, STRETCH, heads, size).transpose(1, 2)
    out = _attend(q, k, v, tree.stretch_rule(window, query), scaling, softcap)
    return out.transpose(1, 2).flatten(0, 1)[:length].transpose(0, 1)[None]


def _run_attention(tree, q, k, v, scaling, window, softcap) -> Iterator[Tensor]:
    """The attention of one run, in pieces of bounded size; its queries are the last positions of its keys."""
    length, depth = q.shape[2], k.shape[2] - q.shape[2]
    if not depth and not softcap and (window is None or length <= window):
        yield F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        return
    for start in range(0, length, QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, length)
        first = 0 if window is None else max(0, depth + start - window + 1)
        piece, k_seen, v_seen = q[:, :, start:stop], k[:, :, first : depth + stop], v[:, :, first : depth + stop]
        mask = tree.band(stop - start, depth + stop - first, window, q)
        yield _attend(piece, k_seen, v_seen, mask, scaling, softcap)


def _attend(q, k, v, mask, scaling, softcap) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    # Gemma 2's attention: scores squeezed to (-softcap, softcap) before the mask. SDPA has no such option.
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _forward(module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **kwargs):
    if not isinstance(attention_mask, Tree):
        kwargs |= {} if softcap is None else {"softcap": softcap}
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if flex.takes(query):
        mask = attention_mask.block_mask(sliding_window, query.device)
        out = flex.attend(query, key, value, mask, scaling, softcap)
    else:
        if attention_mask.recorded:
            raise RuntimeError("attention over heads narrower than 16 is planned by the host")
        # In float32 at least: on a CPU SDPA's backward pass takes three times as long in bfloat16, and with 30M
        # parameters a run took 0.6 GB more.
        groups, dtype = query.shape[1] // key.shape[1], query.dtype
        query, key, value = (x.to(torch.promote_types(dtype, torch.float32)) for x in (query, key, value))
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        with torch.autocast(query.device.type, enabled=False):
            out = tree_attention(attention_mask, query, key, value, scaling, sliding_window, softcap).to(dtype)
    return out.transpose(1, 2).contiguous(), None


# Not compiled with the layer that calls it: what it does hangs on the tree, and its kernel is compiled by itself.
AttentionInterface.register(NAME, torch.compiler.disable(_forward))
AttentionMaskInterface.register(NAME, sdpa_mask)
