"""The recipes in examples/ are settings that this version takes, and their commands work in order."""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from examples import preferred
from prefopt import config
from prefopt.cli import main
from prefopt.commands import COMMANDS
from prefopt.errors import UserError
from prefopt.types import Example, Response
from tests.train import tiny
from tests.train.conftest import brief  # noqa: F401  (no report, which takes longer than these runs)

ROOT = Path(__file__).parents[2]
RECIPES = [ROOT / "examples" / "dpo.yaml", *sorted(ROOT.glob("examples/dialogue/*.yaml"))]
RECIPES += sorted(ROOT.glob("examples/summaries/*.yaml"))
HUMAN, HUB = "\n\nHuman: ", re.compile(r"Anthropic/hh-rlhf:\w+")


def command(recipe: Path) -> str:
    """A recipe is named after its command."""
    return "train" if recipe.stem == "dpo" else recipe.stem.partition("_")[0]


def typed(readme: Path) -> list[list[str]]:
    """The command lines of a README's first block, word by word."""
    block = re.search(r"(?:^    (?:prefopt|python) .*\n)+", readme.read_text(encoding="utf-8"), re.MULTILINE)
    assert block
    lines = map(shlex.split, block[0].splitlines())
    return [[str(ROOT / word) if word.startswith("examples/") else word for word in line] for line in lines]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_is_read_as_it_stands(recipe, capsys, tmp_path):
    of = COMMANDS[command(recipe)].settings
    loaded = config.load(recipe, of)
    assert main([command(recipe), "--config", str(recipe), "--print-config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again = config.load(printed, of)
    assert config.dump(again) == config.dump(loaded)
    for key, setting in config.read(recipe).items():
        assert config.read(printed)[key].value == setting.value


@pytest.mark.parametrize(("task", "beta"), [("dialogue", 0.1), ("summaries", 0.5)])
def test_the_papers_recipes_have_the_papers_settings(task, beta):
    paper = config.load(ROOT / "examples" / task / "train.yaml", config.Train)
    assert paper.loss == "dpo" and paper.loss_options == {"beta": beta}
    assert (paper.optimizer, paper.learning_rate, paper.warmup_steps, paper.batch_size) == ("rmsprop", 1e-6, 150, 64)
    assert (paper.schedule, paper.clip, paper.max_length) == ("constant", 10, 512)


@pytest.mark.parametrize("task", ["dialogue", "summaries"])
def test_the_commands_of_a_readme_are_taken(task, capsys):
    lines = typed(ROOT / "examples" / task / "README.md")
    named = {Path(word).stem for line in lines for word in line if word.endswith(".yaml")}
    assert named == {recipe.stem for recipe in RECIPES if recipe.parent.name == task}  # none is forgotten
    for program, *words in lines:
        if program == "prefopt":
            assert main([*words, "--print-config"]) == 0, words
    capsys.readouterr()


def test_dialogue_in_order(tmp_path, monkeypatch, capsys):
    """Every line of the README, on a few made conversations and with a model of a few thousand weights."""
    monkeypatch.chdir(tmp_path)
    asked = [f"{HUMAN}the cat {i}?" if i % 3 else f"{HUMAN}no\n\nAssistant: no{HUMAN}the dog {i}?" for i in range(24)]
    rows = [{s: f"{p}\n\nAssistant: {a} {i}" for s, a in (("chosen", "thanks"), ("rejected", "no"))}
            for i, p in enumerate(asked)]  # fmt: skip
    data = tiny.write(tmp_path / "hh.jsonl", rows)
    short = ["--data", data, "--batch-size", "4", "--max-steps", "2", "--warmup-steps", "0", "--eval-every", "2"]
    small = {
        "sft": [*short, "--model", tiny.model(tmp_path / "base"), "--max-length", "128"],
        "train": [*short, "--max-length", "128"],
        "reward": [*short, "--max-length", "128", "--eval-fraction", "0.3"],
        "sample": ["--max-new-tokens", "4"],
    }
    done = []
    for program, *words in typed(ROOT / "examples" / "dialogue" / "README.md"):
        words = [HUB.sub(data, word) for word in words]
        if program == "python":
            assert import_module(words[1]).main(words[2:]) in (None, 0)
        else:
            best = ["--best-of", "2"] if "best-of-n" in words[-1] else []
            assert main([*words, *small[words[0]], *best]) == 0, words
        done.append(words[0])
    assert done == ["sft", "train", "reward", "-m", "sample", "sample", "-m"]
    answers = [json.loads(line) for line in (tmp_path / "runs/dialogue/best-of-n.jsonl").read_text().splitlines()]
    assert len(answers) == 16 and all(len(row["prompt"]) == 1 for row in answers)
    capsys.readouterr()
    reward = "runs/dialogue/reward/model"
    files = ["runs/dialogue/best-of-n.jsonl", "runs/dialogue/single-turn.jsonl"]
    assert preferred.main([*files, "--reward", reward]) == 2
    assert "chose these responses" in capsys.readouterr().err


def test_preferred_counts_ties_as_a_half():
    def examples(*texts):
        return [Example(f"p{i}", (Response(text),), "") for i, text in enumerate(texts)]

    rate, prompts = preferred.preferred(
        examples("aaa", "a", "aa"), examples("a", "aaa", "aa"), lambda pairs: [float(len(text)) for _, text in pairs]
    )
    assert (rate.value, prompts) == (0.5, 3)
    with pytest.raises(UserError, match="share no prompt"):
        preferred.preferred(examples("a"), [], lambda pairs: [])
