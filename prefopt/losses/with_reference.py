"""Losses that compare the policy with a reference: DPO and its family, rankings, single answers (KTO)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.losses.base import (
    Loss,
    log_ratio,
    log_sigmoid,
    pair,
    pair_output,
    require_noise_rate,
    require_non_negative,
    require_positive,
)
from prefopt.types import LogProbs, LossOutput, Preferences

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DPO(Loss):
    """−(1−ε) log σ(βh) − ε log σ(−βh). [P], nats.

    Rafailov et al. 2023, 2305.18290, eq. 7; with label noise ε it is Mitchell's conservative DPO (2023).
    TRL 1.16 (loss_type "sigmoid") ignores its label_smoothing: its value is this one with ε = 0.

    >>> import torch
    >>> policy = LogProbs(sum=torch.tensor([-10.0, -19.0]), length=torch.tensor([4.0, 6.0]))
    >>> reference = LogProbs(sum=torch.tensor([-12.0, -14.0]), length=policy.length)
    >>> out = DPO(beta=0.1)(policy, reference, Preferences(torch.tensor([[0, 1]])))
    >>> out.loss, out.metrics["weights"]
    (tensor([0.4032]), tensor([0.3318]))
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""
    label_smoothing: float = 0.0
    """ε, the share of labels taken to be wrong (cDPO)"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")
        require_noise_rate(self, "label_smoothing")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        s_w, s_l = pair(log_ratio(policy, reference), preferences)
        z, eps = self.beta * (s_w - s_l), self.label_smoothing
        loss = -(1 - eps) * log_sigmoid(z) - eps * log_sigmoid(-z)
        rewards = self.beta * s_w, self.beta * s_l
        return pair_output(loss, policy, preferences, rewards, weights=(-z).sigmoid() - eps)


@dataclass(frozen=True)
class Robust(Loss):
    """[−(1−ε) log σ(βh) + ε log σ(−βh)] / (1−2ε). [P], nats; below 0 for confident pairs.

    Chowdhury et al. 2024, 2403.00409: with labels flipped at rate ε, its mean is DPO's on clean labels.
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""
    label_smoothing: float = 0.1
    """ε, the share of labels that are flipped; 0 is dpo"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")
        require_noise_rate(self, "label_smoothing")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        s_w, s_l = pair(log_ratio(policy, reference), preferences)
        z, eps = self.beta * (s_w - s_l), self.label_smoothing
        loss = (-(1 - eps) * log_sigmoid(z) + eps * log_sigmoid(-z)) / (1 - 2 * eps)
        weights = (-z).sigmoid() + eps / (1 - 2 * eps)
        return pair_output(loss, policy, preferences, (self.beta * s_w, self.beta * s_l), weights=weights)


@dataclass(frozen=True)
class IPO(Loss):
    """(h − 1/(2τ))², with h of sums over tokens. [P], nats².

    Azar et al. 2023, 2310.12036, eq. 17, as in the paper. TRL and HALOs divide by length: see `IPOMean`.
    Rewards are τ s(y).
    """

    tau: float = 0.1
    """strength of the tie to the reference; the margin aimed at is 1/(2τ) nats"""

    def __post_init__(self) -> None:
        require_positive(self, "tau")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        s_w, s_l = pair(log_ratio(policy, reference), preferences)
        loss = (s_w - s_l - 1 / (2 * self.tau)) ** 2
        return pair_output(loss, policy, preferences, (self.tau * s_w, self.tau * s_l))


@dataclass(frozen=True)
class IPOMean(Loss):
    """(s(y_w)/|y_w| − s(y_l)/|y_l| − 1/(2τ))². [P], (nats per token)².

    IPO with means over tokens, which is what TRL (loss_type "ipo", its beta is τ) and HALOs compute.
    TRL reports that the paper's authors use it. Rewards are τ s(y)/|y|.
    """

    tau: float = 0.1
    """strength of the tie to the reference; the margin aimed at is 1/(2τ) nats per token"""

    def __post_init__(self) -> None:
        require_positive(self, "tau")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        s_w, s_l = pair(log_ratio(policy, reference) / policy.length, preferences)
        loss = (s_w - s_l - 1 / (2 * self.tau)) ** 2
        return pair_output(loss, policy, preferences, (self.tau * s_w, self.tau * s_l))


@dataclass(frozen=True)
class Hinge(Loss):
    """max(0, 1 − βh). [P].

    SLiC's hinge on DPO's margin: Zhao et al. 2023, 2305.10425; Liu et al. 2023 (RSO), 2309.06657.
    """

    beta: float = 0.1
    """strength of the tie to the reference; the margin aimed at is 1/β nats"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        s_w, s_l = pair(log_ratio(policy, reference), preferences)
        z = self.beta * (s_w - s_l)
        weights = (z < 1).to(z.dtype)
        return pair_output((1 - z).relu(), policy, preferences, (self.beta * s_w, self.beta * s_l), weights=weights)


@dataclass(frozen=True)
class SigmoidNorm(Loss):
    """−log σ(β (s(y_w)/|y_w| − s(y_l)/|y_l|)): length-normalized DPO. [P], nats.

    Lambert et al. 2024 (Tülu 3), 2411.15124, sec. 5. Rewards are β s(y)/|y|.
    """

    beta: float = 5.0
    """strength of the tie to the reference, per token: larger than dpo's by about a response's length"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        s_w, s_l = pair(log_ratio(policy, reference) / policy.length, preferences)
        z = self.beta * (s_w - s_l)
        rewards = self.beta * s_w, self.beta * s_l
        return pair_output(-log_sigmoid(z), policy, preferences, rewards, weights=(-z).sigmoid())


@dataclass(frozen=True)
class PlackettLuce(Loss):
    """−Σ_k [β s(y_k) − log Σ_{j≥k} exp β s(y_j)] over responses ranked best first. [P], nats.

    Rafailov et al. 2023, 2305.18290, app. A.3. Rankings may be ragged; K = 2 is dpo. Metrics
    compare the best response (chosen) with the mean of the others (rejected); the accuracy is the share of a
    ranking's pairs in the right order.
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""
    unit = "ranking"

    def __post_init__(self) -> None:
        require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        present = preferences.ranking >= 0  # [P, K]
        ranking = preferences.ranking.clamp(min=0)
        reward = self.beta * log_ratio(policy, reference)[ranking]  # [P, K]

        below = present.new_ones(reward.shape[1], reward.shape[1]).triu(1)  # [k, j]: j is ranked below k
        pairs = below & present[:, None, :]  # [P, k, j]
        # a padded place is compared with itself alone, which adds 0 and pulls on nothing
        rivals = pairs | below.new_ones(len(below)).diag()
        rival_rewards = reward[:, None, :].expand(rivals.shape).masked_fill(~rivals, -math.inf)
        loss = (rival_rewards.logsumexp(-1) - reward).sum(-1)

        def against_others(values: Tensor) -> tuple[Tensor, Tensor]:
            return values[:, 0], (values * present)[:, 1:].sum(-1) / present[:, 1:].sum(-1).clamp(min=1)

        ordered = (pairs & (reward[:, :, None] > reward[:, None, :])).sum((1, 2))
        metrics = {
            "rewards/accuracies": ordered.to(reward.dtype) / pairs.sum((1, 2)).clamp(min=1),
            "logps/rejected": against_others(policy.sum[ranking])[1],
        }
        return pair_output(loss, policy, preferences, against_others(reward), **metrics)


def kto_baseline(mismatched_policy: LogProbs, mismatched_reference: LogProbs) -> Tensor:
    """KTO's z0 = max(0, mean of s), a scalar without gradient, in nats.

    The responses are mismatched: y_{i+1} answers x_i. Hand over those of a whole optimizer step, for the
    result not to depend on how it is split. Ethayarajh et al. 2024, 2402.01306, sec. 4.1.

    >>> import torch
    >>> lp = lambda *sums: LogProbs(torch.tensor(sums), torch.ones(len(sums)))
    >>> kto_baseline(lp(-4.0, -7.0), lp(-9.0, -8.0)), kto_baseline(lp(-9.0), lp(-8.0))
    (tensor(3.), tensor(0.))
    """
    return log_ratio(mismatched_policy, mismatched_reference).mean().clamp(min=0).detach()


@dataclass(frozen=True)
class KTO(Loss):
    """λ_D (1 − σ(β(s − z0))) for a desirable response, λ_U (1 − σ(β(z0 − s))) for an undesirable one. [P].

    Ethayarajh et al. 2024, 2402.01306, sec. 4; z0 is `kto_baseline`, reported as ``baseline``. For equal pull, choose
    λ_D n_D : λ_U n_U between 1 and 4/3. ``rewards/chosen`` and ``logps/chosen`` are those of the desirable responses,
    ``rewards/rejected`` and ``logps/rejected`` of the others; there are no pairs, so no margins.
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""
    desirable_weight: float = 1.0
    """λ_D, the weight of desirable responses"""
    undesirable_weight: float = 1.0
    """λ_U, the weight of undesirable responses"""
    unit = "response"
    needs_baseline = True

    def __post_init__(self) -> None:
        require_positive(self, "beta")
        require_non_negative(self, "desirable_weight", "undesirable_weight")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        good, z0 = preferences.desirable, preferences.baseline
        assert good is not None and z0 is not None, "kto reads preferences.desirable and preferences.baseline"
        s = log_ratio(policy, reference)[preferences.chosen]
        sign = good.to(s.dtype) * 2 - 1
        weight = self.desirable_weight * good + self.undesirable_weight * ~good
        loss = weight * (-sign * self.beta * (s - z0)).sigmoid()  # 1 − σ(z) = σ(−z)
        rewards, logps = self.beta * s.detach(), policy.sum.detach()[preferences.chosen]
        metrics = {
            "rewards/chosen": rewards[good],
            "rewards/rejected": rewards[~good],
            "logps/chosen": logps[good],
            "logps/rejected": logps[~good],
            "baseline": z0.expand_as(s),
        }
        return LossOutput(loss, metrics)
