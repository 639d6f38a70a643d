"""One run of a method, and where it stood between reward and KL on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from files import read, read_rows, write
from recipe import Recipe, Run

from prefopt import config, losses
from prefopt.data.encode import Encoder
from prefopt.errors import UserError
from prefopt.frontier import estimate
from prefopt.frontier.estimate import Sampling
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model, load_tokenizer
from prefopt.model.scoring import scored
from prefopt.rl import run as rl
from prefopt.rl.rewards import load_reward
from prefopt.train import run as training
from prefopt.train.checkpoint import Checkpoint

SHOWN = 4
"""responses that are kept of each run, to look at"""


@dataclass(frozen=True)
class Bench:
    """What all runs have in common: the folder with the stages' results, and the true reward."""

    recipe: Recipe
    out: Path
    reward: str

    @property
    def reference(self) -> str:
        return str(self.out / "reference" / "model")

    @property
    def learned(self) -> str:
        return str(self.out / "reward-model" / "model")


def perform_all(bench: Bench, runs: Iterable[Run]) -> None:
    """Train and measure what is not done yet, so many at once; the first error ends all, and nothing done is lost."""
    todo = [run for run in runs if not _finished(bench, run)]
    if not todo:
        return
    processes = min(bench.recipe.processes, len(todo))
    with ProcessPoolExecutor(processes, get_context("spawn"), _share, (processes,)) as pool:
        for run, found in zip(todo, pool.map(perform, [bench] * len(todo), todo), strict=True):
            print(f"  {run.name}: KL {found['kl'][0]:.2f}, reward {found['reward'][0]:.3f}", flush=True)


def _share(processes: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // processes))


def _finished(bench: Bench, run: Run) -> bool:
    file = bench.out / "runs" / f"{run.name}.json"
    if file.exists() and read(file)["settings"] != run.given:
        raise UserError(f"{file} tells of a run with other settings: remove it and {file.with_suffix('')}")
    return file.exists()


def perform(bench: Bench, run: Run) -> dict[str, Any]:
    """Trains, measures and writes ``runs/NAME.json``; returns its last point."""
    out = bench.out / "runs" / run.name
    out.parent.mkdir(exist_ok=True)
    with open(f"{out}.log", "a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        if not (out / "results.json").exists():
            train(bench, run, out)
        points = list(along(bench, out / "checkpoints"))
    seconds = read(out / "results.json")["seconds"]
    record = {"method": run.method, "own": run.own, "settings": run.given, "seconds": seconds, "points": points}
    write(Path(f"{out}.json"), record)
    shutil.rmtree(out / "checkpoints")  # all that they were kept for is measured
    return points[-1]


def train(bench: Bench, run: Run, out: Path) -> None:
    given: dict[str, Any] = {"model": bench.reference, "out": out, "resume": True, "keep": 10**6}
    if "reward" in run.given:
        rewards = {"learned": bench.learned, "true": bench.reward}
        given |= {"data": bench.out / "data" / "prefixes.jsonl", "reward": rewards[run.given["reward"]]}
        rl.run(bench.recipe.settings(config.PPO, run.method, bench.recipe.ppo | run.given, **given))
    else:
        given |= {"data": bench.out / "data" / "pairs.jsonl"}
        settings = bench.recipe.settings(config.Train, run.method, bench.recipe.train | run.given, **given)
        training.run(settings, losses.make_loss(settings.loss, settings.loss_options))


def along(bench: Bench, checkpoints: Path) -> Iterator[dict[str, Any]]:
    """A point for each checkpoint."""
    measure = Measure(bench)
    lm = load_model(bench.reference)
    for folder in sorted(checkpoints.iterdir()):
        step = int(folder.name.removeprefix("step-"))
        lm.load_weights(Checkpoint(folder, step, {}).tensors("model"))
        yield {"step": step, **measure(lm)}


class Measure:
    """Places policies between reward and KL, all by responses to the same held-out prefixes with the same seed."""

    def __init__(self, bench: Bench):
        self.encoder = Encoder(load_tokenizer(bench.reference))
        self.reference = load_model(bench.reference)
        self.prefixes = [row["prompt"] for row in read_rows(bench.out / "data" / "held-out.jsonl")]
        limit = bench.recipe.sample["max_new_tokens"]
        self.sampling, self.reward = Sampling(len(self.prefixes), limit), load_reward(bench.reward)

    def __call__(self, policy: LanguageModel) -> dict[str, Any]:
        drawn = estimate.draw(policy, self.encoder, self.encoder.prompts(self.prefixes), self.sampling)
        texts = {e.prompt_key: prefix for e, prefix in zip(drawn, self.prefixes, strict=True)}
        ours, theirs = ([sums for sums, _ in scored(lm, drawn)] for lm in (policy, self.reference))
        rewards = estimate.rewards(drawn, texts, self.encoder, self.reward)
        found = estimate.estimate(drawn, ours, theirs, rewards, self.sampling.max_new_tokens)
        assert found.reward is not None
        said = [self.encoder.tokenizer.decode(e.responses[0], skip_special_tokens=True) for e in drawn[:SHOWN]]
        return {
            "kl": [round(x, 4) for x in found.kl],
            "reward": [round(x, 4) for x in found.reward],
            "responses": found.responses,
            "tokens": round(found.tokens, 2),
            "unended": round(found.at_limit, 4),
            "samples": [
                {"prompt": prefix, "response": text, "reward": round(reward, 3)}
                for prefix, text, reward in zip(self.prefixes, said, rewards, strict=False)
            ],
        }
