"""What a model keeps of each token for the backward pass: measured, without computing anything.

A forward pass over tensors that have a shape and a type but no content tells autograd to keep what it will keep of
real ones. Which architecture it is, and how wide its layers are, need not be known.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import repeat_kv

from prefopt.model.quiet import quiet

NAMES = {"cpu": "prefopt_footprint_cpu", "cuda": "prefopt_footprint"}
TOKENS = 32, 64
MOST_TOKENS = {"cpu": 1024, "cuda": 16384}
"""tokens computed at once, beyond which nothing is gained"""

log = logging.getLogger(__name__)


def kept_a_token(model: Any, dtype: torch.dtype, device: str = "cpu") -> int | None:
    """Bytes, by a model's configuration, of weights in float32 that are computed with in ``dtype``.

    None where the model cannot be gone through without content, as where experts are chosen by what was computed.
    """
    complaints = logging.getLogger("torch._subclasses.fake_tensor")
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode  # no public name yet

        complaints.disabled = True
        with quiet(), FakeTensorMode():
            module = AutoModelForCausalLM.from_config(deepcopy(model), dtype=torch.float32)  # told of the name
            module.eval().set_attn_implementation(NAMES[device])
            few, more = (_kept(module, n, dtype) for n in TOKENS)
    except Exception as error:  # whatever an architecture's own code may raise
        log.debug("%s: activations are estimated, not measured (%s)", type(model).__name__, error)
        return None
    finally:
        complaints.disabled = False
    return (more - few) // (TOKENS[1] - TOKENS[0])


def _kept(module: Any, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of one sequence, the weights aside."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", dtype, dtype != torch.float32):
        hidden = module.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)[0]
    for parameter in module.parameters():
        storages.pop(parameter.untyped_storage()._cdata, None)
    del hidden
    return sum(storage.nbytes() for storage in storages.values())


class _Kept(torch.autograd.Function):
    """Attention, as far as memory goes: whoever computes it keeps what it reads and what it gives."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]))  # the last: log-normalizers
        return out

    @staticmethod
    def backward(ctx, *upstream):
        raise AssertionError("there is nothing to go back to")


def _attend(module, query, key, value, attention_mask, **options):
    groups = query.shape[1] // key.shape[1]
    out = _Kept.apply(query, repeat_kv(key, groups), repeat_kv(value, groups))
    return out.transpose(1, 2).contiguous(), None


def _attend_on_cpu(module, query, key, value, attention_mask, **options):
    """In float32, as attention.py does."""
    out, _ = _attend(module, query.float(), key.float(), value.float(), attention_mask)
    return out.to(query.dtype), None


AttentionInterface.register(NAMES["cuda"], _attend)
AttentionInterface.register(NAMES["cpu"], _attend_on_cpu)
for name in NAMES.values():
    AttentionMaskInterface.register(name, lambda *args, **kwargs: None)
