"""What is worked on: a model, and pairs of token ids in the order in which every scheme reads them.

``hh``          pairs of a preference file, or made ones with lengths like those of Anthropic's HH; 8k vocabulary
``sweep``       the same, trained with each of four β, from loading the model to the last step
``hh-longest``  the same, with the file's longest pair in the first batch: a run's peak memory is its worst batch's
``hh-bf16``     hh, computed in bf16, for which some processors have products that are several times as fast
``ultrafeedback``  pairs of another file: long answers to short prompts, so less is shared
``ranking``     4 responses to a prompt, as the 3 pairs of the best with each other one
``long``        a prompt of 4k tokens with two short responses
``vocabulary``  lengths as in hh, 128k vocabulary: the head dominates

The model is llama-shaped; that of 30M parameters has 8 layers of width 512, and 4M in its embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from transformers import AutoModelForCausalLM, LlamaConfig

from prefopt.data import plan
from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.model.new import texts, train_tokenizer
from prefopt.types import Encoded


@dataclass(frozen=True)
class Shape:
    """Of a model."""

    vocabulary: int = 8192
    layers: int = 8
    width: int = 512
    head: int = 64
    max_length: int = 1024


SIZES = {
    "toy": Shape(512, 2, 32, 32),  # for tests
    "30M": Shape(),
    "0.5B": Shape(32768, 24, 1280),
    "3B": Shape(32768, 28, 3072, 128),
    "7B": Shape(32768, 32, 4096, 128),
}


def make(name: str, folder: Path, data: str | None, pairs: int, size: str = "30M", device: str = "cpu") -> None:
    """Write ``folder/model`` and ``folder/pairs.jsonl`` with at least ``pairs`` pairs, all from fixed seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, toy = np.random.default_rng(0), size == "toy"
    shape = replace(SIZES[size], max_length=8192 if name == "long" else 1024)
    if name == "vocabulary":
        shape = replace(shape, vocabulary=2048 if toy else 131072)
    file = data or str(folder / "made.jsonl")
    if data is None:
        write_pairs(Path(file), pairs, rng)
    tokenizer = train_tokenizer(texts(file), min(shape.vocabulary, 8192))
    tokenizer.save_pretrained(folder / "model")
    save_model(shape, tokenizer, folder / "model", device)
    if name not in _MADE:
        examples = read(file, tokenizer, shape.max_length)
        order = plan.Order(len(examples), 0)
        chosen = [examples[i] for i in order.batch(0, pairs)]
        if name == "hh-longest":
            chosen = [max(examples, key=lambda e: e.tokens), *chosen[:-1]]
        made = ((e.prompt, *e.responses) for e in chosen)
    else:
        made = _MADE[name](rng, pairs, shape.vocabulary, toy)
    with (folder / "pairs.jsonl").open("w") as out:
        for parts in made:
            out.write(json.dumps([part.tolist() for part in parts]) + "\n")


def read(file: str, tokenizer: Any, max_length: int = 1024) -> list[Encoded]:
    """The pairs of a preference file, as ``prefopt train`` reads them."""
    return plan.units(encoded([file], None, Encoder(tokenizer, max_length)).examples, "pair")


def small_tokenizer(folder: Path, vocabulary: int = 8192) -> Any:
    """Trained on a thousand made pairs."""
    write_pairs(folder / "small.jsonl", 1000, np.random.default_rng(1))
    return train_tokenizer(texts(str(folder / "small.jsonl")), vocabulary)


def grown(
    folder: Path, toy: bool, prompts: int, prompt: int, responses: int, vocabulary: int
) -> tuple[Path, list[Encoded]]:
    """A model, and three batches of so many prompts, with pairs of the first with each other of its responses of 64."""
    shape = replace(SIZES["toy" if toy else "30M"], vocabulary=vocabulary, max_length=prompt + 64)
    save_model(shape, small_tokenizer(folder, 512), folder / "model")
    rng, made = np.random.default_rng(0), []
    for _ in range(3 * prompts):
        start, best, *others = (_ids(rng, n, vocabulary) for n in [prompt, *[64] * responses])
        made += [example(start, best, other) for other in others]
    return folder / "model", made


def load(folder: Path) -> list[Encoded]:
    """The pairs of a workload, in order."""
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    return [example(*(np.array(ids, np.int32) for ids in json.loads(line))) for line in lines]


def example(prompt: np.ndarray, *responses: np.ndarray) -> Encoded:
    """Responses stand best first."""
    content = b"|".join(part.tobytes() for part in (prompt, *responses))
    return Encoded(
        prompt, responses, tuple(np.ones(len(r), bool) for r in responses),
        tuple(float(-i) for i in range(len(responses))), "benchmark",
        xxhash.xxh3_128_hexdigest(content), xxhash.xxh3_128_hexdigest(prompt.tobytes()),
    )  # fmt: skip


def save_model(shape: Shape, tokenizer: Any, folder: Path, device: str = "cpu") -> None:
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=32 * round(shape.width * 8 / 3 / 32),
        num_hidden_layers=shape.layers, num_attention_heads=shape.width // shape.head,
        max_position_embeddings=shape.max_length, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):  # billions of weights are drawn in seconds there
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(torch.float32 if device == "cpu" else torch.bfloat16).save_pretrained(folder)


# --- lengths, and ids that have them ----------------------------------------------------------------


def prompt_lengths(rng: np.random.Generator, n: int) -> np.ndarray:
    """As in HH (harmless-base) with 8k tokens: log-normal, median 83, 5 to 95 %: 17 to 355."""
    return np.exp(rng.normal(4.42, 0.98, n)).astype(int).clip(4, 800)


def response_lengths(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """[n, k], end token included; median 32, 5 to 95 %: 7 to 135; log-lengths of one prompt correlate by 0.3."""
    z = np.sqrt(0.3) * rng.normal(size=(n, 1)) + np.sqrt(0.7) * rng.normal(size=(n, k))
    return np.exp(3.47 + 0.91 * z).astype(int).clip(3, 200)


Parts = Iterator[tuple[np.ndarray, ...]]


def _pairs(rng: np.random.Generator, n: int, vocabulary: int, toy: bool) -> Parts:
    for prompt, responses in zip(prompt_lengths(rng, n), response_lengths(rng, n, 2), strict=True):
        yield _ids(rng, prompt, vocabulary), *(_ids(rng, r, vocabulary) for r in responses)


def _rankings(rng: np.random.Generator, n: int, vocabulary: int, toy: bool) -> Parts:
    prompts = -(-n // 3)
    for length, lengths in zip(prompt_lengths(rng, prompts), response_lengths(rng, prompts, 4), strict=True):
        prompt, best, *others = (_ids(rng, size, vocabulary) for size in (length, *lengths))
        for other in others:
            yield prompt, best, other


def _long(rng: np.random.Generator, n: int, vocabulary: int, toy: bool) -> Parts:
    for responses in response_lengths(rng, n, 2):
        yield _ids(rng, 256 if toy else 4096, vocabulary), *(_ids(rng, r, vocabulary) for r in responses)


_MADE: dict[str, Callable[[np.random.Generator, int, int, bool], Parts]] = {
    "ranking": _rankings, "long": _long, "vocabulary": _pairs,
}  # fmt: skip


def _ids(rng: np.random.Generator, length: int, vocabulary: int) -> np.ndarray:
    return rng.integers(3, vocabulary, length, dtype=np.int32)


def write_pairs(file: Path, n: int, rng: np.random.Generator) -> None:
    """A preference file with lengths like HH's: made-up words, frequent ones short, so that they are tokens."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = np.array(["".join(rng.choice(syllables, 1 + i // 700)) for i in range(4000)])
    frequency = 1 / np.arange(2, len(words) + 2)

    def text(length: int) -> str:
        return " ".join(rng.choice(words, max(1, length), p=frequency / frequency.sum()))

    with file.open("w") as out:
        for prompt, pair in zip(prompt_lengths(rng, n), response_lengths(rng, n, 2), strict=True):
            chosen, rejected = (" " + text(length - 1) for length in pair)
            out.write(json.dumps({"prompt": text(prompt), "chosen": chosen, "rejected": rejected}) + "\n")
