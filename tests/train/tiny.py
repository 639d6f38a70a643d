"""A model of a few thousand weights with its tokenizer, and a few preferences: enough for whole runs.

As a script it runs command lines, each in a process that ends at a moment of its own; it prints their exit codes:

    python -m tests.train.tiny '[["kill", 3, ["train", "--model", ...]], ...]'     or "term", or "eval-term"
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file

from prefopt.cli import main
from prefopt.model.new import train_tokenizer
from prefopt.train import loop, run

TIMING = {"pairs_per_second", "tokens_per_second"}
WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "then", "never", "again", "thanks", "no"]
SMALL = dict(max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2)


def config(architecture: str, vocab: int) -> Any:
    """Of ``architecture``, as small as it comes."""
    llama = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    gpt = dict(n_embd=16, n_layer=2, n_head=2, n_positions=128)
    common = SMALL | dict(vocab_size=vocab, initializer_range=0.2)
    return {
        "llama": lambda: tf.LlamaConfig(**llama, num_key_value_heads=1, **common),
        "wide": lambda: tf.LlamaConfig(**llama | dict(hidden_size=64), num_key_value_heads=1, **common),
        "gpt2": lambda: tf.GPT2Config(**gpt, **common),
        "gptj": lambda: tf.GPTJConfig(**gpt, rotary_dim=4, **common),
        "mamba": lambda: tf.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **common),
    }[architecture]()


def model(folder: Path, architecture: str = "llama", seed: int = 0) -> str:
    """A folder with a model and its tokenizer."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 300)
    torch.manual_seed(seed)
    verbosity = tf.logging.get_verbosity()
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    tf.AutoModelForCausalLM.from_config(config(architecture, len(tokenizer))).save_pretrained(folder)
    tf.logging.set_verbosity(verbosity)
    tokenizer.save_pretrained(folder)
    return str(folder)


def text(rng: random.Random, least: int = 1, most: int = 8) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def pairs(file: Path, count: int = 24, prompts: int = 0, seed: int = 0) -> str:
    """``count`` pairs about ``prompts`` prompts (by default one each): the chosen response thanks."""
    rng = random.Random(seed)
    asked = [f"{text(rng)} {i}?" for i in range(prompts or count)]
    rows = [
        {"prompt": asked[i % len(asked)], "chosen": f" thanks {text(rng)} {i}", "rejected": f" no {text(rng)} {i}"}
        for i in range(count)
    ]
    return write(file, rows)


def rankings(file: Path, count: int = 12) -> str:
    """Two to four responses each, with scores."""
    rng = random.Random(1)
    rows = []
    for i in range(count):
        answers = [{"answer": f" {text(rng)} {j}", "rank": j + 1} for j in range(2 + i % 3)]
        rows.append({"prompt": f"{text(rng)} {i}?", "answers": answers})
    return write(file, rows)


def unpaired(file: Path, count: int = 24) -> str:
    rng = random.Random(2)
    rows = [{"prompt": f"{text(rng)} {i}?", "completion": f" {text(rng)}", "label": i % 3 != 0} for i in range(count)]
    return write(file, rows)


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def words(command: str, model: str, data: str, out: Path, **settings: object) -> list[str]:
    """A command line. ``beta=0.3`` becomes ``--beta 0.3`` and ``resume=True`` the bare flag."""
    given = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 1, "seed": 3} | settings
    flags = [command, "--model", model, "--data", data, "--out", str(out)]
    for key, value in given.items():
        flag = "--" + key.replace("_", "-")
        flags += [] if value is None else [flag] if value is True else [flag, str(value)]
    return flags


def cli(command: str, model: str, data: str, out: Path, **settings: object) -> int:
    """What a person types, in this process; its exit code."""
    return main(words(command, model, data, out, **settings))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return weights_of(out / "model")


def weights_of(model: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(model) / "model.safetensors")


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def apart(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any weight."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def metrics(out: Path) -> list[dict[str, Any]]:
    """Every line, without what depends on the clock."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def steps_saved(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*"))


def die(kind: str, at: int) -> None:
    """Have this process end at a step, or in an evaluation (the first is number 1)."""
    step, evaluated = loop.train_step, run.evaluate
    evaluations = 0

    def counting(state: Any, *rest: Any) -> Any:
        values = step(state, *rest)
        if kind in ("kill", "term") and state.step + 1 == at:
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGTERM)
        return values

    def evaluating(*arguments: Any) -> Any:
        nonlocal evaluations
        evaluations += 1
        if kind == "eval-term" and evaluations == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluated(*arguments)

    loop.train_step, run.evaluate = counting, evaluating  # type: ignore[assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    statuses = []
    for kind, at, line in json.loads(sys.argv[1]):
        if not (child := os.fork()):
            die(kind, at)
            os._exit(main(line))
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(statuses))
