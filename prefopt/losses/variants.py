"""More pair losses with a reference, from papers that vary DPO's shape. All report rewards β s(y).

r_w and r_l below are those rewards, and z = r_w − r_l = βh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.errors import UserError
from prefopt.losses.base import Loss, log_ratio, log_sigmoid, pair, pair_output, require_noise_rate, require_positive
from prefopt.types import LogProbs, LossOutput, Preferences

if TYPE_CHECKING:
    from torch import Tensor


def implicit_rewards(
    beta: float, policy: LogProbs, reference: LogProbs | None, preferences: Preferences
) -> tuple[Tensor, Tensor]:
    """r_w and r_l, [P] each, in nats."""
    return pair(beta * log_ratio(policy, reference), preferences)


@dataclass(frozen=True)
class EXOPair(Loss):
    """σ(z) [log σ(z) − log(1−ε)] + σ(−z) [log σ(−z) − log ε]: the reverse KL from the labels to the policy. [P], nats.

    Ji et al. 2024 (EXO), 2402.00856, eq. 16.
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""
    label_smoothing: float = 1e-3
    """ε, the probability that the labels give to the rejected response; above 0"""

    def __post_init__(self) -> None:
        require_positive(self, "beta", "label_smoothing")
        require_noise_rate(self, "label_smoothing")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        r_w, r_l = implicit_rewards(self.beta, policy, reference, preferences)
        z, eps = r_w - r_l, self.label_smoothing
        loss = z.sigmoid() * (log_sigmoid(z) - math.log1p(-eps)) + (-z).sigmoid() * (log_sigmoid(-z) - math.log(eps))
        return pair_output(loss, policy, preferences, (r_w, r_l))


@dataclass(frozen=True)
class NCAPair(Loss):
    """−log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l): absolute, not only relative, likelihoods. [P], nats.

    Chen et al. 2024 (NCA), 2402.05369.
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        r_w, r_l = implicit_rewards(self.beta, policy, reference, preferences)
        loss = -log_sigmoid(r_w) - (log_sigmoid(-r_w) + log_sigmoid(-r_l)) / 2
        return pair_output(loss, policy, preferences, (r_w, r_l))


@dataclass(frozen=True)
class BCOPair(Loss):
    """−log σ(r_w) − log σ(−r_l): each response classified on its own. [P], nats.

    Jung et al. 2024 (BCO), 2404.04656, without its moving reward shift δ, as TRL's "bco_pair".
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        r_w, r_l = implicit_rewards(self.beta, policy, reference, preferences)
        return pair_output(-log_sigmoid(r_w) - log_sigmoid(-r_l), policy, preferences, (r_w, r_l))


@dataclass(frozen=True)
class SPPOHard(Loss):
    """(s(y_w) − 1/(2β))² + (s(y_l) + 1/(2β))². [P], nats².

    Wu et al. 2024 (SPPO), 2405.00675, eq. 4.7 with win probabilities 1 and 0; its η is 1/β.
    """

    beta: float = 0.1
    """strength of the tie to the reference; the log-ratios aimed at are ±1/(2β) nats"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        s_w, s_l = pair(log_ratio(policy, reference), preferences)
        loss = (s_w - 1 / (2 * self.beta)) ** 2 + (s_l + 1 / (2 * self.beta)) ** 2
        return pair_output(loss, policy, preferences, (self.beta * s_w, self.beta * s_l))


@dataclass(frozen=True)
class APOZero(Loss):
    """1 − σ(r_w) + σ(r_l): for chosen responses better than the model's own. [P].

    D'Oosterlinck et al. 2024 (APO), 2408.06266, eq. 7.
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        r_w, r_l = implicit_rewards(self.beta, policy, reference, preferences)
        return pair_output((-r_w).sigmoid() + r_l.sigmoid(), policy, preferences, (r_w, r_l))


@dataclass(frozen=True)
class APODown(Loss):
    """σ(r_w) + 1 − σ(r_w − r_l): for chosen responses worse than the model's own. [P].

    D'Oosterlinck et al. 2024 (APO), 2408.06266, eq. 8.
    """

    beta: float = 0.1
    """strength of the tie to the reference: larger stays closer"""

    def __post_init__(self) -> None:
        require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        r_w, r_l = implicit_rewards(self.beta, policy, reference, preferences)
        return pair_output(r_w.sigmoid() + (r_l - r_w).sigmoid(), policy, preferences, (r_w, r_l))


@dataclass(frozen=True)
class DiscoPOP(Loss):
    """−(1 − σ(z/τ)) log σ(z) + σ(z/τ) e^−z: logistic for wrong pairs, exponential for right ones. [P].

    Lu et al. 2024 (DiscoPOP), 2406.08414, eq. 5.
    """

    beta: float = 0.05
    """strength of the tie to the reference: larger stays closer"""
    tau: float = 0.05
    """τ, the width of the blend; above 1 the exponential would win where pairs are wrong, and overflow"""

    def __post_init__(self) -> None:
        require_positive(self, "beta", "tau")
        if self.tau > 1:
            raise UserError(f"tau must be at most 1, not {self.tau}")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        r_w, r_l = implicit_rewards(self.beta, policy, reference, preferences)
        z = r_w - r_l
        exponential = (log_sigmoid(z / self.tau) - z).exp()  # σ(z/τ) e^−z, finite where e^−z alone is not
        loss = -(-z / self.tau).sigmoid() * log_sigmoid(z) + exponential
        return pair_output(loss, policy, preferences, (r_w, r_l))
