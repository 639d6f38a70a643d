"""Activations that would not fit are computed a second time, so that a long example takes less memory.

A layer that is recomputed keeps what goes into it until the backward pass, and runs again there. It costs a third of
that layer's time, so it is done in as few layers as need be: in none where a batch is about as long as was planned
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

INPUT = 1 / 10
"""what goes into a layer, as a share of all that it keeps: 1/22 in a Llama, 1/13 in OPT, more with narrower numbers"""
SLACK = 9 / 8
"""micro-batches are about as long as planned, some of them longer"""


def layers_of(body: nn.Module) -> list[Any]:
    """The outermost layers that can be recomputed, in their order; a few architectures of transformers have none."""
    found: list[Any] = []
    for part in body.children():
        found += [part] if isinstance(part, GradientCheckpointingLayer) else layers_of(part)
    return list(dict.fromkeys(found))


def how_many(tokens: int, room: int, layers: int) -> int:
    """Layers to recompute, so that ``tokens`` keep about what ``room`` of them would with nothing recomputed, or all.

    >>> [how_many(tokens, 512, layers=8) for tokens in (512, 600, 1024, 4096, 65536)]
    [0, 1, 4, 8, 8]
    """
    fits = (n for n in range(layers) if tokens * (n * INPUT + layers - n) <= SLACK * room * layers)
    return next(fits, layers)


def at_least(tokens: int, layers: int) -> int:
    """As many tokens, with nothing recomputed, keep what so many ``tokens`` keep with everything recomputed.

    All layers' inputs, and all of the one layer that is running again.

    >>> at_least(10_000, layers=8)
    2250
    """
    return round(tokens * (INPUT + 1 / layers))


@contextmanager
def recomputing(layers: Sequence[Any]) -> Iterator[None]:
    """A forward pass within this block keeps only what goes into these layers."""
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True  # transformers asks for both
        layer._gradient_checkpointing_func = partial(twice, layer)
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.gradient_checkpointing, layer.training = False, training
            del layer._gradient_checkpointing_func  # it holds the layer, which would hold itself


def twice(layer: Any, run: Callable[..., Any], *inputs: Any) -> Any:
    layer.gradient_checkpointing = layer.training = False  # as they will be when it runs again
    try:
        return checkpoint(run, *inputs, use_reentrant=False)
    finally:
        layer.gradient_checkpointing = layer.training = True
