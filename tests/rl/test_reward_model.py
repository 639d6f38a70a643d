"""``prefopt reward``: the equation, the numbers of transformers' own classifier, and whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.model.load import load_tokenizer
from prefopt.report.page import page
from prefopt.report.read import read_runs
from prefopt.rl.reward_model import RewardLoss, load_reward_model, scored
from prefopt.rl.reward_run import margins_of, reliability
from prefopt.rl.rewards import load_reward
from tests.train import tiny
from tests.train.conftest import brief  # noqa: F401  (no report, which takes longer than these runs)


def test_the_loss_by_hand():
    """A ranking of 3 with scores 2, 1, 0: ln(1 + e⁻¹ + e⁻²) + ln(1 + e⁻¹); centred: + 0.1 (2 + 1 + 0)²."""
    scores, given, ranking = torch.tensor([2.0, 1.0, 0.0, 5.0]), torch.tensor([3.0, 2, 1, 0]), torch.tensor([[0, 1, 2]])
    expected = np.log(1 + np.exp(-1) + np.exp(-2)) + np.log(1 + np.exp(-1))
    assert np.isclose(float(RewardLoss(rankings=True)(scores, given, ranking).loss), expected)
    centred = RewardLoss(rankings=True, center=0.1)(scores, given, ranking)
    assert np.isclose(float(centred.loss), expected + 0.9)
    assert centred.metrics["rewards/accuracies"].tolist() == [1.0]
    # with a margin of 1 all gaps of 1 are just enough: every place is as likely as any other
    assert np.isclose(float(RewardLoss(rankings=True, margin=1.0)(scores, given, ranking).loss), np.log(6))


def test_ragged_rankings_and_gradients():
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    given, ranking = torch.tensor([3.0, 2, 1, 1, 0]).double(), torch.tensor([[0, 1, 2], [4, 3, -1]])
    loss = RewardLoss(rankings=True, margin=0.5, center=0.1)
    assert loss(scores, given, ranking).loss.shape == (2,)
    assert torch.autograd.gradcheck(lambda r: loss(r, given, ranking).loss, scores)
    pair = RewardLoss(margin=0.5, center=0.1)(scores, given, torch.tensor([[4, 3]])).loss
    assert torch.isclose(pair[0], loss(scores, given, ranking).loss[1])


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", [True, False])
def test_scores_are_those_of_one_sequence_at_a_time(tmp_path, architecture, pad):
    """Also where the tokenizer has no padding of its own, so that some is added."""
    name = tiny.model(tmp_path / "model", architecture)
    tokenizer = load_tokenizer(name)
    if not pad:
        tokenizer.pad_token = tokenizer.eos_token
    lm = load_reward_model(name, tokenizer, "float32", "cpu", 64)
    assert lm.way == "tree" and not lm.bare.score.weight.any()
    torch.nn.init.normal_(lm.bare.score.weight)
    examples = encoded([tiny.rankings(tmp_path / "rankings.jsonl")], None, Encoder(tokenizer)).examples
    found = scored(lm, examples, 200)
    lm.save(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    for example, values in zip(examples, found, strict=True):
        for response, value in zip(example.responses, values, strict=True):
            ids = torch.from_numpy(np.concatenate([example.prompt, response]).astype(np.int64))[None]
            padded = torch.cat([ids, torch.full((1, 3), module.config.pad_token_id)], 1)
            assert abs(float(module(ids).logits) - value) < 1e-5
            assert abs(float(module(padded).logits) - value) < 1e-5
    rows = [json.loads(line) for line in Path(tiny.pairs(tmp_path / "pairs.jsonl")).read_text().splitlines()]
    asked = load_reward(str(tmp_path / "saved"))([(row["prompt"], row["chosen"]) for row in rows])
    pairs = encoded([str(tmp_path / "pairs.jsonl")], None, Encoder(tokenizer)).examples
    assert np.allclose(asked, [values[0] for values in scored(lm, pairs, 200)], atol=1e-5)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    return tiny.model(folder / "model"), tiny.pairs(folder / "pairs.jsonl", 60), tiny.rankings(folder / "r.jsonl", 12)


def test_a_run_learns_who_thanks(given, tmp_path, capsys):
    model, pairs, _ = given
    out = tmp_path / "run"
    settings: dict[str, Any] = dict(epochs=10, max_steps=25, batch_size=16, eval_fraction=0.25, center=0.01)
    assert tiny.cli("reward", model, pairs, out, **settings) == 0
    results = tiny.results(out)
    before, after = (results["held_out"][when] for when in ("before", "after"))
    assert np.isclose(before["loss"], np.log(2)) and "rewards/accuracies" not in before
    assert after["rewards/accuracies"] > 0.9 and after["loss"] < 0.5 and "rewards/accuracies_low" in after
    curve = results["reliability"]["curve"]
    assert sum(point["pairs"] for point in curve) == 15 == results["reliability"]["pairs"]
    ElementTree.fromstring((out / "reliability.svg").read_text())
    module = AutoModelForSequenceClassification.from_pretrained(out / "model")
    assert module.config.num_labels == 1
    card = (out / "model" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card and "text-classification" in card
    assert "Reliability" in page(read_runs([out]))
    assert "no samples" not in capsys.readouterr().err
    thanks, no = load_reward(str(out / "model"))([("the cat 3?", " thanks the cat 3"), ("the cat 3?", " no the cat 3")])
    assert thanks > no
    # a reward model can be the start of another, and keeps its head
    assert (
        tiny.cli("reward", str(out / "model"), pairs, tmp_path / "on", **settings | {"max_steps": 1, "warmup_steps": 0})
        == 0
    )
    assert tiny.results(tmp_path / "on")["held_out"]["before"]["rewards/accuracies"] > 0.9


def test_rankings_and_resume(given, tmp_path):
    model, _, rankings = given
    settings: dict[str, Any] = dict(rankings=True, margin=0.1, save_every=2, eval_fraction=0.25)
    assert tiny.cli("reward", model, rankings, tmp_path / "whole", **settings) == 0
    # what a run that was killed after step 2 leaves behind
    assert tiny.cli("reward", model, rankings, tmp_path / "part", **settings) == 0
    _forget(tmp_path / "part", 4)
    assert tiny.steps_saved(tmp_path / "part") == [2]
    assert tiny.cli("reward", model, rankings, tmp_path / "part", **settings, resume=True) == 0
    assert tiny.same(tiny.weights(tmp_path / "whole"), tiny.weights(tmp_path / "part"))


def _forget(out: Path, step: int) -> None:
    shutil.rmtree(out / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(out / "model")


def test_wrong_input(given, tmp_path, capsys):
    model, pairs, _ = given
    assert tiny.cli("reward", model, pairs, tmp_path / "a", margin=-1) == 2
    assert "--margin must be at least 0" in capsys.readouterr().err
    assert tiny.cli("reward", model, pairs, tmp_path / "same", margin=1) == 0
    assert "--margin: the data have no scores but better and worse" in " ".join(capsys.readouterr().err.split())
    assert tiny.cli("reward", tiny.model(tmp_path / "mamba", "mamba"), pairs, tmp_path / "b") == 2
    assert "no reward model can be loaded" in capsys.readouterr().err


def test_reliability_by_hand():
    """Two bins: |m| = 1 twice, once right; |m| = 3 twice, both right. σ(1) = 0.731, σ(3) = 0.953."""
    found = reliability([1.0, -1.0, 3.0, 3.0], list("pqrs"), bins=2)
    assert [(round(p["predicted"], 3), p["true"], p["pairs"]) for p in found["curve"]] == [
        (0.731, 0.5, 2),
        (0.953, 1.0, 2),
    ]
    assert np.isclose(found["error"], (0.7311 - 0.5 + 1 - 0.9526) / 2, atol=1e-4)
    assert np.isclose(found["brier"], np.mean([0.2689**2, 0.7311**2, 0.0474**2, 0.0474**2]), atol=1e-4)


def test_every_pair_with_an_order_counts(given):
    _, _, rankings = given
    examples = encoded([rankings], None, Encoder(load_tokenizer(given[0]))).examples
    margins, of = margins_of(examples, [[float(-i) for i in range(len(e.responses))] for e in examples])
    assert len(margins) == sum(n * (n - 1) // 2 for n in (len(e.responses) for e in examples)) == len(of)
    assert min(margins) > 0
