"""Attention over a token tree on CUDA: compiled FlexAttention, which skips what no token of a block sees.

The rule is the same line as everywhere, ``j <= i < subtree_end[j]`` (and a window), evaluated by the kernel. Which
blocks of 128 x 128 it has to look at follows from the least and the greatest ``subtree_end`` within a block,
so the block mask costs (T/128)² on the host and never T².
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from prefopt.transfer import to_device

BLOCK = 128
OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
"""not the kernel for decoding that torch takes below 128 queries, which has no tiles for most grouped heads"""


def takes(query: Tensor) -> bool:
    """Whether the kernel is there for it: on CUDA, where heads are not narrower than 16."""
    return query.is_cuda and query.shape[-1] >= 16


def plan(end: np.ndarray, positions: np.ndarray, window: int | None, device: torch.device | str) -> list[Tensor]:
    """The tree's visibility for T tokens, from ``subtree_end`` [T] and ``positions`` [T]: both, and the blocks.

    >>> planned = plan(np.array([300] * 200 + [260] * 60 + [300] * 40), np.arange(300), None, "cpu")
    >>> mask(300, None, planned).to_dense()[0, 0].tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    size = len(end)
    blocks = -(-size // BLOCK)
    room = blocks * BLOCK - size
    ends = np.pad(end, (0, room))  # padding is seen by nobody
    in_blocks, at = ends.reshape(blocks, BLOCK), np.pad(positions, (0, room), mode="edge").reshape(blocks, BLOCK)
    first = np.arange(blocks) * BLOCK
    q, k = np.arange(blocks)[:, None], np.arange(blocks)[None, :]
    some = (k <= q) & (in_blocks.max(1)[None, :] > first[:, None])
    full = (k < q) & (in_blocks.min(1)[None, :] >= np.minimum(first + BLOCK, size)[:, None])
    if window is not None:
        some &= at.min(1)[:, None] - at.max(1)[None, :] < window
        full &= at.max(1)[:, None] - at.min(1)[None, :] < window
    # Keys by queries for the forward pass, queries by keys for the backward. BlockMask.from_kv_blocks would work the
    # latter out with torch code that must not run in this thread while another one compiles.
    partial = some & ~full
    listed = (x for blocks in (partial, full, partial.T, full.T) for x in _listed(blocks))
    return [to_device(torch.from_numpy(x), device) for x in (ends, at.reshape(-1), *listed)]


def mask(size: int, window: int | None, planned: list[Tensor]) -> BlockMask:
    """What FlexAttention reads the tensors of a `plan` through."""
    ends, at, *blocks = planned

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        visible = (j <= i) & (i < ends[j])
        return visible if window is None else visible & (at[i] - at[j] < window)

    return BlockMask((size, size), *blocks, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)  # type: ignore[misc, arg-type]


def _listed(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n, n] bool -> how many columns each row goes with [1, 1, n], and which, these first [1, 1, n, n]."""
    count, order = wanted.sum(1), np.argsort(~wanted, axis=1, kind="stable")
    return count.astype(np.int32)[None, None], order.astype(np.int32)[None, None]


def _kernel(query: Tensor) -> Any:
    return _compiled() if query.is_cuda else flex_attention


@cache
def _compiled(backend: str = "inductor") -> Callable[..., Any]:
    """Every batch has a length of its own, and none may cost a compilation: ``dynamic``.

    A soft cap is a constant of the kernel. With and without a gradient, with and without a window, each model's heads:
    each is a kernel of its own, more than the eight after which torch would compute T x T scores without a word.
    """
    torch._dynamo.config.specialize_float = True
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None, softcap: float | None
) -> Tensor:
    """[1, heads, T, d]; key and value may have fewer heads.

    All in the type of ``value``: under autocast, rotated queries and keys are wider, and the kernel takes one type.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)

    def squeeze(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    return _kernel(query)(
        query, key, value, block_mask=mask, scale=scaling,
        score_mod=None if softcap is None else squeeze, enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=OPTIONS,
    )  # fmt: skip
