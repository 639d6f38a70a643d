"""What the demo says of its runs. Calibration: correlating a distribution with itself counts every pair."""

import numpy as np
import pytest

from prefopt.demo.account import calibration, frontier, implicit
from prefopt.demo.methods import Method, Outcome
from prefopt.frontier.exact import Frontier, Placement, bradley_terry, condition


def outcome(logps, seed=0, way=()):
    return Outcome(Method("DPO, β = 0.5", list, 0.5), seed, list(way), logps, None)


def by_hand(reference, implicit, reward):
    """(weight, p̂, p) of every pair of two prompts with five responses each."""
    for probs, r_hat, r in zip(np.exp(reference), implicit, reward, strict=True):
        for i, p in enumerate(probs):
            for j, q in enumerate(probs):
                margins = np.array([r_hat[i] - r_hat[j], r[i] - r[j]])
                yield p * q / len(reference), *bradley_terry(margins), margins


def test_every_pair_counts():
    rng = np.random.default_rng(0)
    reference = condition(rng.normal(size=(2, 5))).logps
    reward, learned = np.round(rng.normal(size=(2, 2, 5)), 2)
    policy = condition(reference + learned / 0.5).logps
    exact = Frontier(reference, reward)
    found = calibration(exact, "DPO", implicit(exact, outcome(policy)), bins=4)
    weight, p_hat, p, margins = map(np.array, zip(*by_hand(reference, learned, reward), strict=True))
    group = np.minimum((p_hat * 4).astype(int), 3)
    share = np.bincount(group, weight, 4)
    np.testing.assert_allclose(found["share"], share, atol=1e-9)
    np.testing.assert_allclose(found["predicted"], np.bincount(group, weight * p_hat, 4) / share, atol=1e-9)
    np.testing.assert_allclose(found["true"], np.bincount(group, weight * p, 4) / share, atol=1e-9)
    untied = (margins != 0).all(-1)
    alike = untied & (margins.prod(-1) > 0)
    assert found["agreement"] == pytest.approx(weight[alike].sum() / weight[untied].sum())
    right = np.where(margins[:, 0] == 0, 0.5, np.where(margins[:, 0] > 0, p, 1 - p))
    assert found["accuracy"] == pytest.approx((weight * right).sum() / weight.sum())
    assert found["ceiling"] == pytest.approx((weight * np.maximum(p, 1 - p)).sum() / weight.sum())


def test_the_optimum_is_calibrated():
    rng = np.random.default_rng(1)
    reference = condition(rng.normal(size=(3, 40))).logps
    reward = np.round(rng.normal(size=(3, 40)), 2)
    exact = Frontier(reference, reward)
    found = calibration(exact, "DPO", implicit(exact, outcome(condition(reference + reward / 0.5).logps)))
    assert found["error"] < 1e-9
    for name in ("agreement", "correlation", "slope"):
        assert found[name] == pytest.approx(1)


def test_of_several_seeds_the_mean_at_every_look():
    """By hand: KL 1 and 3 at step 5, so 2 ± √2; the path is that of the means."""

    def at(kl):
        return Placement(reward=2 * kl, kl=kl, missing=0.0, gain=kl, frontier_gain=2 * kl)

    exact = Frontier(np.log([[0.5, 0.5]]), np.array([[0.0, 1.0]]))
    runs = [outcome(None, seed, [(5, at(kl)), (10, at(kl + 1))]) for seed, kl in enumerate((1.0, 3.0))]
    first, last = frontier(exact, runs, {})["points"]
    assert (first["step"], first["kl"], first["reward"], first["efficiency"]) == (5, 2.0, 4.0, 0.5)
    assert first["kl_sd"] == pytest.approx(2**0.5) and first["each"] == [[1.0, 2.0], [3.0, 6.0]]
    assert (last["step"], last["kl"], last["family"]) == (10, 3.0, "DPO")
    (single, _) = frontier(exact, runs[:1], {})["points"]
    assert "kl_sd" not in single and "each" not in single
