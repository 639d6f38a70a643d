"""Losses of the policy alone: no reference model is loaded for them."""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.losses.base import Loss, log_sigmoid, pair, pair_output, require_non_negative, require_positive
from prefopt.types import LogProbs, LossOutput, Preferences


@dataclass(frozen=True)
class ORPO(Loss):
    """−log p(y_w) − λ log σ(log odds(y_w) − log odds(y_l)), with odds = p/(1−p) and log p the mean over
    the response's tokens. [P], nats.

    Hong et al. 2024, 2403.07691, eqs. 6 and 7. Rewards are λ log p. TRL's first term also covers the
    prompt's tokens and averages over all tokens of the micro-batch; here it is each response's own mean.
    """

    odds_weight: float = 0.1
    """λ, the weight of the odds-ratio term (TRL calls it beta)"""
    needs_reference = False

    def __post_init__(self) -> None:
        require_positive(self, "odds_weight")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        import torch

        # p = 1 has infinite odds; the clamp keeps its value finite and its gradient zero
        log_p = policy.mean.clamp(max=-torch.finfo(policy.sum.dtype).eps)
        log_odds = log_p - (-log_p.expm1()).log()
        odds_w, odds_l = pair(log_odds, preferences)
        nll = -policy.mean[preferences.chosen]
        loss = nll - self.odds_weight * log_sigmoid(odds_w - odds_l)
        p_w, p_l = pair(policy.mean, preferences)
        rewards = self.odds_weight * p_w, self.odds_weight * p_l
        return pair_output(loss, policy, preferences, rewards, log_odds_ratio=odds_w - odds_l, nll=nll)


@dataclass(frozen=True)
class SimPO(Loss):
    """−log σ(β (mean log π(y_w|x) − mean log π(y_l|x)) − γ). [P], nats.

    Meng et al. 2024, 2405.14734, eq. 6; γ as in the paper and in TRL's simpo_gamma. The paper's code takes the ratio
    γ/β instead: multiply it by β. Rewards are β mean log π(y|x).
    """

    beta: float = 2.0
    """scale of the mean log-probabilities; 2 to 2.5 in the paper"""
    gamma: float = 1.0
    """γ, the margin aimed at; 0.5 to 1.5 in the paper"""
    needs_reference = False

    def __post_init__(self) -> None:
        require_positive(self, "beta")
        require_non_negative(self, "gamma")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        mean_w, mean_l = pair(policy.mean, preferences)
        z = self.beta * (mean_w - mean_l) - self.gamma
        rewards = self.beta * mean_w, self.beta * mean_l
        return pair_output(-log_sigmoid(z), policy, preferences, rewards, weights=(-z).sigmoid())


@dataclass(frozen=True)
class CPO(Loss):
    """−log σ(β (log π(y_w|x) − log π(y_l|x))) − α mean log π(y_w|x). [P], nats.

    Xu et al. 2024, 2401.08417, sec. 3. Rewards are β log π(y|x). TRL averages the second term over all tokens of the
    micro-batch instead of over each response.
    """

    beta: float = 0.1
    """scale of the log-probabilities"""
    alpha: float = 1.0
    """α, the weight of imitating the chosen response"""
    needs_reference = False

    def __post_init__(self) -> None:
        require_positive(self, "beta")
        require_non_negative(self, "alpha")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        logp_w, logp_l = pair(policy.sum, preferences)
        z = self.beta * (logp_w - logp_l)
        nll = -policy.mean[preferences.chosen]
        loss = -log_sigmoid(z) + self.alpha * nll
        return pair_output(loss, policy, preferences, (self.beta * logp_w, self.beta * logp_l), nll=nll)


@dataclass(frozen=True)
class Unlikelihood(Loss):
    """−log π(y_w|x) + α log π(y_l|x). [P], nats; without a lower bound.

    A baseline of Rafailov et al. 2023, 2305.18290, sec. 6: the probability of y_w up, that of y_l down, as whole
    responses. Welleck et al. 2019, 1908.04319, who named it, use −log(1 − p) for each token, which is bounded; the
    paper says nothing of tokens. Rewards are log π(y|x).
    """

    alpha: float = 0.1
    """α, how strongly the rejected response is pushed down; 0.05 to 1 in the paper"""
    needs_reference = False

    def __post_init__(self) -> None:
        require_positive(self, "alpha")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        logp_w, logp_l = pair(policy.sum, preferences)
        return pair_output(-logp_w + self.alpha * logp_l, policy, preferences, (logp_w, logp_l))


@dataclass(frozen=True)
class SFT(Loss):
    """−mean log π(y|x) over the response's tokens. [P], nats per token.

    On preference data it reads the chosen responses: the baseline Preferred-FT of Rafailov et al. 2023, sec. 6. TRL's
    "sft" averages over all tokens of the micro-batch, so long responses count more.
    """

    unit = "demonstration"
    needs_reference = False

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        loss = -policy.mean[preferences.chosen]
        return LossOutput(loss, {"logps/chosen": policy.sum[preferences.chosen].detach()})
