"""PPO and its reward model, as far as seconds can tell; how far they get is in docs/ppo.md."""

from __future__ import annotations

import numpy as np
import pytest

from prefopt.demo import methods, rl
from prefopt.demo.rewards import TrueReward, learn
from prefopt.demo.run import new_model
from prefopt.demo.tune import Start
from prefopt.demo.world import the_world
from prefopt.model.load import load_model
from prefopt.rl.loop import PPO
from prefopt.rl.rewards import load_reward


def test_the_true_reward_of_texts():
    world = the_world()
    reward = TrueReward(world)
    pairs = [(world.prompts[2], world.texts[7]), (world.prompts[0], world.texts[7]), (world.prompts[0], "a film")]
    expected = [world.reward[2, 7], world.reward[0, 7], world.reward.min() - 1]
    assert reward(pairs) == pytest.approx(expected)


def test_every_method_is_named_apart():
    every = [methods.FLAGSHIP, *methods.BESIDE, *methods.WITH_FULL, *rl.FULL]
    assert len({method.slug for method in every}) == len(every)
    assert not any(method.beta for method in (*rl.FULL, *rl.REDUCED))  # no run to realign


def test_it_moves_and_again_the_same_way(tmp_path, monkeypatch):
    """From random weights, to the bit. What is looked at are the weights: to enumerate takes longer than the steps."""
    world = the_world()
    new_model(world, tmp_path / "model", seed=0)
    monkeypatch.setattr(type(world), "logps", lambda self, model: model.lm_head.weight.detach().numpy().copy())
    start = Start(tmp_path / "model", np.empty(0), pairs=0, looks=2)
    before = load_model(str(start.model), device="cpu").module.lm_head.weight.detach().numpy()
    way, same = (rl.ppo(start, PPO(samples=2, kl_coef=0.0), 2e-3, steps=2, prompts=8, out=tmp_path / "o") for _ in "ab")
    assert [step for step, _ in way] == [1, 2]
    np.testing.assert_array_equal(way[-1].logps, same[-1].logps)
    assert np.abs(way[-1].logps - before).max() > 1e-3
    saved = load_model(str(tmp_path / "o"), device="cpu").module.lm_head.weight.detach().numpy()
    np.testing.assert_array_equal(saved, way[-1].logps)


def test_a_reward_model_learns_from_the_pairs_and_ppo_from_it(tmp_path, monkeypatch):
    """What it gives to all reviews at once, in a tree, is what it gives to one text; and PPO's first step takes it."""
    world = the_world()
    new_model(world, tmp_path / "model", seed=0)
    start = Start(tmp_path / "model", np.zeros(world.reward.shape), pairs=128, epochs=2, rewards=tmp_path / "rewards")
    learned = learn(start)
    np.testing.assert_array_equal(learned, learn(start))  # read the second time
    reviews = [(0, 0), (1, 20_000), (3, 36_863)]
    asked = [(world.prompts[x], world.texts[y]) for x, y in reviews]
    given = load_reward(str(start.reward_model))(asked)
    assert given == pytest.approx([learned[x, y] for x, y in reviews], abs=1e-5)
    assert learned.std() > 0.01
    monkeypatch.setattr(type(world), "logps", lambda self, model: model.lm_head.weight.detach().numpy().copy())
    way = [
        rl.ppo(start, PPO(samples=2), 2e-3, steps=1, learned=learned, prompts=8)[-1].logps for learned in (True, False)
    ]
    assert np.abs(way[0] - way[1]).max() > 1e-5
