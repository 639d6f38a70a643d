"""Controlled sentiment generation (Rafailov et al. 2023, section 6), from a folder of reviews to the figure:

    python examples/sentiment/run.py --imdb aclImdb --rotten-tomatoes rt-polaritydata --out runs/sentiment

Each stage writes what it makes into --out and is passed over when that is there, so the same command goes on after a
crash. docs/sentiment.md says what is done and what came of it; --config examples/sentiment/paper.yaml is the
paper's scale.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from math import comb, log
from pathlib import Path
from typing import Any

import ngrams
import numpy as np
import recipe
import reviews
import show
from files import read, read_rows, write, write_rows
from recipe import Recipe
from tuning import Bench, Measure, perform_all

from prefopt import config, losses
from prefopt import sample as sampling
from prefopt.errors import RunFailed, Stopped, UserError
from prefopt.model import new
from prefopt.model.load import load_model, load_tokenizer
from prefopt.rl import reward_run
from prefopt.rl.rewards import load_reward
from prefopt.statistics import clustered_bootstrap, wilson
from prefopt.train import run as training

HERE = Path(__file__).parent


def run(imdb: Path, rotten_tomatoes: Path, out: Path, settings: Recipe) -> None:
    begin(out, settings)
    stage("reviews", corpus, out, imdb)
    base = settings.model or str(new_model(out, settings))
    stage("openings of reviews", openings, out, settings, base)
    stage("reference", reference, out, settings, base)
    bench = Bench(settings, out, settings.reward or f"{out / 'reward' / 'ngrams.py'}:positive")
    stage("true reward", true_reward, out, settings, bench.reward, rotten_tomatoes)
    stage("where the reference stands", start, out, bench)
    stage("pairs", pairs, out, bench)
    stage("learned reward", learned_reward, out, bench)
    stage("Best-of-N", best_of, out, bench)
    stage("runs", perform_all, bench, list(recipe.runs(settings.runs)))
    write(out / "results.json", results(out, settings))
    show.main(out / "results.json", out)


def stage(name: str, do: Any, *arguments: Any) -> None:
    began = time.monotonic()
    print(f"{name} ...", flush=True)
    do(*arguments)
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def begin(out: Path, settings: Recipe) -> None:
    """Notes the settings in ``out``; UserError where those of its stages are others than before."""
    (out / "data").mkdir(parents=True, exist_ok=True)
    now = {key: value for key, value in vars(settings).items() if key not in ("file", "runs", "processes")}
    noted = out / "recipe.json"
    if noted.exists() and (before := read(noted)) != now:
        changed = ", ".join(key for key in now if now[key] != before.get(key))
        raise UserError(f"--out {out} was begun with another {changed}: choose another folder")
    write(noted, now)


# --- the data and the reference ------------------------------------------------------------------


PARTS = "test", "train", "unlabelled"


def corpus(out: Path, imdb: Path) -> None:
    """The reviews, each once: test.jsonl, train.jsonl and unlabelled.jsonl in data/reviews."""
    folder = out / "data" / "reviews"
    if not all((folder / f"{part}.jsonl").exists() for part in PARTS):
        folder.mkdir(exist_ok=True)
        for part, found in reviews.read(imdb)._asdict().items():
            write_rows(folder / f"{part}.jsonl", (review._asdict() for review in found))


def texts_of(out: Path, part: str) -> list[dict[str, Any]]:
    return read_rows(out / "data" / "reviews" / f"{part}.jsonl")


def new_model(out: Path, settings: Recipe) -> Path:
    """A model with random weights, and a tokenizer of the reviews."""
    assert settings.new_model is not None
    folder, aside = out / "base", out / ".base"
    if not folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        texts = out / "data" / "reviews" / "train.jsonl"
        new.run(settings.settings(config.NewModel, "new_model", settings.new_model, tokenizer_from=texts, out=aside))
        aside.rename(folder)
    return folder


def _openings(rows: Iterable[Mapping[str, Any]], settings: Recipe) -> Iterable[str]:
    least, most = settings.openings["least"], settings.openings["most"]
    found = (reviews.opening(row["text"], least, most) for row in rows)
    return dict.fromkeys(opened for opened in found if opened)


def openings(out: Path, settings: Recipe, base: str) -> None:
    """What the reference learns from and is tested on; the prefixes that are answered, and those held out."""
    data = out / "data"
    if (data / "account.json").exists():
        return
    tokenizer, random = load_tokenizer(base), np.random.default_rng(0)
    read = {part: texts_of(out, part) for part in PARTS}
    rows = {}
    for name, texts in (("train", [*read["train"], *read["unlabelled"]]), ("test", read["test"])):
        cut = (reviews.split(opened, tokenizer, random) for opened in _openings(texts, settings))
        found = [{"prompt": at[0], "completion": at[1]} for at in cut if at]
        rows[name] = [found[i] for i in random.permutation(len(found))]
    write_rows(data / "train.jsonl", rows["train"])
    write_rows(data / "test.jsonl", rows["test"][: settings.openings["held_out"]])
    known = list(dict.fromkeys(row["prompt"] for row in rows["train"]))
    new = list(dict.fromkeys(row["prompt"] for row in rows["test"]).keys() - set(known))
    prefixes, held_out = known[: settings.openings["prefixes"]], sorted(new)
    held_out = [held_out[i] for i in random.permutation(len(held_out))[: settings.openings["held_out"]]]
    if not prefixes or not held_out:
        raise UserError(f"{len(prefixes)} prefixes to learn from and {len(held_out)} others are too few reviews")
    write_rows(data / "prefixes.jsonl", ({"prompt": prefix} for prefix in prefixes))
    write_rows(data / "held-out.jsonl", ({"prompt": prefix} for prefix in held_out))
    account = {f"reviews, {part}": len(texts) for part, texts in read.items()}
    account |= {f"openings, {name}": len(found) for name, found in rows.items()}
    write(data / "account.json", account | {"prefixes": len(prefixes), "held_out": len(held_out)})


def reference(out: Path, settings: Recipe, base: str) -> None:
    if not (out / "reference" / "results.json").exists():
        given = {"model": base, "data": out / "data" / "train.jsonl", "eval_data": out / "data" / "test.jsonl"}
        chosen = settings.settings(config.SFT, "sft", settings.sft, **given, out=out / "reference", resume=True)
        training.run(chosen, losses.SFT())


# --- the reward, and what follows from it --------------------------------------------------------


def true_reward(out: Path, settings: Recipe, spec: str, rotten_tomatoes: Path) -> None:
    """Trains the n-grams where no reward is named; how often either is right, in reward.json."""
    if (out / "reward.json").exists():
        return
    if settings.ngrams:
        most, few = settings.openings["most"], settings.ngrams["passages"]
        passages = [
            (text, row["positive"])
            for row in texts_of(out, "train")
            for text in itertools.islice(reviews.passages(row["text"], most), few)
        ]
        texts, labels = zip(*passages, strict=True)
        ngrams.save(out / "reward", *ngrams.train(texts, labels, settings.ngrams["l2"]))
    reward = load_reward(spec)
    whole = texts_of(out, "test")
    checks = {
        "IMDb test, openings": [(opened, row["positive"]) for row in whole for opened in _openings([row], settings)],
        "IMDb test, whole reviews": [(row["text"], row["positive"]) for row in whole],
        "Rotten Tomatoes": reviews.rotten_tomatoes(rotten_tomatoes),
    }
    found = {}
    for name, labelled in checks.items():
        p = np.array(reward([("", text) for text, _ in labelled]))
        right = (p > 0.5) == np.array([bool(label) for _, label in labelled])
        found[name] = {"accuracy": wilson(int(right.sum()), len(right)), "texts": len(right), "mean": float(p.mean())}
    write(out / "reward.json", found)


def start(out: Path, bench: Bench) -> None:
    if not (out / "start.json").exists():
        write(out / "start.json", Measure(bench)(load_model(bench.reference)))


def pairs(out: Path, bench: Bench) -> None:
    """Every two responses to a prefix, the one with more reward as chosen; without ties, and what did not end."""
    if (out / "data" / "pairs.jsonl").exists():
        return
    rows = sampled(bench, "prefixes", bench.recipe.sample)
    found, ties = [], 0
    for prompt, drawn in itertools.groupby((row for row in rows if row["ended"]), key=lambda row: row["prompt"]):
        best_first = sorted(drawn, key=lambda row: -row["reward"])
        for better, worse in itertools.combinations(best_first, 2):
            if better["reward"] == worse["reward"]:
                ties += 1
            else:
                found.append({"prompt": prompt, "chosen": better["completion"], "rejected": worse["completion"]})
    write(out / "pairs.json", {"pairs": len(found), "ties": ties, "unended": sum(not row["ended"] for row in rows)})
    write_rows(out / "data" / "pairs.jsonl", found)


def sampled(bench: Bench, prompts: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Responses of the reference, with their rewards."""
    file, data = bench.out / f"{prompts}-responses.jsonl", bench.out / "data" / f"{prompts}.jsonl"
    given = dict(given) | {"model": bench.reference, "data": data, "reward": bench.reward, "out": file}
    sampling.run(bench.recipe.settings(config.Sample, "sample", given, resume=file.exists()))
    return read_rows(file)


def learned_reward(out: Path, bench: Bench) -> None:
    """A reward model from the pairs alone: what PPO has where nobody knows the true reward."""
    if not (out / "reward-model" / "results.json").exists():
        given = {"model": bench.reference, "data": out / "data" / "pairs.jsonl", "out": out / "reward-model"}
        recipe = bench.recipe
        reward_run.run(recipe.settings(config.Reward, "reward_model", recipe.reward_model, **given, resume=True))


def best_of(out: Path, bench: Bench) -> None:
    """The expected best of N, from more draws than that; its KL is at most log N − (N−1)/N (Beirami et al. 2024)."""
    if (out / "best-of.json").exists():
        return
    given = bench.recipe.best_of
    write_rows(out / "data" / "best-of.jsonl", read_rows(out / "data" / "held-out.jsonl")[: given["prompts"]])
    rows = sampled(bench, "best-of", bench.recipe.sample | {"n": given["draws"], "seed": 1})
    rewards = np.array([row["reward"] for row in rows]).reshape(-1, given["draws"])
    found = []
    for n in given["n"]:
        best = expected_best(rewards, n)
        bound = log(n) - (n - 1) / n
        found.append({"n": n, "kl": bound, "reward": clustered_bootstrap(best, np.arange(len(best)))})
    write(out / "best-of.json", found)


def expected_best(rewards: np.ndarray, n: int) -> np.ndarray:
    """[P, M] -> [P]: the mean over all n of the M draws of the largest reward among them.

    >>> expected_best(np.array([[1.0, 3.0, 2.0]]), 2)  # of {1, 3}, {1, 2}, {3, 2}
    array([2.66666667])
    """
    draws = rewards.shape[1]
    share = np.array([comb(i, n - 1) / comb(draws, n) for i in range(draws)])  # with i draws below, it is the largest
    return np.sort(rewards, axis=1) @ share


# --- the results ----------------------------------------------------------------------------------


def results(out: Path, settings: Recipe) -> dict[str, Any]:
    held_out = read(out / "reference" / "results.json")["held_out"]["after"]
    learned = read(out / "reward-model" / "results.json")
    return {
        "recipe": {key: value for key, value in vars(settings).items() if key != "file"},
        "data": read(out / "data" / "account.json") | read(out / "pairs.json"),
        "reference": {"nats_a_token": held_out["loss"]},
        "reward": read(out / "reward.json"),
        "learned_reward": {key: (learned["held_out"] or {}).get("after", {}).get(key) for key in ACCURACY},
        "start": read(out / "start.json"),
        "best_of": read(out / "best-of.json"),
        "runs": [read(out / "runs" / f"{run.name}.json") for run in recipe.runs(settings.runs)],
    }


ACCURACY = "rewards/accuracies", "rewards/accuracies_low", "rewards/accuracies_high"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--imdb", type=Path, required=True, help="the folder aclImdb")
    parser.add_argument("--rotten-tomatoes", type=Path, required=True, help="the folder with rt-polarity.pos and .neg")
    parser.add_argument("--out", type=Path, default=Path("runs/sentiment"), help="the folder to write")
    recipes = "examples/sentiment/small.yaml, paper.yaml beside it, or yours"
    parser.add_argument("--config", type=Path, default=HERE / "small.yaml", help=recipes)
    given = parser.parse_args()
    run(given.imdb, given.rotten_tomatoes, given.out, recipe.load(given.config))


if __name__ == "__main__":
    try:
        main()
    except (UserError, RunFailed, Stopped) as error:  # the message is for a person, who needs no traceback
        print(f"sentiment: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1 if isinstance(error, RunFailed) else 75)
