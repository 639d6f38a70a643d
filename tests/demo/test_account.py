"""Calibration: correlating a distribution with itself counts every pair, as a double loop does."""

import numpy as np
import pytest

from prefopt.demo.account import calibration
from prefopt.demo.methods import Method, Outcome
from prefopt.frontier.exact import Frontier, bradley_terry, condition


def outcome(logps):
    return Outcome(Method("DPO, β = 0.5", list, 0.5), 0, [], logps, None)


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
    reward, implicit = np.round(rng.normal(size=(2, 2, 5)), 2)
    policy = condition(reference + implicit / 0.5).logps
    found = calibration(Frontier(reference, reward), outcome(policy), bins=4)
    weight, p_hat, p, margins = map(np.array, zip(*by_hand(reference, implicit, reward), strict=True))
    group = np.minimum((p_hat * 4).astype(int), 3)
    share = np.bincount(group, weight, 4)
    np.testing.assert_allclose(found["share"], share, atol=1e-9)
    np.testing.assert_allclose(found["predicted"], np.bincount(group, weight * p_hat, 4) / share, atol=1e-9)
    np.testing.assert_allclose(found["true"], np.bincount(group, weight * p, 4) / share, atol=1e-9)
    untied = (margins != 0).all(-1)
    alike = untied & (margins.prod(-1) > 0)
    assert found["agreement"] == pytest.approx(weight[alike].sum() / weight[untied].sum())


def test_the_optimum_is_calibrated():
    rng = np.random.default_rng(1)
    reference = condition(rng.normal(size=(3, 40))).logps
    reward = np.round(rng.normal(size=(3, 40)), 2)
    found = calibration(Frontier(reference, reward), outcome(condition(reference + reward / 0.5).logps))
    assert found["error"] < 1e-9
    for name in ("agreement", "correlation", "slope"):
        assert found[name] == pytest.approx(1)
