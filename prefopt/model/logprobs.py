"""From hidden states to log-probabilities, without ever holding all the logits.

The head runs on the scored tokens only, in chunks that are recomputed in the backward pass, so
memory is that of one chunk whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 64 * 2**20  # of fp32 logits held at once, eight times as many on a GPU

Head = Callable[[Tensor], Tensor]


def token_logps(hidden: Tensor, head: Head, target: Tensor, vocabulary: int) -> Tensor:
    """[N] log-probability of each ``target`` [N] given ``hidden`` [N, H]; fp32, in nats.

    ``head`` maps [n, H] to logits [n, V].

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 100.0]])
    >>> token_logps(logits, lambda h: h, torch.tensor([0, 1]), vocabulary=2).tolist()
    [-0.6931471824645996, 0.0]
    """

    def score(hidden: Tensor, target: Tensor) -> Tensor:
        return -F.cross_entropy(head(hidden).float(), target, reduction="none")

    chunk = max(128, (8 if hidden.is_cuda else 1) * CHUNK_BYTES // (4 * vocabulary))
    if len(target) <= chunk:
        return score(hidden, target)
    if not torch.is_grad_enabled():
        return torch.cat([score(h, t) for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True)])
    if _is_plain(head, hidden):
        return _LinearLogps.apply(hidden, head.weight, target, chunk)  # type: ignore[attr-defined]
    pieces = zip(hidden.split(chunk), target.split(chunk), strict=True)
    return torch.cat([checkpoint(score, h, t, use_reentrant=False) for h, t in pieces])


def _is_plain(head: Head, hidden: Tensor) -> bool:
    """Is it one matrix in fp32, and nothing else?

    A subclass may compute something else, a hook may change it, and autocast computes in less.
    """
    return (
        type(head) is nn.Linear
        and head.bias is None
        and type(head.weight) is nn.Parameter
        and not (head._forward_hooks or head._forward_pre_hooks)
        and hidden.dtype == head.weight.dtype == torch.float32
        and not torch.is_autocast_enabled(hidden.device.type)
    )


class _LinearLogps(torch.autograd.Function):
    """What ``checkpoint`` does, for such a head, at less cost where the vocabulary is large.

    The gradient of the weight [V, H] is one matrix that the chunks add to, not one for each, and logits become
    their own gradient in place. Measured on CPU with 384 tokens of width 512: 0.78 of the time with a vocabulary
    of 64k, 0.65 against 1.1 GB with one of 128k.
    """

    @staticmethod
    def forward(ctx, hidden, weight, target, chunk):
        logps, normalizers = [], []
        for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True):
            logits = h @ weight.T
            normalizers.append(logits.logsumexp(-1))
            logps.append(logits.gather(1, t[:, None])[:, 0] - normalizers[-1])
        ctx.save_for_backward(hidden, weight, target, torch.cat(normalizers))
        ctx.chunk = chunk
        return torch.cat(logps)

    @staticmethod
    def backward(ctx, *upstream):
        hidden, weight, target, normalizer = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        chunks = (x.split(ctx.chunk) for x in (hidden, target, normalizer, upstream[0], d_hidden))
        for h, t, z, g, d_h in zip(*chunks, strict=True):
            p = torch.addmm(-z[:, None], h, weight.T).exp_()
            d_logits = p.mul_(-g[:, None]).scatter_add_(1, t[:, None], g[:, None])  # g (1[target] − p)
            torch.mm(d_logits, weight, out=d_h)
            if d_weight is not None:
                d_weight.addmm_(d_logits.T, h)
        return d_hidden, d_weight, None, None
