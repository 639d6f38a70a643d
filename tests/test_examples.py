"""The recipes in examples/ are settings that this version takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt import config

RECIPES = sorted(Path(__file__).parents[1].joinpath("examples").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_as_it_stands(recipe):
    loaded = config.load(recipe, config.Train)
    assert loaded.loss == "dpo" and loaded.loss_options == {"beta": 0.1}


def test_the_papers_recipe_has_the_papers_settings():
    paper = config.load(next(r for r in RECIPES if r.stem == "paper_dialogue"), config.Train)
    assert (paper.optimizer, paper.learning_rate, paper.warmup_steps, paper.batch_size) == ("rmsprop", 1e-6, 150, 64)
