"""The sentiment recipe on made-up reviews: every stage, as a person would type it, and a run that was lost."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "sentiment"
WORDS = {
    "pos": ["great", "lovely", "moving", "superb", "funny"],
    "neg": ["dull", "awful", "boring", "poor", "silly"],
    "unsup": ["long", "short", "new", "old", "strange"],
}
OPENINGS = ["{} saw {} last night and it was", "The plot of {} by {} is", "{} and {}: what can one say of a film so"]
NAMES = ["Ada", "Bo", "Cleo", "Dan", "Eva", "Finn", "Gil", "Hal", "Ida", "Jo"]


def review(rng: random.Random, kind: str) -> str:
    words = [*WORDS[kind], *rng.sample([word for others in WORDS.values() for word in others], 2)]
    begun = [rng.choice(OPENINGS).format(*rng.sample(NAMES, 2)) for _ in range(3)]
    return " ".join(f"{begin} {rng.choice(words)} and {rng.choice(words)}." for begin in begun)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("reviews"), random.Random(0)
    for split, kind in [(s, k) for s in ("train", "test") for k in ("pos", "neg")] + [("train", "unsup")]:
        folder = root / "aclImdb" / split / kind
        folder.mkdir(parents=True)
        for i in range(30):
            (folder / f"{i}_9.txt").write_text(review(rng, kind).replace(". ", ".<br /><br />", 1))
    both = (root / "aclImdb" / "test" / "pos" / "0_9.txt").read_text()
    (root / "aclImdb" / "train" / "pos" / "0_9.txt").write_text(both)
    for kind in ("pos", "neg"):
        (root / f"rt-polarity.{kind}").write_text("".join(f"{review(rng, kind).lower()}\n" for _ in range(20)))
    return root


def recipe(folders: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--imdb", folders / "aclImdb", "--rotten-tomatoes", folders, "--config", FOLDER / "tiny.yaml", *more]
    return subprocess.run([sys.executable, FOLDER / "run.py", *map(str, words)], capture_output=True, text=True)


@pytest.mark.slow
def test_every_stage_and_once_more(folders, tmp_path):
    out = tmp_path / "sentiment"
    first = recipe(folders, "--out", str(out))
    assert first.returncode == 0, first.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["reviews, train"] == 59  # of 60, one stands in the test set too
    assert {run["method"] for run in results["runs"]} == {
        "DPO", "Preferred-FT", "PPO, learned reward", "PPO, true reward"
    }  # fmt: skip
    for run in results["runs"]:
        assert [point["step"] for point in run["points"]] == [1, 2]
        assert all(0 <= point["reward"][1] <= point["reward"][0] <= point["reward"][2] <= 1 for point in run["points"])
    assert results["start"]["kl"] == [0, 0, 0]
    assert results["reward"]["Rotten Tomatoes"]["texts"] == 40
    table = (out / "sentiment.md").read_text()
    assert "| DPO | β = 0.1 |" in table and "| Best-of-N | N = 4 | ≤ 0.64 |" in table
    assert (out / "sentiment.svg").read_text().count("Preferred-FT") >= 2

    known = {file: file.read_bytes() for file in [*out.glob("*.json*"), *out.glob("runs/*.json")]}
    again, lost = "dpo-beta-1", out / "runs" / "dpo-beta-1.json"
    lost.unlink()
    shutil.rmtree(out / "runs" / again)
    assert recipe(folders, "--out", str(out)).returncode == 0
    assert json.loads(lost.read_text())["points"] == json.loads(known.pop(lost))["points"]
    known.pop(out / "results.json")
    assert all(file.read_bytes() == content for file, content in known.items())


def test_what_is_wrong_is_said(folders, tmp_path):
    (tmp_path / "mine.yaml").write_text((FOLDER / "tiny.yaml").read_text().replace("sft:", "sfft:"))
    said = recipe(folders, "--out", str(tmp_path / "a"), "--config", str(tmp_path / "mine.yaml"))
    assert said.returncode == 2 and "unknown section sfft" in said.stderr
    said = recipe(tmp_path, "--out", str(tmp_path / "b"))
    assert said.returncode == 2 and "holds no train/pos" in said.stderr


@pytest.mark.parametrize("module", ["reviews", "ngrams", "recipe", "run", "show"])
def test_what_the_docstrings_show(module):
    done = subprocess.run([sys.executable, "-m", "doctest", FOLDER / f"{module}.py"], capture_output=True, text=True)
    assert not done.stdout and not done.stderr
