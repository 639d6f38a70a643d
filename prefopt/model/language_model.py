"""A causal language model, and how prefopt reads it: log-probs of responses, in one of three ways.

``tree``    the token tree, our attention, the head in chunks: the fast way
``rows``    one sequence per row, the model's own attention, the head in chunks
``logits``  one sequence per row, the model's own logits: works with everything
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

from prefopt.data import plan
from prefopt.errors import UserError
from prefopt.model import attention
from prefopt.model.graphs import Graphs, filled
from prefopt.model.logprobs import Head, token_logps
from prefopt.model.narrow import narrow
from prefopt.model.quiet import quiet
from prefopt.model.recompute import SLACK, how_many, layers_of, recomputing, twice
from prefopt.model.tree import pack, pack_rows
from prefopt.types import Encoded, LogProbs, PackedBatch

Way = Literal["tree", "rows", "logits"]
T = TypeVar("T")


def bare_model(module: Any) -> Any:
    """The transformers model itself, also within PEFT's wrapper."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


class LanguageModel:
    """Wraps a transformers causal LM, or a PEFT model around one. Its state is the module, the way, and recordings."""

    def __init__(self, module: nn.Module, way: Way = "rows", dtype: torch.dtype | None = None):
        self.module: Any = module
        self.dtype = dtype or next(module.parameters()).dtype
        """what is computed in; the weights may be wider, so that small updates are not rounded away"""
        # PEFT puts its layers inside the base model, so the bare model inside runs them too.
        self.bare: Any = bare_model(module)
        self._native_attention = self.bare.config._attn_implementation
        self.way: Way = way
        self.why = ""
        self.graphs: Graphs | None = None
        wide = self.device.type == "cuda" and self.dtype != next(module.parameters()).dtype
        self._narrow = narrow(self.layers) if wide else []
        self.read_as(way)

    def read_as(self, way: Way, why: str = "") -> None:
        """Choose the way; ``why`` is the sentence a person reads when it is not the fast one.

        Raises ValueError where the model has no attention interface, so no tree.
        """
        self.bare.set_attn_implementation(attention.NAME if way == "tree" else self._native_attention)
        self.way, self.why = way, why

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def computing(self) -> torch.autocast:
        """Within this block the module computes in ``dtype``."""
        narrower = self.dtype != next(self.module.parameters()).dtype
        return torch.autocast(self.device.type, self.dtype if narrower else None, enabled=narrower)

    def weights(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name: what a checkpoint holds."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_weights(self, saved: dict[str, Tensor]) -> None:
        """Put back what ``weights`` gave. UserError where those are another model's."""
        for name, parameter in self.weights().items():
            if name not in saved or saved[name].shape != parameter.shape:
                raise UserError(
                    f"the checkpoint has no {name} of this model's shape: put the model back that the run began with"
                )
            parameter.copy_(saved[name])

    def save(self, folder: Path) -> None:
        """What ``AutoModelForCausalLM.from_pretrained`` reads."""
        with quiet():
            self.bare.save_pretrained(folder)

    @cached_property
    def layers(self) -> list[Any]:
        """Those that can be recomputed; not those that read pictures."""
        decoder = getattr(self.bare, "get_decoder", lambda: None)()
        return layers_of(decoder if isinstance(decoder, nn.Module) else self.bare.base_model)

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the model is told positions; others count for themselves."""
        return "position_ids" in inspect.signature(self.bare.forward).parameters

    @cached_property
    def _windows(self) -> set[int | None]:
        """How far the layers look back; None: to the beginning."""
        config = self.bare.config.get_text_config()
        window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        return {window if kind == "sliding_attention" else None for kind in kinds} if kinds else {window}

    def microbatches(self, examples: Sequence[Encoded], budget: int) -> list[list[Encoded]]:
        """``examples`` in groups of about ``budget`` tokens, counted as this model reads them."""
        return (plan.microbatches if self.way == "tree" else plan.in_rows)(examples, budget)

    def pack(self, examples: Sequence[Encoded]) -> PackedBatch:
        """The responses of ``examples``, in their order, as this model reads them."""
        if self.way != "tree":
            return pack_rows(examples, self.device)
        batch = pack(examples, self.device, filled if self.recording else None)
        batch.tree.plan(self._windows, self.device)
        return batch

    def logprobs(self, batch: PackedBatch, room: int | None = None) -> LogProbs:
        """log π(y|x) of the R responses of a batch, token by token and summed, with their gradient.

        ``room``: tokens whose activations may be kept; of a longer batch some layers are recomputed.
        """
        return self._with_room(lambda: self._logprobs(batch, room))

    def _logprobs(self, batch: PackedBatch, room: int | None) -> LogProbs:
        vocabulary = self.bare.config.get_text_config().vocab_size
        with self.computing():
            if self.way == "logits":
                with recomputing(self.layers[: self._recomputed(batch, room)]):
                    logits = self.bare(**self._inputs(batch)).logits.flatten(0, 1)
                token = token_logps(rows(logits, batch.source), lambda h: h, batch.target, vocabulary)
            else:
                hidden = rows(self.hidden(batch, room), batch.source)
                token = token_logps(hidden, self._head(), batch.target, vocabulary)
        return LogProbs.from_tokens(token, batch.owner, batch.responses)

    @torch.no_grad()
    def score(self, batch: PackedBatch) -> LogProbs:
        """``logprobs`` without a gradient."""
        return self.logprobs(batch)

    def hidden(self, batch: PackedBatch, room: int | None = None) -> Tensor:
        """[T, H] (or [R·L, H]): what the head reads; ``room`` as for ``logprobs``."""
        again = self._recomputed(batch, room)
        if self.graphs is not None and torch.is_grad_enabled():
            replayed = self.graphs.hidden(batch, fits=not again)
            if replayed is not None:
                return replayed
        return self._with_room(lambda: self._hidden(batch, again))

    def _with_room(self, work: Callable[[], T]) -> T:
        """``work``; once more, with the memory that recordings hold, where there is too little."""
        try:
            return work()
        except torch.OutOfMemoryError:
            if self.graphs is None or not self.graphs.known:
                raise
        self.graphs.make_room()
        return work()

    def _hidden(self, batch: PackedBatch, again: int = 0) -> Tensor:
        self._ready()
        with recomputing(self.layers[:again]), _without_cache():
            return self.bare.base_model(**self._inputs(batch)).last_hidden_state.flatten(0, 1)

    def compile(self, wanted: bool = True, backend: str = "inductor") -> None:
        """Have torch make kernels, at their first use, of what stands in a layer around its attention; or not.

        Passes without a gradient go as before: each would be kernels of its own.
        """
        for layer in self.layers:
            layer._compiled_call_impl = _where_it_learns(layer, backend) if wanted else None

    @contextmanager
    def recorded(self, note: Callable[[str], object]) -> Iterator[None]:
        """Within this block a GPU is given forward and backward passes of trees as CUDA graphs (graphs.py).

        ``note`` is told where that can't be. Gradients are to be there, or none, when a block's first pass begins, and
        zeroed in place from then on.
        """
        if self.device.type == "cuda" and self.way == "tree":
            self.graphs = self._graphs(note)
        try:
            yield
        finally:
            graphs, self.graphs = self.graphs, None
            if graphs is not None:
                with suppress(RuntimeError):  # says once more what ended the block, where that was the device
                    graphs.forget()

    def _graphs(self, note: Callable[[str], object]) -> Graphs:
        weights = list(self.bare.base_model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        return Graphs(self._hidden, trained, sum(weight.numel() for weight in weights), self._ready, note)

    @property
    def recording(self) -> bool:
        """Whether passes are recorded, or will be."""
        return self.graphs is not None and not self.graphs.given_up

    def _ready(self) -> None:
        """Narrow weights are those of now."""
        for linear in self._narrow:
            if linear.weight.requires_grad:
                linear.narrow(self.dtype)

    def _recomputed(self, batch: PackedBatch, room: int | None) -> int:
        """How many of the first layers keep only what goes into them."""
        if room is None or not torch.is_grad_enabled():
            return 0
        if self.recording:  # what a batch is filled up with is no reason
            room = math.ceil(filled(int(SLACK * room)) / SLACK)
        return how_many(batch.ids.numel(), room, len(self.layers))

    def _inputs(self, batch: PackedBatch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
        if self.takes_positions:
            inputs["position_ids"] = batch.positions.clamp(min=0)
        inputs["attention_mask"] = (batch.positions >= 0).long() if batch.tree is None else batch.tree.read_once()
        return inputs

    def _head(self) -> Head:
        """From hidden states [n, H] to logits [n, V]: the module itself, where nothing stands behind it."""
        config = self.bare.config.get_text_config()
        behind = ("logit_scale", "logits_scaling", "final_logit_softcapping")
        plain = not any(getattr(config, name, None) for name in behind)
        return self.bare.get_output_embeddings() if plain else self._scaled_head

    def _scaled_head(self, hidden: Tensor) -> Tensor:
        """With the scaling and soft-capping that some architectures put behind their head."""
        config = self.bare.config.get_text_config()
        logits = self.bare.get_output_embeddings()(hidden)
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scale := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = cap * torch.tanh(logits / cap)
        return logits


def _where_it_learns(layer: Any, backend: str) -> Callable[..., Any]:
    """The layer, compiled where there is a gradient. Its batches have many lengths, and none may cost a compilation."""
    plain, known = type(layer)._call_impl, ref(layer)  # a layer that holds what holds it outlives its model
    compiled = torch.compile(plain, dynamic=True, backend=backend)

    def call(*args: Any, **kwargs: Any) -> Any:
        layer: Any = known()
        if not torch.is_grad_enabled():
            return plain(layer, *args, **kwargs)
        if layer.gradient_checkpointing:  # around what is compiled: within, a compiler leaves the layer as it is
            return twice(layer, partial(compiled, layer, **kwargs), *args)
        return compiled(layer, *args, **kwargs)

    return call


@contextmanager
def _without_cache() -> Iterator[None]:
    """What autocast casts is not kept: a recording's is its own, and with a cache layers would be compiled again."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def rows(values: Tensor, at: Tensor) -> Tensor:
    """``values[at]``, some rows more than once, in the way whose gradient is added up in the same order every time."""
    return values[at] if values.is_cuda else values.index_select(0, at)
