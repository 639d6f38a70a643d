"""Best-of-N by drawing, beside its exact distribution."""

from __future__ import annotations

import numpy as np

from prefopt.demo import best_of
from prefopt.frontier.exact import Frontier, condition
from tests.test_sample import critic  # noqa: F401  (a small model that has read some reviews)


def test_drawn_it_is_what_it_is_exactly(critic, tmp_path):  # noqa: F811
    """By the true reward and by another; and a control that must fail: draws from elsewhere."""
    world, lm = critic
    lm.save(tmp_path)
    world.tokenizer.save_pretrained(tmp_path)
    exact = Frontier(world.logps(lm.bare), world.reward)
    drawn = best_of.draw(world, tmp_path, seed=0, n=512)
    outside = 1 - np.mean([len(of_prompt) for of_prompt in drawn]) / 512
    assert abs(outside - condition(exact.reference).missing.mean()) < 0.05
    other = world.reward + np.random.default_rng(0).normal(size=world.reward.shape)
    for score in (world.reward, other):
        for row in best_of.best_of(exact, [score], drawn)[:3]:  # of 8 there are some 30 groups a prompt
            for axis in ("reward", "kl"):
                value, low, high = row["drawn"][axis]
                assert abs(value - row[axis]) < 2 * (high - low) / 2, (row["n"], axis)
    uniform = [np.random.default_rng(x).integers(len(world.texts), size=512) for x in range(4)]
    row = best_of.best_of(exact, [world.reward], uniform)[1]
    assert not row["drawn"]["kl"][1] < row["kl"] < row["drawn"]["kl"][2]


def test_of_one_seed_as_of_all():
    """Two scores: their mean, and what is drawn is by the first."""
    reference, reward = np.log([[0.5, 0.5]]), np.array([[0.0, 1.0]])
    rows = best_of.best_of(Frontier(reference, reward), [reward, -reward], [np.array([0, 1] * 64)])
    assert np.allclose([rows[0]["reward"], rows[0]["each"][0][1]], [0.5, 0.75])
    assert rows[0]["drawn"]["reward"][0] == 1.0 and rows[0]["groups"] == 64
