"""A new model: a tokenizer, a shape with about so many parameters, random weights.

For trying things out, on a CPU too. The tokenizer is byte-level BPE, so it can write any text, and
puts a start token before it; its chat template is the plain one that HH transcripts are written in.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from prefopt.config import NewModel, SettingError
from prefopt.data.read import read_rows
from prefopt.data.render import PLAIN_TEMPLATE
from prefopt.errors import RunFailed, UserError
from prefopt.model.load import count_parameters, load_tokenizer, readable
from prefopt.model.quiet import quiet
from prefopt.terminal import counted
from prefopt.whole import whole_folder

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
ASPECT = 48  # width / layers that is aimed at: shallow and wide computes well, and learns well when small
TOLERANCE = 0.1


def run(config: NewModel) -> None:
    """Writes ``config.out``, which AutoModelForCausalLM and AutoTokenizer read, and prints what it is."""
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise SettingError("out", f"is {config.out}, where there is something already: choose another folder")
    tokenizer = _tokenizer(config)
    shape = choose_shape(config, tokenizer)
    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_config(model_config(config, tokenizer, shape), dtype=torch.float32)
    try:
        with whole_folder(config.out) as aside, quiet():
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
            readable(aside)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunFailed(f"--out {config.out}: cannot be written ({why})") from error
    _print(config, tokenizer, shape, model)


# --- tokenizer -----------------------------------------------------------------------------------

TOKENIZER_FILES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "config.json",
}
"""in a folder with one of them a tokenizer is looked for, and in others texts"""


def _tokenizer(config: NewModel) -> Any:
    source = Path(config.tokenizer_from).expanduser()
    if not any((source / name).is_file() for name in TOKENIZER_FILES):
        found = texts(config.tokenizer_from)
        first = next(iter(found), None)
        if first is None:
            raise UserError(f"--tokenizer-from {source}: it holds no text to learn a tokenizer from, and no tokenizer")
        return train_tokenizer(itertools.chain([first], found), config.vocab or default_vocab(config.parameters))
    if config.vocab is not None:
        raise SettingError("vocab", f"has no effect: the tokenizer in {source} is taken as it is")
    tokenizer = load_tokenizer(config.tokenizer_from)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {source} has no end token (eos_token), so no response could end")
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with at most ``vocab`` tokens: fewer, if the texts have no more to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[START, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A {START} $B", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        chat_template="{{ bos_token }}" + PLAIN_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def texts(data: str) -> Iterator[str]:
    """Every text in every row, however deep it stands."""
    for row in read_rows(data):
        yield from _strings(row.fields)


def _strings(value: Any) -> Iterator[str]:
    """
    >>> list(_strings({"prompt": "Hi", "turns": [{"content": "Yes"}], "score": 1}))
    ['Hi', 'Yes']
    """
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode()  # half a character is no text
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def default_vocab(parameters: int) -> int:
    """A power of 2 that grows with the square root of the size, so that embeddings stay a fair part of it.

    >>> [default_vocab(n) for n in (300_000, 3_000_000, 30_000_000, 500_000_000)]
    [1024, 4096, 16384, 32768]
    """
    return min(32768, max(1024, 2 ** round(math.log2(2.4 * math.sqrt(parameters)))))


# --- shape ---------------------------------------------------------------------------------------


class Shape(NamedTuple):
    width: int
    layers: int
    heads: int


def choose_shape(config: NewModel, tokenizer: Any) -> Shape:
    """Of the shapes within 10 % of the size, the one whose width / layers is nearest to 48.

    A model's parameters are an affine function of its layers, so two counts tell them all.
    """
    asked = config.parameters
    scale = (ASPECT * asked / 12) ** (1 / 3)  # the width, if all were in layers of 12 width² each
    best: Shape | None = None
    smallest = math.inf
    for width in _widths(scale / 4, scale * 2):
        shapes = (_shape(width, layers) for layers in (1, 2))
        one, two = (count_parameters(model_config(config, tokenizer, shape)) for shape in shapes)
        smallest = min(smallest, one)
        layers = max(1, round((asked - one) / (two - one)) + 1)
        shape = _shape(width, layers)
        if abs(one + (layers - 1) * (two - one) - asked) <= TOLERANCE * asked and _nearer(shape, best):
            best = shape
    if best is None:
        raise SettingError(
            "size",
            f"{config.size} has no room for {len(tokenizer):,} tokens: the smallest that fits is about "
            f"{smallest / 1e6:.2g}M; ask for more, or for a smaller vocabulary",
        )
    return best


def _widths(low: float, high: float) -> Iterator[int]:
    """Heads of 32 up to a width of 512, of 64 above."""
    yield from (width for width in [*range(32, 513, 32), *range(576, 16385, 64)] if low <= width <= max(high, 32))


def _shape(width: int, layers: int) -> Shape:
    return Shape(width, layers, width // (32 if width <= 512 else 64))


def _nearer(shape: Shape, other: Shape | None) -> bool:
    def distance(s: Shape) -> float:
        return abs(math.log(s.width / s.layers / ASPECT))

    return other is None or distance(shape) < distance(other)


def model_config(config: NewModel, tokenizer: Any, shape: Shape) -> Any:
    """Each head has keys and values of its own, no dropout; input and output embeddings are one below 1B."""
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.parameters < 1e9,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    gated = {
        "intermediate_size": 32 * round(shape.width * 8 / 3 / 32),
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
    }
    special: dict[str, dict[str, Any]] = {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "gpt-neox": {"intermediate_size": 4 * shape.width},
    }
    model_type = config.architecture.replace("-", "_")
    return AutoConfig.for_model(model_type, **common, **special.get(config.architecture, gated))


def _print(config: NewModel, tokenizer: Any, shape: Shape, model: Any) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "architecture": config.architecture,
        "parameters": f"{count:,} (asked for {config.size})",
        "shape": f"{counted(shape.layers, 'layer')}, width {shape.width}, {counted(shape.heads, 'head')}",
        "embeddings": "one for input and output" if model.config.tie_word_embeddings else "two: input, output",
        "vocabulary": f"{len(tokenizer):,} tokens" + (f" (asked for {config.vocab:,})" if config.vocab else ""),
        "longest": f"{config.max_length:,} tokens",
        "weights": f"random, seed {config.seed}",
        "written to": str(config.out),
    }
    print("\n".join(f"{name:<14}{value}" for name, value in rows.items()))
