"""PPO's equations, by numbers that were worked out by hand; each docstring has the derivation."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.rl import ppo

F = torch.float64


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F)


def close(found: torch.Tensor | None, *expected: float) -> None:
    torch.testing.assert_close(found, t(*expected), rtol=0, atol=1e-12)


TWO = torch.tensor([3, 1])
"""a response of three tokens and one of a single token"""


def test_a_tokens_reward_is_its_penalty_and_the_last_ones_the_score_too():
    """β = 0.1. Log-ratios 1, −2, 0.5 | 3: −0.1, 0.2, −0.05 + 4 = 3.95 | −0.3 − 1 = −1.3."""
    logps, reference = t(-1, -3, -0.5, -1), t(-2, -1, -1, -4)
    close(ppo.token_rewards(t(4, -1), logps, reference, TWO, 0.1), -0.1, 0.2, 3.95, -1.3)


def test_a_responses_rewards_add_up_to_score_less_kl():
    """4 − 0.1 (1 − 2 + 0.5) = 4.05: what is maximised is r − β KL, however it is dealt out."""
    rewards = ppo.token_rewards(t(4, -1), t(-1, -3, -0.5, -1), t(-2, -1, -1, -4), TWO, 0.1)
    assert rewards[:3].sum().item() == pytest.approx(4.05)


def test_gae():
    """γ = 0.5, λ = 0.8, so γλ = 0.4. First response, r = 1, 0, 2 and V = 0.5, 1, 1.5:

    δ3 = 2 − 1.5 = 0.5                   Â3 = 0.5
    δ2 = 0 + 0.5·1.5 − 1 = −0.25         Â2 = −0.25 + 0.4·0.5 = −0.05
    δ1 = 1 + 0.5·1 − 0.5 = 1             Â1 = 1 + 0.4·(−0.05) = 0.98
    The second, r = 3 and V = 1: Â = 2, and nothing of it reaches the first.
    """
    close(ppo.gae(t(1, 0, 2, 3), t(0.5, 1, 1.5, 1), TWO, gamma=0.5, lam=0.8), 0.98, -0.05, 0.5, 2)


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (1.0, (2.5, 1.0, 0.5, 2.0)),  # the sum of all rewards to come, less V: 3 − 0.5, 2 − 1, 2 − 1.5, 3 − 1
        (0.0, (1.5, 0.5, 0.5, 2.0)),  # one step ahead: 1 + 1 − 0.5, 0 + 1.5 − 1, 2 − 1.5, 3 − 1
    ],
)
def test_the_ends_of_lambda(lam, expected):
    close(ppo.gae(t(1, 0, 2, 3), t(0.5, 1, 1.5, 1), TWO, 1.0, lam), *expected)


def test_whitened():
    """1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9)/4 = 3.5."""
    sd = math.sqrt(3.5)
    torch.testing.assert_close(ppo.whiten(t(1, 2, 3, 6)), t(-2, -1, 0, 3) / sd, rtol=0, atol=1e-8)
    assert ppo.whiten(t(2, 2)).tolist() == [0, 0], "advantages that are all equal say nothing"


def test_policy_loss_and_its_gradient():
    """ε = 0.2. The lesser of ρÂ and clip(ρ)Â, with its sign turned; the gradient by log π is −ρÂ, or 0 where clipped.

    ρ 1.5, Â  2: min(3, 2.4)       loss −2.4, clipped      ρ 0.5, Â  2: min(1, 1.6)      loss −1,  gradient −1
    ρ 1.5, Â −2: min(−3, −2.4)     loss  3, gradient 3     ρ 0.5, Â −2: min(−1, −1.6)    loss 1.6, clipped
    ρ 1,   Â  2:                   loss −2, gradient −2
    """
    old = t(-1, -1, -1, -1, -1)
    logps = (old + t(1.5, 0.5, 1.5, 0.5, 1).log()).requires_grad_()
    loss = ppo.policy_loss(logps, old, t(2, 2, -2, -2, 2), clip=0.2)
    close(loss.detach(), -2.4, -1, 3, 1.6, -2)
    loss.sum().backward()
    close(logps.grad, 0, -1, 3, 0, -2)


def test_value_loss_and_its_gradient():
    """c = 0.2, half the larger square.

    V 1,   old 0, R 1: ½ max(0, 0.8²) = 0.32, gradient 0 (the forecast has moved enough for now)
    V 0.1, old 0, R 1: ½ 0.9² = 0.405, gradient −0.9
    V −1,  old 0, R 1: ½ max(4, 1.2²) = 2, gradient −2
    """
    values = t(1, 0.1, -1).requires_grad_()
    loss = ppo.value_loss(values, t(0, 0, 0), t(1, 1, 1), clip=0.2)
    close(loss.detach(), 0.32, 0.405, 2)
    loss.sum().backward()
    close(values.grad, 0, -0.9, -2)


def test_approx_kl():
    """ρ = 2: 1 − log 2. ρ = 1: 0. And Σ π_old k3 is the KL itself: π_old ½ ½, π ¼ ¾: ½ log 2 + ½ log ⅔."""
    close(ppo.approx_kl(t(2, 1).log(), t(0, 0)), 1 - math.log(2), 0)
    k3 = ppo.approx_kl(t(0.25, 0.75).log(), t(0.5, 0.5).log())
    assert k3.mean().item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_clipfrac():
    """|ρ − 1| is 0.5, 0.1, 0.3: two of three beyond 0.2."""
    assert ppo.clipped(t(1.5, 1.1, 0.7).log(), t(0, 0, 0)).mean().item() == pytest.approx(2 / 3)


def test_explained_variance():
    """R = 0, 2, 4: variance 8/3. V = 1, 2, 3 leaves −1, 0, 1: 2/3, so 1 − ¼. A constant explains nothing."""
    returns = t(0, 2, 4)
    assert ppo.explained_variance(t(1, 2, 3), returns).item() == pytest.approx(0.75)
    assert ppo.explained_variance(returns, returns).item() == 1
    assert ppo.explained_variance(t(7, 7, 7), returns).item() == pytest.approx(0)
    assert ppo.explained_variance(t(4, 2, 0), returns).item() == pytest.approx(-3)  # leaves −4, 0, 4: 32/3


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.1 * (1 + 0.1 * 0.05)),  # a tenth too far
        (60.0, 0.1 * (1 + 0.2 * 0.05)),  # ten times too far counts as a fifth
        (6.0, 0.1),
        (0.0, 0.1 * (1 - 0.2 * 0.05)),
    ],
)
def test_adaptive_kl(kl, expected):
    """Target 6, 64 responses of a horizon of 1280: n/horizon = 0.05."""
    assert ppo.adapted(0.1, kl, 64, 6.0, 1280) == pytest.approx(expected, rel=1e-12)


def test_unended_responses_pay():
    close(ppo.penalise_unended(t(1, 1, -1), torch.tensor([True, False, False]), 2.0), 1, -1, -3)
