"""The theory as executable checks: spaces small enough to work out by hand, brute force, and identities."""

from itertools import pairwise, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prefopt.frontier import exact
from prefopt.frontier.exact import Frontier, condition, expectation, kl, optimum

settings.register_profile("exact", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("exact")


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


def policies(prompts: int = 3, responses: int = 5) -> st.SearchStrategy[np.ndarray]:
    return arrays(float, (prompts, responses), elements=floats(-6, 0)).map(lambda a: condition(a).logps)


def rewards(prompts: int = 3, responses: int = 5) -> st.SearchStrategy[np.ndarray]:
    return arrays(float, (prompts, responses), elements=floats(-3, 3))


betas = floats(0.05, 20)


class TestByHand:
    """Two responses, π_ref = (1/2, 1/2), r = (0, log 3), β = 1: tilts 1 and 3, Z = (1 + 3)/2 = 2, π* = (1/4, 3/4).

    E[r] = 3/4 log 3. KL = 1/4 log(1/2) + 3/4 log(3/2) = 3/4 log 3 - log 2. Their difference is log 2 = β log Z.
    """

    reference = np.log([0.5, 0.5])
    reward = np.array([0.0, np.log(3)])

    def test_optimum(self):
        np.testing.assert_allclose(np.exp(optimum(self.reference, self.reward, 1.0)), [0.25, 0.75])

    def test_value_is_log_z(self):
        best = optimum(self.reference, self.reward, 1.0)
        assert exact.value(best, self.reference, self.reward, 1.0) == pytest.approx(np.log(2))
        assert exact.log_partition(self.reference, self.reward, 1.0) == pytest.approx(np.log(2))

    def test_kl_and_reward(self):
        point = Frontier(self.reference[None], self.reward[None]).at(1.0)
        assert point.reward == pytest.approx(0.75 * np.log(3))
        assert point.kl == pytest.approx(0.75 * np.log(3) - np.log(2))

    def test_half_beta_squares_the_tilt(self):
        np.testing.assert_allclose(np.exp(optimum(self.reference, self.reward, 0.5)), [0.1, 0.9])

    def test_efficiency_of_a_wasteful_policy(self):
        """On three responses, r = (0, 1, 1), a policy that puts all on one of the two best pays log 3 nats;
        log(3/2) would have bought the same reward, the most there is."""
        frontier = Frontier(np.log([[1, 1, 1]]) - np.log(3), np.array([[0.0, 1.0, 1.0]]))
        placed = frontier.place(np.array([[-np.inf, 0.0, -np.inf]]))
        assert placed.kl == pytest.approx(np.log(3))
        assert placed.efficiency == pytest.approx(1.0)  # beyond the frontier's end KL buys nothing
        assert frontier.end.kl == pytest.approx(np.log(1.5))
        half = frontier.place(np.log([[0.3, 0.5, 0.2]]))
        assert half.efficiency < 0.9

    def test_reference_has_no_efficiency(self):
        assert np.isnan(Frontier(self.reference[None], self.reward[None]).place(self.reference[None]).efficiency)


class TestOptimum:
    @given(policies(), rewards(), betas)
    def test_value_identity(self, reference, reward, beta):
        best = optimum(reference, reward, beta)
        np.testing.assert_allclose(
            exact.value(best, reference, reward, beta), beta * exact.log_partition(reference, reward, beta), atol=1e-10
        )

    @given(policies(), policies(), rewards(), betas)
    def test_no_policy_is_better_and_the_gap_is_a_kl(self, policy, reference, reward, beta):
        """β log Z - (E[r] - β KL(π ‖ π_ref)) = β KL(π ‖ π*): the whole proof that π* is the optimum."""
        best = optimum(reference, reward, beta)
        gap = beta * exact.log_partition(reference, reward, beta) - exact.value(policy, reference, reward, beta)
        assert (gap >= -1e-10).all()
        np.testing.assert_allclose(gap, beta * kl(policy, best), atol=1e-9)

    def test_gradient_ascent_finds_it(self):
        """An optimiser that knows nothing of the closed form comes to it."""
        rng = np.random.default_rng(0)
        reference, reward = condition(rng.normal(size=6)).logps, rng.normal(size=6)
        logits = torch.zeros(6, dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

        def loss():
            optimizer.zero_grad()
            logps = logits.log_softmax(-1)
            ours = -(logps.exp() * (torch.tensor(reward) - 0.7 * (logps - torch.tensor(reference)))).sum()
            ours.backward()
            return ours

        optimizer.step(loss)
        found = logits.detach().log_softmax(-1).numpy()
        np.testing.assert_allclose(found, optimum(reference, reward, 0.7), atol=1e-5)

    def test_tiny_and_huge_beta_are_stable(self):
        reference, reward = condition(np.zeros((1, 4))).logps, np.array([[0.0, 1.0, 2.0, 2.0]])
        np.testing.assert_allclose(np.exp(optimum(reference, reward, 1e-9)), [[0, 0, 0.5, 0.5]], atol=1e-12)
        np.testing.assert_allclose(optimum(reference, reward, 1e9), reference, atol=1e-8)

    def test_impossible_responses_stay_impossible(self):
        reference, reward = np.array([np.log(0.5), np.log(0.5), -np.inf]), np.array([0.0, 1.0, 50.0])
        best = optimum(reference, reward, 1.0)
        assert np.isneginf(best[2])
        assert np.isfinite([kl(best, reference), expectation(best, reward)]).all()

    def test_kl_is_infinite_outside_the_support(self):
        assert np.isposinf(kl(np.log([0.5, 0.5]), np.array([0.0, -np.inf])))

    @pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
    def test_beta_must_be_positive(self, beta):
        with pytest.raises(ValueError, match="beta must be positive"):
            optimum(np.log([0.5, 0.5]), np.zeros(2), beta)


class TestRewardClasses:
    @given(policies(), rewards(), betas, arrays(float, (3, 1), elements=floats(-5, 5)))
    def test_adding_f_of_x_changes_nothing(self, reference, reward, beta, f):
        """Lemmas 1 and 2, for pairs and rankings."""
        np.testing.assert_allclose(
            optimum(reference, reward + f, beta), optimum(reference, reward, beta), atol=1e-8 / beta
        )
        np.testing.assert_allclose(exact.log_plackett_luce(reward + f), exact.log_plackett_luce(reward), atol=1e-9)

    def test_adding_f_of_y_changes_the_optimum(self):
        """The control: a difference that depends on the response is another class."""
        reference, reward = condition(np.zeros((2, 3))).logps, np.zeros((2, 3))
        other = reward + np.array([0.0, 0.0, 1.0])
        assert np.abs(optimum(reference, other, 1.0) - optimum(reference, reward, 1.0)).max() > 0.1

    @given(policies(), rewards(), betas, arrays(float, (3, 1), elements=floats(-5, 5)))
    def test_theorem_1(self, reference, reward, beta, f):
        """Each class has exactly one member β log π/π_ref: of r and r + f it is the same, its own log Z is 0,
        it is r - f'(x), and projecting twice changes nothing."""
        ours = exact.representative(reference, reward, beta)
        np.testing.assert_allclose(exact.representative(reference, reward + f, beta), ours, atol=1e-9)
        np.testing.assert_allclose(exact.log_partition(reference, ours, beta), 0, atol=1e-9)
        np.testing.assert_allclose(
            ours, exact.implicit_reward(optimum(reference, reward, beta), reference, beta), atol=1e-9
        )
        np.testing.assert_allclose(np.ptp(ours - reward, axis=-1), 0, atol=1e-9)
        np.testing.assert_allclose(exact.representative(reference, ours, beta), ours, atol=1e-9)

    @given(policies(), policies(), betas)
    def test_every_policy_is_optimal_for_its_implicit_reward(self, policy, reference, beta):
        implicit = exact.implicit_reward(policy, reference, beta)
        np.testing.assert_allclose(optimum(reference, implicit, beta), policy, atol=1e-8)


class TestPreferences:
    def test_bradley_terry(self):
        assert exact.bradley_terry(np.log(3)) == pytest.approx(0.75)
        assert exact.bradley_terry(-1000.0) == 0 and exact.bradley_terry(1000.0) == 1

    @given(arrays(float, 4, elements=floats(-5, 5)))
    def test_plackett_luce_is_a_distribution_over_rankings(self, reward):
        total = sum(np.exp(exact.log_plackett_luce(reward[list(order)])) for order in permutations(range(4)))
        assert total == pytest.approx(1)

    @given(arrays(float, 2, elements=floats(-20, 20)))
    def test_two_ranked_are_bradley_terry(self, reward):
        assert np.exp(exact.log_plackett_luce(reward)) == pytest.approx(exact.bradley_terry(reward[0] - reward[1]))

    @pytest.mark.parametrize("judge", [exact.better, exact.bradley_terry])
    def test_win_rate_by_brute_force(self, judge):
        rng = np.random.default_rng(1)
        ours, theirs = condition(rng.normal(size=(2, 3, 6))).logps
        reward = rng.integers(0, 3, size=(3, 6)).astype(float)  # with ties
        by_hand = np.mean(
            [
                sum(np.exp(p[i] + q[j]) * judge(r[i] - r[j]) for i, j in product(range(6), repeat=2))
                for p, q, r in zip(ours, theirs, reward, strict=True)
            ]
        )
        assert exact.win_rate(ours, theirs, reward, judge) == pytest.approx(by_hand)

    @given(policies(), policies(), rewards())
    def test_win_rates_of_both_sides_are_one(self, ours, theirs, reward):
        for judge in (exact.better, exact.bradley_terry):
            both = exact.win_rate(ours, theirs, reward, judge) + exact.win_rate(theirs, ours, reward, judge)
            assert both == pytest.approx(1)


def by_enumerating_draws(probs: np.ndarray, reward: np.ndarray, n: int) -> np.ndarray:
    """Every sequence of n draws; the first of the best wins."""
    result = np.zeros(len(probs))
    for draws in product(range(len(probs)), repeat=n):
        result[max(draws, key=lambda y: reward[y])] += np.prod(probs[list(draws)])
    return result


class TestBestOfN:
    @pytest.mark.parametrize("n", [1, 2, 5])
    @pytest.mark.parametrize("reward", [[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    def test_by_enumerating_all_draws(self, n, reward):
        probs = np.array([0.1, 0.2, 0.3, 0.4])
        ours = np.exp(exact.best_of_n(np.log(probs), np.array(reward), n))
        np.testing.assert_allclose(ours, by_enumerating_draws(probs, np.array(reward), n), atol=1e-12)

    @given(policies(), arrays(float, (3, 5), elements=st.sampled_from([0.0, 1.0, 2.0])), st.integers(1, 200))
    def test_its_kl_is_below_the_bound(self, reference, reward, n):
        best = exact.best_of_n(reference, reward, n)
        np.testing.assert_allclose(np.exp(best).sum(-1), 1)
        assert (kl(best, reference) <= exact.best_of_n_bound(n) + 1e-9).all()

    def test_the_bound_is_reached_in_the_limit_only(self):
        """With four draws: 10,000 equally likely responses of different reward against two."""
        for count, nearly in ((10_000, True), (2, False)):
            reference, reward = np.full(count, -np.log(count)), np.arange(count, dtype=float)
            gap = exact.best_of_n_bound(4) - kl(exact.best_of_n(reference, reward, 4), reference)
            assert bool(gap < 1e-3) is nearly

    def test_rare_and_impossible_responses(self):
        reference, reward = np.array([np.log1p(-1e-12), np.log(1e-12), -np.inf]), np.array([0.0, 1.0, 2.0])
        best = exact.best_of_n(reference, reward, 4)
        assert np.exp(best[1]) == pytest.approx(4e-12, rel=1e-6)
        assert np.isneginf(best[2])
        assert kl(best, reference) >= 0

    def test_at_least_one_draw(self):
        with pytest.raises(ValueError, match="at least one"):
            exact.best_of_n(np.log([0.5, 0.5]), np.zeros(2), 0)


class TestRealignment:
    @given(policies(), rewards(), floats(0.2, 10), floats(0.1, 5))
    def test_one_run_is_every_beta(self, reference, reward, beta, strength):
        """The optimum at β, realigned by λ, is the optimum at β/λ."""
        realigned = exact.realign(reference, optimum(reference, reward, beta), strength)
        np.testing.assert_allclose(realigned, optimum(reference, reward, beta / strength), atol=1e-7)

    @given(policies(), policies())
    def test_ends(self, policy, reference):
        np.testing.assert_allclose(exact.realign(reference, policy, 0.0), reference, atol=1e-9)
        np.testing.assert_allclose(exact.realign(reference, policy, 1.0), policy, atol=1e-9)

    def test_beyond_the_support(self):
        reference, policy = np.array([0.0, -np.inf]), np.array([0.0, -np.inf])
        assert np.isneginf(exact.realign(reference, policy, 2.0)[1])


class TestGradients:
    def test_the_numbers(self):
        """h = 7, β = 0.1: σ(-0.7) = 0.3318; at π = π_ref, h = 0, the weight is β/2 and not zero."""
        assert exact.dpo_weight(7.0, 0.1) == pytest.approx(0.1 * 0.3318, abs=1e-5)
        for beta in (0.05, 0.1, 1.0, 5.0):
            assert exact.dpo_weight(0.0, beta) == beta / 2

    @given(floats(-30, 30), betas)
    def test_it_is_the_derivative_of_the_loss(self, margin, beta):
        h = torch.tensor(margin, dtype=torch.double, requires_grad=True)
        (-torch.nn.functional.logsigmoid(beta * h)).backward()
        assert exact.dpo_weight(margin, beta) == pytest.approx(-h.grad.item(), abs=1e-12)

    def test_the_loss_of_all_pairs_is_least_at_the_optimum(self):
        """Its gradient is far from zero at π_ref and vanishes at π*, whoever writes the pairs."""
        rng = np.random.default_rng(2)
        reference, reward, beta = condition(rng.normal(size=5)).logps, rng.normal(size=5), 0.3
        writer = torch.tensor(condition(rng.normal(size=5)).logps).exp()
        prefers = torch.tensor(exact.bradley_terry(reward[:, None] - reward))

        def gradient(start: np.ndarray) -> float:
            logits = torch.tensor(start, requires_grad=True)
            s = logits.log_softmax(-1) - torch.tensor(reference)
            loss = -torch.nn.functional.logsigmoid(beta * (s[:, None] - s))
            (writer[:, None] * writer * prefers * loss).sum().backward()
            return float(logits.grad.norm())

        assert gradient(optimum(reference, reward, beta)) < 1e-12
        assert gradient(reference) > 1e-2

    def test_policy_gradient_by_autograd(self):
        rng = np.random.default_rng(3)
        policy, reference = condition(rng.normal(size=(2, 4))).logps
        reward = rng.normal(size=4)
        logits = torch.tensor(policy, requires_grad=True)
        logps = logits.log_softmax(-1)
        (logps.exp() * (torch.tensor(reward) - 0.4 * (logps - torch.tensor(reference)))).sum().backward()
        for baseline in (0.0, 3.0):
            ours = exact.policy_gradient(policy, reference, reward, 0.4, np.array(baseline))
            np.testing.assert_allclose(ours.mean, logits.grad.numpy(), atol=1e-12)

    def test_policy_gradient_variance_by_enumeration(self):
        rng = np.random.default_rng(4)
        policy, reference = condition(rng.normal(size=(2, 3))).logps
        reward, probs = rng.normal(size=3), np.exp(policy)
        advantage = reward - 0.2 - 0.4 * (policy - reference)
        estimates = advantage[:, None] * (np.eye(3) - probs)
        variance = probs @ ((estimates - probs @ estimates) ** 2).sum(1)
        ours = exact.policy_gradient(policy, reference, reward, 0.4, np.array(0.2))
        assert ours.variance == pytest.approx(variance)

    @given(policies(), rewards(), betas)
    def test_the_soft_value_takes_the_variance_away_at_the_optimum(self, reference, reward, beta):
        best = optimum(reference, reward, beta)
        soft_value = beta * exact.log_partition(reference, reward, beta)
        with_it = exact.policy_gradient(best, reference, reward, beta, soft_value)
        without = exact.policy_gradient(best, reference, reward, beta, np.zeros(3))
        np.testing.assert_allclose(with_it.variance, 0, atol=1e-12)
        spread = 1 - np.exp(2 * best).sum(-1)  # E ‖e_y - π‖²
        np.testing.assert_allclose(without.variance, soft_value**2 * spread, atol=1e-8)


class TestFrontier:
    @given(policies(), rewards(), betas)
    def test_inversion(self, reference, reward, beta):
        frontier = Frontier(reference, reward)
        point = frontier.at(beta)
        if 1e-6 < point.kl < frontier.end.kl - 1e-6:
            assert frontier.reward_at(point.kl) == pytest.approx(point.reward, abs=1e-8)

    @given(policies(), policies(), rewards())
    def test_no_policy_is_above_it(self, policy, reference, reward):
        placed = Frontier(reference, reward).place(policy)
        assert placed.gain <= placed.frontier_gain + 1e-9

    @given(policies(), rewards(), st.lists(betas, min_size=4, max_size=4, unique=True))
    def test_it_rises_and_bends(self, reference, reward, sweep):
        """Along falling β reward and KL rise, and the slope dE[r]/dKL is between the two β's."""
        sweep = sorted(sweep, reverse=True)
        for (high, a), (low, b) in pairwise(zip(sweep, Frontier(reference, reward).curve(sweep), strict=True)):
            assert b.kl >= a.kl - 1e-12 and b.reward >= a.reward - 1e-12
            assert low * (b.kl - a.kl) - 1e-9 <= b.reward - a.reward <= high * (b.kl - a.kl) + 1e-9

    def test_one_beta_for_all_prompts_beats_the_same_kl_for_each(self):
        """The control for averaging: spending the KL equally on two prompts, one of which has nothing to gain."""
        reference = condition(np.zeros((2, 2))).logps
        frontier = Frontier(reference, np.array([[0.0, 1.0], [0.0, 0.0]]))
        placed = frontier.place(np.log([[0.2, 0.8], [0.2, 0.8]]))
        assert placed.efficiency < 0.8

    def test_missing_mass_is_reported_and_conditioned_away(self):
        reference, reward = np.log([[0.5, 0.5]]), np.array([[0.0, 1.0]])
        whole = Frontier(reference, reward).place(np.log([[0.2, 0.8]]))
        part = Frontier(reference + np.log(0.9), reward).place(np.log([[0.19, 0.76]]))
        assert part.missing == pytest.approx(0.05)
        assert (part.reward, part.kl) == pytest.approx((whole.reward, whole.kl))

    @pytest.mark.parametrize("kl", [0.0, 1.0])
    def test_no_beta_beyond_the_ends(self, kl):
        with pytest.raises(ValueError, match=r"the frontier goes from 0 to 0\.6931"):
            Frontier(np.log([[0.5, 0.5]]), np.array([[0.0, 1.0]])).beta_at(kl)

    def test_hardly_moved_and_hardly_short_of_the_end(self):
        """Where rounding decides, an answer and no endless search."""
        frontier = Frontier(np.log([[0.5, 0.3, 0.2]]), np.array([[0.0, 1.0, 2.0]]))
        assert frontier.reward_at(1e-18) == pytest.approx(frontier.start.reward)
        assert frontier.reward_at(np.nextafter(frontier.end.kl, 0)) == pytest.approx(frontier.end.reward)
