"""What a loss is, and what the equations share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from prefopt.errors import UserError
from prefopt.types import LogProbs, LossOutput, Preferences, Unit

if TYPE_CHECKING:  # torch takes seconds to import, and the command line's help reads the losses' options
    from torch import Tensor


class Loss(ABC):
    """What the training loop asks of a loss, and the answers of most.

    ``unit``: what one example is. "pair": ranking [P, 2]; "ranking": [P, K], padded with -1;
    "response": [P, 1] with ``desirable``; "demonstration": [P, 1]. ``needs_reference``: without it the
    second argument is None. ``needs_baseline``: `kto_baseline` is in ``preferences.baseline``.
    """

    unit: Unit = "pair"
    needs_reference: bool = True
    needs_baseline: bool = False

    @abstractmethod
    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        """[R] log-probabilities and [P, K] indices into them -> [P], unreduced."""


def log_sigmoid(z: Tensor) -> Tensor:
    """log σ(z), finite wherever z is."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(z)


def log_ratio(policy: LogProbs, reference: LogProbs | None) -> Tensor:
    """[R] s(y) = log π(y|x) − log π_ref(y|x): sums over tokens, in nats."""
    assert reference is not None, "this loss compares with a reference, and none was given"
    return policy.sum - reference.sum


def pair(values: Tensor, preferences: Preferences) -> tuple[Tensor, Tensor]:
    """[R] -> the chosen responses' values and the rejected ones', [P] each."""
    return values[preferences.chosen], values[preferences.rejected]


def pair_output(
    loss: Tensor, policy: LogProbs, preferences: Preferences, rewards: tuple[Tensor, Tensor], **more: Tensor
) -> LossOutput:
    """Puts the metrics of every pair loss, and those in ``more``, beside its [P] values."""
    chosen, rejected = rewards
    logps_chosen, logps_rejected = pair(policy.sum, preferences)
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps_chosen,
        "logps/rejected": logps_rejected,
        **more,
    }
    return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})


def require_positive(loss: object, *fields: str) -> None:
    for name in fields:
        if not 0 < (value := getattr(loss, name)) < math.inf:
            raise UserError(f"{name} must be a number above 0, not {value}")


def require_non_negative(loss: object, *fields: str) -> None:
    for name in fields:
        if not 0 <= (value := getattr(loss, name)) < math.inf:
            raise UserError(f"{name} must be a number of at least 0, not {value}")


def require_noise_rate(loss: object, *fields: str) -> None:
    for name in fields:
        if not 0 <= (value := getattr(loss, name)) < 0.5:
            raise UserError(f"{name} must be at least 0 and below 0.5 (the share of wrong labels), not {value}")
