"""What a model is, as 32 hexadecimal digits: equal when it computes the same, wherever it came from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor


def model_fingerprint(model: Any) -> str:
    """xxh3-128 over a transformers model's settings and every weight as it lies in memory.

    Independent of the files that it came from, of the device, and of an adapter around it. Weights
    in another precision, even rounded and widened again, give another fingerprint.
    """
    if not hasattr(model, "get_base_model"):
        return fingerprint(model.config.to_dict(), model.state_dict().items())
    bare, adapter_prefix = model.get_base_model(), model.base_model.prefix
    return fingerprint(bare.config.to_dict(), _without_adapter(bare.state_dict().items(), adapter_prefix))


def adapter_fingerprint(model: Any, adapter: str = "default") -> str:
    """The same for one adapter of a PEFT model, to be used where the reference has it active."""
    from peft import get_peft_model_state_dict

    settings = model.peft_config[adapter].to_dict()
    return fingerprint(settings, get_peft_model_state_dict(model, adapter_name=adapter).items())


def fingerprint(settings: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """xxh3-128 over settings that change what is computed, and tensors by name, in any order.

    >>> one, two = torch.ones(2), torch.zeros(3)
    >>> a = fingerprint({"layers": 2}, [("x", one), ("y", two)])
    >>> a == fingerprint({"layers": 2, "_name_or_path": "elsewhere"}, [("y", two), ("x", one)])
    True
    >>> a == fingerprint({"layers": 2}, [("x", one), ("y", two + 1)])
    False
    """
    seen: dict[tuple, str] = {}
    lines = []
    for name, tensor in tensors:
        # Tied weights have several names and one memory: read once.
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if memory not in seen:
            seen[memory] = _tensor_digest(tensor)
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {seen[memory]}")
    head = json.dumps(_relevant(settings), sort_keys=True, default=str)
    return xxhash.xxh3_128("\n".join([head, *sorted(lines)]).encode()).hexdigest()


# Where a model lies, how it is run and how it samples: no log-prob depends on these. Whatever is not
# listed counts; to recompute once too often is cheap, to reuse once too often is wrong.
_IRRELEVANT = {
    "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "return_dict",
    "output_attentions", "output_hidden_states", "attn_implementation", "id2label", "label2id", "problem_type",
    "tokenizer_class", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip


def _relevant(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {k: _relevant(v) for k, v in settings.items() if not str(k).startswith("_") and k not in _IRRELEVANT}


def _without_adapter(named: Iterable[tuple[str, Tensor]], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the model that PEFT wrapped, under the names that they had before."""
    for name, tensor in named:
        if prefix in name or ".modules_to_save." in name:
            continue
        yield name.replace(".base_layer.", ".").replace(".original_module.", "."), tensor


def _tensor_digest(tensor: Tensor) -> str:
    """Over the bytes; on an accelerator they are brought over 64 MiB at a time."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    digest = xxhash.xxh3_128()
    for part in (flat,) if flat.device.type == "cpu" else flat.split(1 << 26):
        digest.update(part.cpu().numpy().data)
    return digest.hexdigest()
