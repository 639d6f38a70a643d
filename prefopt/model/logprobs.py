"""From hidden states to log-probabilities, without ever holding all the logits.

The head runs on the scored tokens only, in chunks that are recomputed in the backward pass, so
memory is that of one chunk whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 64 * 2**20  # of fp32 logits held at once

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

    chunk = max(128, CHUNK_BYTES // (4 * vocabulary))
    if len(target) <= chunk:
        return score(hidden, target)
    if not torch.is_grad_enabled():
        return torch.cat([score(h, t) for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True)])
    pieces = zip(hidden.split(chunk), target.split(chunk), strict=True)
    return torch.cat([checkpoint(score, h, t, use_reentrant=False) for h, t in pieces])
