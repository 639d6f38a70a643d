"""Models and tokenizers from a folder or a hub name, with one clear sentence when it cannot be."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prefopt.errors import UserError
from prefopt.model.language_model import LanguageModel
from prefopt.model.probe import probe
from prefopt.model.quiet import quiet
from prefopt.model.subnormal import flushed_to_zero


def load_tokenizer(name: str) -> Any:
    """UserError if there is none at ``name``, or one with more tokens than the model that lies beside it."""
    tokenizer = from_folder(AutoTokenizer.from_pretrained, name, "tokenizer")
    beside = Path(name).expanduser() / "config.json"
    room = getattr(load_config(name).get_text_config(), "vocab_size", None) if beside.is_file() else None
    if room and tokenizer.vocab_size > room:  # tokens that were added, for padding say, may never be read
        raise UserError(
            f"{name}: its tokenizer has {tokenizer.vocab_size:,} tokens and the model only {room:,}: "
            "they do not belong together"
        )
    return tokenizer


def check_reference(reference: str, model: str, tokenizer: Any) -> None:
    """UserError unless ``reference`` has the vocabulary of ``model``, whose ``tokenizer`` this is."""
    if load_tokenizer(reference).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"--reference {reference} has another vocabulary than {model}, so they cannot be compared")


def load_config(name: str) -> Any:
    """The model's configuration, without its weights."""
    return from_folder(AutoConfig.from_pretrained, name, "model configuration")


def positions(config: Any) -> int | None:
    """The most tokens that a model of this configuration takes; None where it has no end.

    With longrope (Phi-3) only as many as it was first trained for: beside a longer text, all others in its batch would
    be read otherwise.
    """
    config, first = config.get_text_config(), "original_max_position_embeddings"
    given = getattr(config, "rope_parameters", None) or {}
    ropes = [
        rope for rope in (given, *given.values()) if isinstance(rope, dict) and rope.get("rope_type") == "longrope"
    ]
    limits = [getattr(config, "max_position_embeddings", None)]
    limits += [rope.get(first) or getattr(config, first, None) for rope in ropes]
    return min((limit for limit in limits if limit), default=None)


def length_limit(max_length: int | None, *models: str | None) -> int | None:
    """``--max-length``, or what the positions of all these models allow; UserError when it is beyond those."""
    limits = [(limit, name) for name in models if name is not None and (limit := positions(load_config(name)))]
    shortest, name = min(limits, default=(None, ""))
    if max_length and shortest and max_length > shortest:
        raise UserError(f"--max-length {max_length}: {name} takes {shortest} tokens at most")
    return max_length or shortest


@flushed_to_zero()  # here, since torch's worker threads begin with this
def load_model(
    name: str, dtype: str = "auto", device: str = "auto", longest: int = 64, learns: bool = False
) -> LanguageModel:
    """A causal LM ready to be trained or scored, read in the fastest way that gives its own numbers.

    The weights are held in float32, and computed with in ``dtype``: at the learning rates of fine-tuning an
    update of a bfloat16 weight is mostly rounded away.

    ``longest``: tokens of the longest sequence that will be read, for the probe; ``learns``: it will be trained, so on
    a GPU, where that takes kernels of its own, a gradient is tried. Dropout is switched
    off: with it the policy would differ from the reference before the first step, and two scorings of
    one answer from each other.
    """
    where = pick_device(device)
    must_write(name)
    module = whole(AutoModelForCausalLM.from_pretrained, name, "model", **straight_to(where))
    without_dropout(module)
    lm = LanguageModel(module.to(where), dtype=pick_dtype(dtype, where))
    with quiet():
        probe(lm, longest, learns and where.type == "cuda")
    return lm


def straight_to(where: torch.device) -> dict[str, Any]:
    """How transformers reads weights to a GPU without a copy in the host's memory: with accelerate, where that is."""
    return {"device_map": {"": where}} if where.type == "cuda" and find_spec("accelerate") else {}


def must_write(name: str) -> None:
    """UserError for a model that has another head."""
    if classifies(name):
        raise UserError(f"{name} is a reward model or classifier: it has no head that writes text")


def classifies(name: str) -> bool:
    """Whether the model at ``name`` has the head of a sequence classifier, as reward models have."""
    return any("SequenceClassification" in architecture for architecture in load_config(name).architectures or [])


def whole(
    load: Any, name: str, what: str, new: str = "-", dtype: torch.dtype = torch.float32, **options: Any
) -> nn.Module:
    """A model with all of its weights: transformers draws those at random that it does not find.

    UserError where one is missing, but for those whose names begin with ``new``, which are to be drawn.
    """
    module, info = from_folder(load, name, what, dtype=dtype, output_loading_info=True, **options)
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith(new)):
        raise UserError(
            f"{name}: its weights are not whole: {len(missing)} of the model's tensors are missing ({missing[0]}, ...) "
            "and would be random numbers: copy the model again, or mend its config.json"
        )
    return module


def readable(folder: Path) -> None:
    """Weights of a saved model are as readable as its config.json: safetensors writes them for the owner alone."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def count_parameters(model: Any) -> int:
    """From a configuration alone: the model is laid out without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(model).parameters())


def pick_device(device: str) -> torch.device:
    """UserError when CUDA is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU computes in it, float32 elsewhere, unless one is named."""
    if dtype == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, dtype)


def without_dropout(module: nn.Module) -> None:
    """Every dropout of a model at probability 0, those that attention takes from a number included."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout", "attn_pdrop", "layerdrop"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def from_folder(from_pretrained: Any, name: str, what: str, **options: Any) -> Any:
    """What ``from_pretrained`` makes of a folder or hub name; UserError where there is no such ``what``."""
    path = Path(name).expanduser()
    local = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir()  # else owner/name
    if local and not path.is_dir():
        raise UserError(f"{name}: no such folder, so no {what} to load")
    if local and not (path / "config.json").exists() and (path / "model" / "config.json").exists():
        raise UserError(f"{name} is the folder of a run, so no {what} to load: did you mean {path / 'model'}?")
    if local and not any((path / f"{file}.json").exists() for file in ("config", "tokenizer_config", "tokenizer")):
        raise UserError(f"{name} is no model's folder, so no {what} to load: it holds no config.json")
    try:
        with quiet():
            return from_pretrained(str(path) if local else name, **options)
    except Exception as error:  # a file is missing, damaged, another's; what it takes is not installed
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{name}: no {what} can be loaded ({first})") from error
