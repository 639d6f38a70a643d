"""Attention over a token tree, as one function that transformers calls in every layer.

A tree falls into *runs*: stretches without a branch. What a run's queries see is the path from the
root to it, then the run itself, causally. Along a path every depth occurs once, so the gathered keys
stand at their positions, and the mask of a run is a plain band, whatever the tree: key k is visible to
query q exactly when ``q - window < k <= q``. No T x T mask is ever built.

Registered under ``NAME`` with transformers' AttentionInterface and its mask interface: the mask that a
model makes is the Tree itself, and it travels through the layers (and through their recomputation) to
the attention function. Without a tree (generation, rows) the function is plain SDPA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "prefopt_tree"
QUERIES_AT_ONCE = 1024  # bounds the mask of a long run: this many rows times its keys


class Tree:
    """The runs of one packed batch: what the attention of every layer needs to know.

    >>> tree = Tree(torch.tensor([5, 5, 3, 5, 5]))
    >>> tree.lengths, tree.ancestors
    ([2, 1, 2], [[], [0], [0]])
    """

    def __init__(self, subtree_end: Tensor):
        end = subtree_end.cpu().numpy()
        starts = np.flatnonzero(np.diff(end, prepend=-1))
        self.lengths: list[int] = np.diff(starts, append=len(end)).tolist()
        self.ancestors: list[list[int]] = []
        path: list[int] = []
        for run, start in enumerate(starts):
            while path and end[starts[path[-1]]] <= start:
                path.pop()
            self.ancestors.append(list(path))
            path.append(run)
        self._bands: dict[tuple, Tensor] = {}

    def band(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """[queries, keys] additive mask for the last ``queries`` of ``keys`` positions; kept for the next layer."""
        name = (queries, keys, window)
        if name not in self._bands:
            sees = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril(keys - queries)
            if window is not None:
                sees = sees.triu(keys - queries - window + 1)
            self._bands[name] = torch.zeros(queries, keys, dtype=like.dtype, device=like.device).masked_fill(
                ~sees, float("-inf")
            )
        return self._bands[name]


def tree_attention(
    tree: Tree,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """[1, heads, T, d] from query [1, heads, T, d] and key, value [1, heads, T, d]."""
    # split, not slices: the backward of a split is one concatenation, that of each slice a full-size zero.
    queries, keys, values = (x.split(tree.lengths, dim=2) for x in (query, key, value))
    out: list[Tensor] = []
    for run, ancestors in enumerate(tree.ancestors):
        path = [*ancestors, run]
        k = keys[run] if not ancestors else torch.cat([keys[r] for r in path], dim=2)
        v = values[run] if not ancestors else torch.cat([values[r] for r in path], dim=2)
        out.extend(_run_attention(tree, queries[run], k, v, scaling, window, softcap))
    return torch.cat(out, dim=2)


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
        if softcap is None:
            yield F.scaled_dot_product_attention(piece, k_seen, v_seen, attn_mask=mask, scale=scaling)
        else:
            yield _softcapped(piece, k_seen, v_seen, mask, scaling, softcap)


def _softcapped(q, k, v, mask, scaling, softcap) -> Tensor:
    """Gemma 2's attention: scores squeezed to (-softcap, softcap) before the mask. SDPA has no such option."""
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap) + mask
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


_current: ContextVar[Tree | None] = ContextVar("tree", default=None)


@contextmanager
def reading(tree: Tree) -> Iterator[None]:
    """Within this block a model whose attention is ``NAME`` reads its input as this tree."""
    token = _current.set(tree)
    try:
        yield
    finally:
        _current.reset(token)


def _mask(*args, **kwargs):
    tree = _current.get()
    return sdpa_mask(*args, **kwargs) if tree is None else tree


def _forward(module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **kwargs):
    if not isinstance(attention_mask, Tree):
        kwargs |= {} if softcap is None else {"softcap": softcap}
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    out = tree_attention(attention_mask, query, key, value, scaling, sliding_window, softcap)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, _mask)
