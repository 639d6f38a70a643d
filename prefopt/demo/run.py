"""``prefopt demo``: the whole road in a world where every figure can be computed exactly.

A corpus of reviews is imitated (SFT), pairs of the model's own reviews are labelled by Bradley–Terry with
the true reward, the model is tuned on them (DPO), and both models are placed against the exact frontier.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.config import Demo
from prefopt.demo.world import World
from prefopt.errors import UserError
from prefopt.frontier.exact import Frontier, condition
from prefopt.frontier.space import next_token_logps
from prefopt.model.load import load_model
from prefopt.model.quiet import quiet
from prefopt.train import sft, train
from prefopt.types import Example

CORPUS, PAIRS, BETA = 40_000, 20_000, 0.1


def run(config: Demo) -> int:
    """Writes the data, the models and their runs to ``config.out``; UserError when there is something already."""
    out, console = config.out, Console(highlight=False)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: choose another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    world = World()

    console.rule("1. A model that writes film reviews: SFT on a corpus")
    write(out / "corpus.jsonl", world.corpus(CORPUS, config.seed))
    new_model(world, out / "base", config.seed)
    sft(
        model=str(out / "base"), data=str(out / "corpus.jsonl"), out=out / "sft",
        epochs=1, batch_size=64, learning_rate=0.01, seed=config.seed,
    )  # fmt: skip
    reference = exact_logps(world, out / "sft" / "model")

    console.rule("2. Which of two reviews do readers prefer? DPO on their answers")
    write(out / "pairs.jsonl", world.examples(world.pairs(reference, PAIRS, config.seed)))
    train(
        model=str(out / "sft" / "model"), data=str(out / "pairs.jsonl"), out=out / "dpo",
        loss="dpo", loss_options={"beta": BETA},
        epochs=1, batch_size=64, learning_rate=0.002, eval_fraction=0.0, seed=config.seed,
    )  # fmt: skip
    policy = exact_logps(world, out / "dpo" / "model")

    console.rule("3. Against the exact optimum")
    show(console, world, reference, policy, config.seed)
    return 0


def write(file: Path, examples: Iterable[Example]) -> None:
    """Plain JSONL, as a person would bring it."""
    with file.open("w", encoding="utf-8") as opened:
        for example in examples:
            texts = [response.content for response in example.responses]
            row = {"prompt": example.prompt}
            row |= {"completion": texts[0]} if len(texts) == 1 else {"chosen": texts[0], "rejected": texts[1]}
            opened.write(json.dumps(row) + "\n")


def new_model(world: World, folder: Path, seed: int) -> None:
    """0.1M parameters, and one token per word."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens: dict[str, Any] = {"vocab_size": len(world.tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    # A wide initialisation: with few words and short texts it learns several times faster than the usual 0.02.
    config = LlamaConfig(**shape, **tokens, max_position_embeddings=32, tie_word_embeddings=True, initializer_range=0.4)
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
    world.tokenizer.save_pretrained(folder)


def exact_logps(world: World, model: Path) -> np.ndarray:
    """[X, Y] log π(y|x) of every review that there is."""
    module = load_model(str(model), device="cpu").module
    return np.stack([tree.enumerate_logps(next_token_logps(module, tree)) for tree in world.trees])


def show(console: Console, world: World, reference: np.ndarray, policy: np.ndarray, seed: int) -> None:
    """The table of before and after, and some reviews of each."""
    frontier = Frontier(reference, world.reward)
    before, after, best = frontier.place(reference), frontier.place(policy), frontier.at(BETA)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for label in ("", "before (SFT)", "after (DPO)", f"optimum at β = {BETA}"):
        table.add_column(label, justify="right" if label else "left")
    rows: list[tuple[str, str, str, str]] = [
        ("expected true reward", f"{before.reward:.3f}", f"{after.reward:.3f}", f"{best.reward:.3f}"),
        ("KL to the SFT model, nats", "0", f"{after.kl:.3f}", f"{best.kl:.3f}"),
        (
            "the most reward at that KL",
            f"{before.reward:.3f}",
            f"{before.reward + after.frontier_gain:.3f}",
            f"{best.reward:.3f}",
        ),
        ("efficiency: gain / gain possible", "–", f"{after.efficiency:.3f}", "1"),
        ("mass outside the grammar", f"{before.missing:.4f}", f"{after.missing:.4f}", "0"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    rng, prompts = np.random.default_rng(seed), np.arange(len(world.prompts))
    for label, logps in (("before", reference), ("after", policy)):
        for x, y in zip(prompts, world.draw(condition(logps).logps, prompts, rng), strict=True):
            console.print(f"{label:<7}{world.prompts[x]} {world.texts[y]}  (reward {world.reward[x, y]:+.2f})")
