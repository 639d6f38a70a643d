"""``prefopt demo``: the whole road in a world where every figure can be computed exactly.

A corpus of reviews is imitated (SFT), pairs of the model's own reviews are labelled by Bradley–Terry with
the true reward, the model is tuned on them (DPO), other methods on the same pairs, and all are placed against the
exact frontier.

corpus.jsonl, pairs.jsonl   the data, as a person would bring them
base/, settings.json        the model before SFT, and what was asked for
sft/, dpo/                  the runs of ``prefopt sft`` and ``prefopt train`` on them
rewards/                    reward models on the same pairs
methods/, noise/            the models of the other methods
results.json, report.html   all figures, and pictures of them; frontier.svg: all methods in one
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt import report
from prefopt.config import Demo
from prefopt.demo import account, rl, show
from prefopt.demo.best_of import best_of, draw
from prefopt.demo.methods import BESIDE, FLAGSHIP, RATE, UNDER_NOISE, WITH_FULL, Outcome, jobs, perform
from prefopt.demo.processes import one_thread, workers
from prefopt.demo.rewards import learn
from prefopt.demo.tune import BATCH, Start
from prefopt.demo.world import World, the_world
from prefopt.errors import Stopped, UserError
from prefopt.frontier.exact import Frontier, Placement
from prefopt.model.load import load_model
from prefopt.model.quiet import quiet
from prefopt.report.frontier import picture
from prefopt.terminal import console
from prefopt.train import sft, train
from prefopt.train.card import write_results
from prefopt.train.checkpoint import Checkpoint
from prefopt.types import Example
from prefopt.whole import whole, writable


class Size(NamedTuple):
    """How much is read: reviews and passes over them for SFT, pairs and passes for each method, and how many seeds.

    Seeds decide the pairs, their labels and order, and what PPO draws; the model that all start from is one.
    """

    corpus: int = 40_000
    corpus_epochs: float = 2.5
    pairs: int = 10_000
    epochs: float = 1
    seeds: int = 1
    looks: int = 1
    """how often each method's policy is enumerated on its way"""


SMALL, FULL = Size(corpus_epochs=1.5), Size(pairs=100_000, seeds=3, looks=3)
LOOKS = 3
"""the same, of the method in front"""


def run(config: Demo) -> None:
    """Writes everything to ``config.out``; UserError when there is something already, and it is not to be resumed."""
    out, world = config.out, the_world()
    size = FULL if config.full else SMALL
    size = size._replace(seeds=config.seeds or size.seeds, pairs=config.pairs or size.pairs)
    settings = {"seed": config.seed, "full": config.full, **size._asdict()}
    begin(out, settings, config.resume)
    methods = [*rl.FULL, *WITH_FULL, *BESIDE] if config.full else [*rl.REDUCED, *BESIDE]  # the longest first
    screen = console()
    try:
        with workers(jobs=size.seeds * (len(methods) + len(UNDER_NOISE))) as every:
            show.heading(screen, f"1. A model that writes film reviews: SFT on {size.corpus:,} of them")
            start = imitate(world, out, size, config.seed)
            show.heading(screen, f"2. Which of two reviews do readers prefer? DPO on {size.pairs:,} pairs")
            learning = every(learn, [replace(start, seed=config.seed + i) for i in range(size.seeds)])
            with one_thread():
                flagship = prefer(world, out, start)  # while the reward models learn from the same answers
            show.line(screen, flagship)
            rewards = list(learning)
            show.heading(screen, "3. Other methods, on the same pairs")
            others = jobs([FLAGSHIP], replace(start, looks=LOOKS), out / "methods", size.seeds)[1:]
            others += jobs(methods, start, out / "methods", size.seeds)
            noisy = jobs(UNDER_NOISE, replace(start, looks=1), out / "noise", size.seeds)
            outcomes = every(perform, [*others, *noisy])
            beside = [flagship, *shown(screen, islice(outcomes, len(others)))]
            show.heading(screen, "4. And where every fifth label is wrong")
            under_noise = list(shown(screen, outcomes))
    except Stopped as stopped:
        raise Stopped("stopped; the same command with --resume goes on with what is not done yet") from stopped
    show.heading(screen, "5. Against the exact optimum")
    figures = told(world, start, rewards, beside, under_noise)
    publish(out, figures, settings, flagship)
    show.figures(screen, figures)
    screen.print(f"\nresults  {out / 'results.json'}\nreport   {out / 'report.html'}")


def told(
    world: World, start: Start, rewards: Sequence[np.ndarray], beside: Sequence[Outcome], under_noise: Sequence[Outcome]
) -> dict[str, Any]:
    """What is to be said of it all; the first outcome ``beside`` others is the method in front."""
    exact = Frontier(start.reference, world.reward)
    drawn = draw(world, start.model, start.seed)
    best = {"true": best_of(exact, [world.reward], drawn), "learned": best_of(exact, rewards, drawn)}
    return {
        "frontier": account.frontier(exact, beside, best),
        "optimum": account.optimum(exact),
        "best_of_n": best,
        "noise": account.noise(under_noise),
        "realignment": account.realignment(world, exact, start.model, [o for o in beside if o.seed == start.seed]),
        "calibration": account.calibration(exact, beside[0].method.name, account.implicit(exact, beside[0])),
        "reward": account.rewards(exact, rewards),
        "reference": account.point("SFT", exact.place(start.reference)),
    }


def begin(out: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """The folder, with the settings of what it is for; those of a demo that is resumed must be the same."""
    file = out / "settings.json"
    if resume and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before != settings:
            other = ", ".join(key for key in before if before[key] != settings.get(key))
            raise UserError(
                f"--out {out} holds a demo with other settings ({other}): continue it with those it began with"
            )
        if (out / "report.html").exists():
            raise UserError(f"--out {out} holds a demo that is finished: there is nothing to resume")
        return
    with writable(out):
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {out} is not empty: go on with --resume, or choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        with whole(file) as opened:
            opened.write(json.dumps(settings) + "\n")


def shown(screen: Console, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """``outcomes``, with a line for each as it comes."""
    for outcome in outcomes:
        show.line(screen, outcome)
        yield outcome


def imitate(world: World, out: Path, size: Size, seed: int) -> Start:
    """A new model, and SFT on a corpus."""
    if not finished(out / "sft"):
        write(out / "corpus.jsonl", world.corpus(size.corpus, seed))
        new_model(world, out / "base", seed)
        with redirect_stdout(io.StringIO()):  # the words at the end of a run are for those who made only that one
            sft(
                model=str(out / "base"), data=str(out / "corpus.jsonl"), out=out / "sft",
                epochs=size.corpus_epochs, batch_size=64, learning_rate=5e-3, seed=seed, resume=(out / "sft").exists(),
            )  # fmt: skip
    model = out / "sft" / "model"
    reference = world.logps(load_model(str(model), device="cpu").module)
    return Start(model, reference, size.pairs, size.epochs, seed, size.looks, out / "rewards")


def finished(run: Path) -> bool:
    return (run / "results.json").exists()


def prefer(world: World, out: Path, start: Start) -> Outcome:
    """The method in front, as a person would train it; its checkpoints tell its way."""
    if not finished(out / "dpo"):
        write(out / "pairs.jsonl", world.examples(world.pairs(start.reference, start.pairs, start.seed)))
        steps = max(1, round(start.epochs * start.pairs / BATCH))
        with redirect_stdout(io.StringIO()):
            train(
                model=str(start.model), data=str(out / "pairs.jsonl"), out=out / "dpo",
                loss="dpo", loss_options={"beta": FLAGSHIP.beta}, epochs=start.epochs, batch_size=BATCH,
                learning_rate=RATE, seed=start.seed, save_every=-(-steps // LOOKS), keep=LOOKS + 1,
                resume=(out / "dpo").exists(),
            )  # fmt: skip
    exact = Frontier(start.reference, world.reward)
    way: list[tuple[int, Placement]] = []
    lm = load_model(str(out / "dpo" / "model"), device="cpu")
    for folder in sorted((out / "dpo" / "checkpoints").iterdir()):
        step = int(folder.name.removeprefix("step-"))
        lm.load_weights(Checkpoint(folder, step, {}).tensors("model"))
        logps = world.logps(lm.module)
        way.append((step, exact.place(logps)))
    return Outcome(FLAGSHIP, start.seed, way, logps, out / "dpo" / "model")


TITLE = "The demo: DPO and its rivals beside the exact optimum"


def publish(out: Path, figures: dict[str, Any], settings: Mapping[str, Any], flagship: Outcome) -> None:
    """The figures in a file, beside those of the run that is shown at length, with its KL, and the page about both."""
    write_results(out / "results.json", settings, figures)
    written = json.loads((out / "results.json").read_text(encoding="utf-8"))
    of_run = out / "dpo" / "results.json"
    both = written | {"title": TITLE} | json.loads(of_run.read_text(encoding="utf-8"))
    of_run.write_text(json.dumps(both, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    with (out / "dpo" / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for step, kl in [(0, 0.0), *((step, place.kl) for step, place in flagship.way)]:
            metrics.write(json.dumps({"step": step, "split": "train", "kl": kl}) + "\n")
    (out / "frontier.svg").write_text(picture(figures["frontier"]), encoding="utf-8")
    report.write([out / "dpo"], out / "report.html")


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
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=True,
        vocab_size=len(world.tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=32,
        # Wider than the usual 0.02, it learns the corpus sooner; far wider (0.4), it generalises worse from pairs.
        initializer_range=0.1,
    )  # fmt: skip
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
    world.tokenizer.save_pretrained(folder)
