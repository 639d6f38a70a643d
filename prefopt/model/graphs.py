"""What a GPU does for a batch of so many tokens, recorded once, and from then on asked for in one call.

A step of a model of 0.5 billion parameters is some ten thousand kernels, which take a GPU less time than its host
needs to hand them over one by one. A CUDA graph holds them all; what goes into them lies in the same place every time.
Trees differ from batch to batch and so do their lengths: they are filled up to one of eight lengths in every
doubling, each of which has its graphs, and what attention may see is read by its kernel from tensors.

Activations live in memory that the graphs share, since one backward pass is through before the next forward pass
begins. The head, the loss and the optimizer are no part of a graph.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from prefopt.model.flex import BLOCK
from prefopt.types import PackedBatch

log = logging.getLogger(__name__)
EAGER = 2
"""passes that are computed without a graph before any is recorded: by then kernels are made, as a rule"""
TRIES = 2
"""recordings that may fail: where one did, because a kernel was still to be made, say, the pass is computed"""
MAKING_ROOM = 3
"""times that a batch takes the graphs' memory, after which they are given up"""
GPU_BOUND = 8e12
"""parameters times tokens, from which on a GPU needs longer than its host: an H200, in bfloat16, some 0.1 s"""

Body = Callable[[PackedBatch], Tensor]
Work = Callable[[], object]
Recorder = Callable[[Work], Work]


def filled(tokens: int) -> int:
    """What a tree of so many tokens is filled up to: two of the kernel's blocks, the next block, or an eighth more.

    >>> [filled(tokens) for tokens in (1, 300, 2048, 2049, 4096, 5000, 16000)]
    [256, 384, 2048, 2304, 4096, 5120, 16384]
    """
    step = max(BLOCK, 2 ** (tokens - 1).bit_length() // 16)
    return max(2 * BLOCK, -(-tokens // step) * step)  # one block alone would take a kernel of its own


def on_cuda() -> Recorder:
    """Records graphs that share their memory, which is free again when all of them are gone, and the recorder too."""
    pool: Any = torch.cuda.graph_pool_handle()

    def record(work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        with torch.cuda.stream(_stream()):  # and off it again, also where a recording fails
            try:
                # Another thread packs batches meanwhile, and may ask for memory.
                graph.capture_begin(pool, capture_error_mode="thread_local")
                work()
                graph.capture_end()
            except BaseException:
                _abandon(graph, pool)
                raise
        return graph.replay

    return record


@cache
def _stream() -> torch.cuda.Stream:
    """One for forward and backward passes: autograd goes back on the stream that it came on."""
    return torch.cuda.Stream()


_abandoned: list[torch.cuda.CUDAGraph] = []  # torch's allocator still asks them whose memory something is


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Ends a recording in which something failed. Where it can't be ended, torch leaves the memory to it for good."""
    try:
        graph.capture_end()
    except Exception:
        _abandoned.append(graph)
        for give_back in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with suppress(Exception):
                give_back(torch.cuda.current_device(), pool)
        with suppress(Exception):  # until another recording ends, random numbers are held to be a recording's
            after = torch.cuda.CUDAGraph()
            after.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device="cuda")
            after.capture_end()
    else:
        graph.reset()


class Graph:
    """Forward and backward pass of ``body`` for trees of as many tokens as ``batch`` has.

    The backward pass adds to ``gradients``, those of the weights, where they lie.
    """

    def __init__(self, body: Body, batch: PackedBatch, gradients: list[Tensor | None], record: Recorder):
        tree = batch.tree.copied()
        self.batch = replace(batch, ids=batch.ids.clone(), positions=batch.positions.clone(), tree=tree)
        self.hidden, self.upstream = Tensor(), Tensor()
        self.gradients = gradients
        live = Tensor()

        def forward() -> None:
            nonlocal live
            live = body(self.batch)
            self.hidden = live.detach()

        def backward() -> None:
            with torch.autocast(live.device.type, enabled=False):
                live.backward(self.upstream)

        self.forward = record(forward)
        self.upstream = torch.zeros_like(self.hidden)
        self.backward = record(backward)
        live = Tensor()  # activations are the graphs' alone

    def load(self, batch: PackedBatch) -> None:
        """``batch`` in place of the one before."""
        torch._foreach_copy_(_inputs(self.batch), _inputs(batch))


def _inputs(batch: PackedBatch) -> list[Tensor]:
    return [batch.ids, batch.positions, *batch.tree.tensors()]


@dataclass
class Graphs:
    """The graphs of one model's ``body``, by length.

    ``weights``: those of it that are trained, among ``parameters`` in all. ``ready`` makes it so that what is read is
    there. ``note`` is told why steps are not recorded.
    """

    body: Body
    weights: Sequence[nn.Parameter]
    parameters: int
    ready: Callable[[], None]
    note: Callable[[str], object]
    recorder: Callable[[], Recorder] = on_cuda
    known: dict[int, Graph] = field(default_factory=dict)
    record: Recorder | None = None
    eager: int = 0
    """passes that were computed without a graph"""
    failures: int = 0
    made_room: int = 0
    given_up: bool = False
    under_way: Callable[[], object] = lambda: None
    """gives what lives until the newest forward pass has been followed by its backward pass, or is forgotten"""

    def hidden(self, batch: PackedBatch, fits: bool = True) -> Tensor | None:
        """What ``body`` gives, [T, H], with its gradient; None where it is to be computed without a graph.

        ``fits``: whether it takes no more memory than others do, or else the graphs make room for it.
        """
        if not fits and self.known and _scarce():
            self.make_room()
        pays = fits and self.parameters * batch.ids.numel() < GPU_BOUND
        if pays and not self.given_up and self.eager >= EAGER and self.under_way() is None:
            self.ready()
            graph = self._of(batch)
            if graph is not None:
                pass_ = Pass(graph)
                self.under_way = ref(pass_)
                return _Replay.apply(torch.zeros((), requires_grad=True), pass_, batch)
        self.eager += 1
        return None

    def _of(self, batch: PackedBatch) -> Graph | None:
        """That of its length; recorded, where there is none or gradients lie elsewhere now."""
        length, gradients = batch.ids.numel(), [weight.grad for weight in self.weights]
        known = self.known.get(length)
        if known is not None and all(a is b for a, b in zip(known.gradients, gradients, strict=True)):
            return known
        self.known.pop(length, None)
        del known
        try:
            self.record = self.record or self.recorder()
            made = Graph(self.body, batch, gradients, self.record)
        except torch.OutOfMemoryError:
            made, why = None, ""
        except Exception as error:  # whatever cannot be recorded: what asks the device for a value, say
            log.debug("recording", exc_info=True)
            made, why = None, f"{type(error).__name__}: {' '.join(str(error).split()[:24])}"
        if made is None:  # and here, where what failed is gone
            self._failed(why) if why else self.make_room()
        elif self._kept(gradients):
            self.known[length] = made
            return made
        return None

    def _failed(self, why: str) -> None:
        self.forget()
        self.failures += 1
        if self.failures == TRIES:
            self._give_up(why)

    def _kept(self, gradients: list[Tensor | None]) -> bool:
        """Whether no weight has got its first gradient, which a replay would not add to but begin anew."""
        begun = [(w, before) for w, before in zip(self.weights, gradients, strict=True) if w.grad is not before]
        for weight, before in begun:
            weight.grad = before
        return not begun

    def make_room(self) -> None:
        """Another pass needs the memory; what is recorded is recorded anew afterwards."""
        self.forget()
        self.made_room += 1
        if self.made_room == MAKING_ROOM:
            self._give_up("there are batches that need the memory they take")

    def _give_up(self, why: str) -> None:
        self.forget()
        self.given_up = True
        self.note(f"steps are not recorded as CUDA graphs, so they take longer: {why}")

    def forget(self) -> None:
        """Give their memory back, and its pool: torch takes none that has been empty."""
        self.known.clear()
        self.record = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def _scarce() -> bool:
    """Whether another pass may not find room beside what is taken."""
    free, total = torch.cuda.mem_get_info()
    return free < total // 3


@dataclass
class Pass:
    """One use of a graph, which all graphs wait for: its activations lie where theirs would."""

    graph: Graph


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trigger: Tensor, pass_: Pass, batch: PackedBatch) -> Tensor:
        pass_.graph.load(batch)
        pass_.graph.forward()
        ctx.pass_ = pass_
        return pass_.graph.hidden.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, None, None]:
        if ctx.pass_ is None:
            raise RuntimeError("a recorded pass has one backward pass, and this is another one")
        ctx.pass_.graph.upstream.copy_(upstream)
        ctx.pass_.graph.backward()
        ctx.pass_ = None
        return None, None, None
