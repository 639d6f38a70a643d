"""Activations that would not fit are computed a second time, so that a long example takes no more memory than others.

A layer that is recomputed keeps what goes into it until the backward pass, and runs again there. It costs a third of
that layer's time, so it is done in as few layers as need be: in none where a batch is no longer than what was planned
for. The first layers are taken, since those that keep all are through when the first ones run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

INPUT = 1 / 16
"""what goes into a layer, as a share of all that it keeps: no more than this, and in a Llama 1/28"""


def layers_of(body: nn.Module) -> list[Any]:
    """The layers that can be recomputed, in their order; a few architectures of transformers have none."""
    return [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]


def how_many(tokens: int, room: int, layers: int) -> int:
    """Layers to recompute, so that so many ``tokens`` keep no more than ``room`` of them would with nothing recomputed.

    >>> [how_many(tokens, 512, layers=8) for tokens in (512, 600, 1024, 4096, 65536)]
    [0, 2, 5, 8, 8]
    """
    fits = (n for n in range(layers) if tokens * (n * INPUT + layers - n) <= room * layers)
    return next(fits, layers)


@contextmanager
def recomputing(layers: Sequence[Any]) -> Iterator[None]:
    """A forward pass within this block keeps only what goes into these layers."""
    for layer in layers:
        layer._gradient_checkpointing_func = partial(_twice, layer)
        layer.gradient_checkpointing = layer.training = True  # transformers asks for both
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False


def _twice(layer: Any, run: Callable[..., Any], *inputs: Any) -> Any:
    layer.training = False  # now, since it will be so when it runs again; and nothing is random then
    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
