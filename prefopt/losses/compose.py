"""What composes with any pair loss."""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.losses.base import Loss, require_non_negative
from prefopt.types import LogProbs, LossOutput, Preferences


@dataclass(frozen=True)
class WithNLL(Loss):
    """loss + nll_weight · (−mean log π(y_w|x)): any pair loss, and imitation of the chosen response. [P].

    Pang et al. 2024 (iterative RPO), 2404.19733, sec. 2. Adds the metric ``nll``, nats per token. TRL offers the same
    as loss_type ["sigmoid", "sft"] with loss_weights, averaging over all tokens of the micro-batch.
    """

    loss: Loss
    nll_weight: float

    def __post_init__(self) -> None:
        require_non_negative(self, "nll_weight")

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.loss.needs_reference

    @property
    def needs_baseline(self) -> bool:  # type: ignore[override]
        return self.loss.needs_baseline

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        out = self.loss(policy, reference, preferences)
        nll = -policy.mean[preferences.chosen]
        return LossOutput(out.loss + self.nll_weight * nll, {**out.metrics, "nll": nll.detach()})
