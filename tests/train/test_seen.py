"""What a model was trained on is remembered along the whole chain of runs."""

from __future__ import annotations

import numpy as np

from prefopt.train import seen
from prefopt.train.summary import summarize
from prefopt.types import Encoded


def unit(prompt: str) -> Encoded:
    return Encoded(np.empty(0), (), (), (), "", "", prompt)


def test_prompts_add_up_from_run_to_run(tmp_path):
    first, second = tmp_path / "sft", tmp_path / "dpo"
    first.mkdir(), second.mkdir()
    seen.write(first, str(tmp_path / "base"), [unit("a"), unit("b")])
    seen.write(second, str(first), [unit("b"), unit("c")])
    assert seen.among(second, [unit("a"), unit("a"), unit("c"), unit("d")]) == 2
    assert seen.among(tmp_path / "base", [unit("a")]) == 0


def test_the_closing_words_say_it():
    results = {"training": {}, "held_out": {"after": {"rewards/accuracies": 0.7}}}
    assert not any("flatter" in text for text in summarize([], {**results, "held_out_seen": 0}).warnings)
    assert any(text.startswith("3 of the held-out") for text in summarize([], {**results, "held_out_seen": 3}).warnings)
