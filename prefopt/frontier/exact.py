"""KL-constrained reward maximisation where nothing has to be estimated: sums over a finite response space.

Everything stands on arrays [..., Y]: for each prompt, log π(y|x), log π_ref(y|x) and r(x, y) of all Y
responses, in nats. A response that cannot occur has log-probability -inf, which also pads prompts that have
fewer. A policy that spends mass elsewhere is *conditioned* on the space, and what it spends is reported as
its missing mass. Rafailov et al. 2023 (arXiv:2305.18290) is the source where no other is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Conditioned(NamedTuple):
    """``logps`` [..., Y] sum to one; ``missing`` [...] is the probability mass that lay outside the space."""

    logps: Array
    missing: Array


def condition(logps: Array) -> Conditioned:
    """π(y | x, y in the space), and the mass that π spends elsewhere.

    >>> logps, missing = condition(np.log([0.3, 0.6]))
    >>> np.exp(logps).round(4).tolist(), round(float(missing), 4)
    ([0.3333, 0.6667], 0.1)
    """
    total = log_sum_exp(np.asarray(logps, float))[..., None]
    return Conditioned(logps - total, -np.expm1(total[..., 0]))


def log_sum_exp(values: Array) -> Array:
    """[...] log Σ exp over the last axis; -inf where all are. Ten times as fast as logaddexp.reduce."""
    highest = values.max(-1, keepdims=True)
    shift = np.where(np.isneginf(highest), 0.0, highest)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - shift).sum(-1)) + shift[..., 0]


def expectation(logps: Array, values: Array) -> Array:
    """[...] E_π[values]; what cannot occur counts nothing, whatever its value.

    >>> float(expectation(np.array([0.0, -np.inf]), np.array([2.0, np.inf])))
    2.0
    """
    return np.sum(np.exp(logps) * np.where(np.isneginf(logps), 0.0, values), axis=-1)


def kl(policy: Array, reference: Array) -> Array:
    """[...] KL(π ‖ π_ref) in nats of two normalised policies; infinite where π leaves π_ref's support.

    >>> round(float(kl(np.log([0.5, 0.5]), np.log([0.25, 0.75]))), 4)
    0.1438
    """
    return expectation(policy, log_ratio(policy, reference))


def log_ratio(policy: Array, reference: Array) -> Array:
    """[..., Y] log π/π_ref; 0 where neither can occur."""
    possible = ~(np.isneginf(policy) & np.isneginf(reference))
    return np.subtract(policy, reference, out=np.zeros(possible.shape), where=possible)


# --- The optimum, its value, and the classes of rewards -------------------------------------------------------------


def log_partition(reference: Array, reward: Array, beta: float) -> Array:
    """[...] log Z(x) = log Σ_y π_ref(y|x) exp(r(x, y) / β) (eq. 4).

    >>> round(float(log_partition(np.log([0.5, 0.5]), np.array([0.0, np.log(3)]), beta=1)), 4)  # (1 + 3) / 2
    0.6931
    """
    _check_beta(beta)
    return log_sum_exp(reference + reward / beta)


def optimum(reference: Array, reward: Array, beta: float) -> Array:
    """[..., Y] log π*(y|x), π* = π_ref exp(r/β) / Z: the maximiser of E[r] - β KL (eq. 4).

    >>> np.exp(optimum(np.log([0.5, 0.5]), np.array([0.0, np.log(3)]), beta=1)).round(4).tolist()
    [0.25, 0.75]
    """
    log_z = log_partition(reference, reward, beta)
    return reference + reward / beta - log_z[..., None]


def value(policy: Array, reference: Array, reward: Array, beta: float) -> Array:
    """[...] E_π[r] - β KL(π ‖ π_ref), the objective (eq. 3); its maximum is β log Z(x)."""
    _check_beta(beta)
    return expectation(policy, reward) - beta * kl(policy, reference)


def implicit_reward(policy: Array, reference: Array, beta: float) -> Array:
    """[..., Y] β log π/π_ref: the reward for which π is optimal, up to a constant per prompt (eq. 5)."""
    return beta * log_ratio(policy, reference)


def representative(reference: Array, reward: Array, beta: float) -> Array:
    """[..., Y] the one member of r's class of the form β log π/π_ref: r - β log Z (Theorem 1, Prop. 1).

    Rewards that differ by f(x) alone are one class: the same preferences, the same optimum, and this same
    representative, the only one whose own log Z is 0.
    """
    return reward - beta * log_partition(reference, reward, beta)[..., None]


# --- Preferences ----------------------------------------------------------------------------------------------------


def bradley_terry(margin: Array) -> Array:
    """p(y_w ≻ y_l | x) = σ(r_w - r_l), from the margin r_w - r_l (eq. 1); also a judge as noisy as the labels."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(margin, float)))


def better(margin: Array) -> Array:
    """A judge without noise: 1 for the higher reward, 1/2 for a tie."""
    return (np.sign(margin) + 1) / 2


def log_plackett_luce(rewards: Array) -> Array:
    """[...] log-probability of a ranking whose rewards [..., K] stand best first (App. A.3); K = 2 is Bradley–Terry.

    >>> round(float(np.exp(log_plackett_luce(np.log([3.0, 2.0, 1.0])))), 4)  # 3/6 · 2/3 · 1/1
    0.3333
    """
    remaining = np.logaddexp.accumulate(rewards[..., ::-1], axis=-1)[..., ::-1]
    return np.sum(rewards - remaining, axis=-1)


def win_rate(policy: Array, other: Array, reward: Array, judge: Callable[[Array], Array] = better) -> float:
    """p(y ≻ y'), y ~ π and y' ~ π' for one prompt [Y] or averaged over prompts [X, Y], without sampling.

    ``judge`` maps reward margins to the probability that the first wins. Responses of equal reward are
    interchangeable, so the cost is the square of the number of distinct rewards.

    >>> win_rate(np.log([0.5, 0.5]), np.log([0.75, 0.25]), np.array([0.0, 1.0]))  # wins 3/8, ties 1/2
    0.625
    """
    rates = []
    for ours, theirs, r in zip(*(np.atleast_2d(a) for a in (policy, other, reward)), strict=True):
        levels, level = np.unique(r, return_inverse=True)
        p, q = (np.bincount(level, np.exp(logps), len(levels)) for logps in (ours, theirs))
        rates.append(sum(mass * (judge(at - levels) @ q) for at, mass in zip(levels, p, strict=True)))
    return float(np.mean(rates))


# --- Best-of-N ------------------------------------------------------------------------------------------------------


def best_of_n(reference: Array, reward: Array, n: int) -> Array:
    """[..., Y] log-probability of the response with the highest reward of n independent draws from π_ref.

    The first of equally good ones wins, so that within a level of reward the reference's proportions stay.
    With F the mass of the responses up to a level and p that of the level: π_ref(y) (F^n - (F - p)^n) / p.

    >>> np.exp(best_of_n(np.log([0.5, 0.25, 0.25]), np.array([0.0, 1.0, 1.0]), n=2)).round(4).tolist()
    [0.25, 0.375, 0.375]
    """
    if n < 1:
        raise ValueError(f"best of {n}: at least one response must be drawn")
    if reference.ndim > 1:
        return np.stack([best_of_n(*prompt, n) for prompt in zip(reference, reward, strict=True)])
    levels, level = np.unique(reward, return_inverse=True)
    mass = np.bincount(level, np.exp(reference), len(levels))
    share = np.divide(mass, np.cumsum(mass), out=np.zeros_like(mass), where=mass > 0)  # p / F
    with np.errstate(divide="ignore", invalid="ignore"):  # the lowest level has p = F, an empty one p = 0
        factor = n * np.log(np.cumsum(mass)) + np.log(-np.expm1(n * np.log1p(-share))) - np.log(mass)
    return reference + np.where(mass > 0, factor, 0.0)[level]


def best_of_n_bound(n: int) -> float:
    """log n - (n - 1)/n: an upper bound on best-of-n's KL, reached only without ties and as probabilities vanish.

    Beirami et al. 2024, arXiv:2401.01879.

    >>> round(best_of_n_bound(4), 4)
    0.6363
    """
    return float(np.log(n) - (n - 1) / n)


# --- One run, every β -----------------------------------------------------------------------------------------------


def realign(reference: Array, policy: Array, strength: float) -> Array:
    """[..., Y] log of π_ref^(1-λ) π_θ^λ, normalised; λ = ``strength`` (Liu et al. 2024, arXiv:2402.02992).

    A policy that is optimal at β becomes the one that is optimal at β/λ. On whole sequences that is exact. The
    same formula on next-token log-probabilities [M, V] is what decoding can do, and an approximation.

    >>> np.exp(realign(np.log([0.5, 0.5]), np.log([0.2, 0.8]), 2)).round(4).tolist()  # odds 4 become 16
    [0.0588, 0.9412]
    """
    return condition(reference + strength * log_ratio(policy, reference)).logps


# --- Gradients ------------------------------------------------------------------------------------------------------


def dpo_weight(margin: Array, beta: float) -> Array:
    """β σ(-βh): how hard one pair pulls, h = log-ratio of the chosen minus that of the rejected (sec. 4).

    At π = π_ref every pair pulls with β/2: the gradient does not vanish there.

    >>> float(dpo_weight(0.0, beta=0.1)), round(float(dpo_weight(7.0, beta=0.1)), 5)
    (0.05, 0.03318)
    """
    _check_beta(beta)
    return beta * bradley_terry(-beta * np.asarray(margin, float))


class PolicyGradient(NamedTuple):
    """Of A(y) ∇log π(y), y ~ π, over the logits: ``mean`` [..., Y] and total ``variance`` [...]."""

    mean: Array
    variance: Array


def policy_gradient(policy: Array, reference: Array, reward: Array, beta: float, baseline: Array) -> PolicyGradient:
    """The actor-critic gradient of E[r] - β KL with A = r - baseline - β log π/π_ref (sec. 5.2).

    A ``baseline`` [...] per prompt leaves the mean as it is. With the soft value of the reference, β log Z, the
    objective's optimum is 0 and the variance vanishes at π*; with 0 it does not.
    """
    advantage = reward - np.asarray(baseline)[..., None] - implicit_reward(policy, reference, beta)
    probs = np.exp(policy)
    mean = probs * (advantage - expectation(policy, advantage)[..., None])
    score_norm = 1 - 2 * probs + np.sum(probs**2, axis=-1, keepdims=True)  # of ∇log π(y) = e_y - π
    return PolicyGradient(mean, expectation(policy, advantage**2 * score_norm) - np.sum(mean**2, axis=-1))


# --- The frontier ---------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """Expected reward and KL to the reference in nats, averaged over prompts."""

    reward: float
    kl: float


@dataclass(frozen=True)
class Placement:
    """Where a policy stands, conditioned on the space and averaged over prompts.

    ``gain``: its reward above the reference's; ``frontier_gain``: the most that its KL allows; ``efficiency``:
    one divided by the other, nan for a policy that has not moved (under 1e-9 nats, where rounding decides).
    ``missing``: mass outside the space.
    """

    reward: float
    kl: float
    missing: float
    gain: float
    frontier_gain: float

    @property
    def efficiency(self) -> float:
        return self.gain / self.frontier_gain if self.kl > 1e-9 and self.frontier_gain > 0 else float("nan")


@dataclass(frozen=True)
class Frontier:
    """The most reward that each KL allows, for X equally likely prompts [X, Y] and one β common to all.

    ``reference`` may have missing mass: it is conditioned. Two coin-like responses, one of reward log 3:

    >>> frontier = Frontier(np.log([[0.5, 0.5]]), np.array([[0.0, np.log(3)]]))
    >>> at_one = frontier.at(beta=1.0)  # π* = (1/4, 3/4)
    >>> round(at_one.reward, 4), round(at_one.kl, 4)
    (0.824, 0.1308)
    >>> round(frontier.reward_at(at_one.kl), 4)
    0.824
    >>> round(frontier.place(np.log([[0.25, 0.75]])).efficiency, 6)
    1.0
    """

    reference: Array
    reward: Array

    @cached_property
    def _logps(self) -> Array:
        return condition(self.reference).logps

    @cached_property
    def start(self) -> Point:
        """The reference itself: β → ∞."""
        return Point(float(np.mean(expectation(self._logps, self.reward))), 0.0)

    @cached_property
    def end(self) -> Point:
        """Only the best responses, in the reference's proportions: β → 0."""
        possible = np.where(np.isneginf(self._logps), -np.inf, self.reward)
        best = possible.max(-1, keepdims=True)
        mass = np.sum(np.exp(self._logps), axis=-1, where=possible == best)
        return Point(float(best.mean()), float(-np.log(mass).mean()))

    def at(self, beta: float) -> Point:
        """The optimum at β: E[r] and KL, averaged over prompts; log π*/π_ref = r/β - log Z, so KL = E[r]/β - log Z."""
        tilted = self._logps + self.reward / beta
        highest = tilted.max(-1)
        weights = np.exp(tilted - highest[..., None])
        total = weights.sum(-1)
        log_z, reward = np.log(total) + highest, np.sum(weights * self.reward, axis=-1) / total
        return Point(float(np.mean(reward)), float(np.mean(reward / beta - log_z)))

    def curve(self, betas: Iterable[float]) -> list[Point]:
        return [self.at(beta) for beta in betas]

    def beta_at(self, kl: float) -> float:
        """The β whose optimum has this KL, by bisection on log β. ValueError outside (0, the KL of ``end``)."""
        if not 0 < kl < self.end.kl:
            raise ValueError(f"no β has KL {kl:g}: the frontier goes from 0 to {self.end.kl:.4f} nats")
        low = high = 1.0
        while self.at(low).kl < kl and low > 1e-30:  # beyond, an end itself is meant, up to rounding
            low /= 4
        while self.at(high).kl > kl and high < 1e30:
            high *= 4
        while high / low > 1 + 1e-12:
            middle = np.sqrt(low * high)
            low, high = (middle, high) if self.at(middle).kl > kl else (low, middle)
        return float(low)

    def reward_at(self, kl: float) -> float:
        """The most expected reward at this KL; more KL than ``end`` has buys nothing."""
        if kl <= 0:
            return self.start.reward
        return self.at(self.beta_at(kl)).reward if kl < self.end.kl else self.end.reward

    def place(self, policy: Array) -> Placement:
        """Where ``policy`` [X, Y] stands; it may have missing mass."""
        logps, missing = condition(policy)
        distance = float(np.mean(kl(logps, self._logps)))
        reward = float(np.mean(expectation(logps, self.reward)))
        return Placement(
            reward=reward,
            kl=distance,
            missing=float(np.mean(missing)),
            gain=reward - self.start.reward,
            frontier_gain=self.reward_at(distance) - self.start.reward,
        )


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
