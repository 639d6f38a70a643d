"""What is minimised: a loss on the policy's log-probs and, where it asks for them, the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from prefopt.data import plan
from prefopt.losses import Loss, kto_baseline
from prefopt.model.language_model import LanguageModel
from prefopt.model.reference import response_keys
from prefopt.train.metrics import Metrics
from prefopt.transfer import to_device
from prefopt.types import Encoded, LogProbs, LossOutput, PackedBatch, Preferences, Unit

Sums = Mapping[str, tuple[float, int]]
"""What the reference store knows: response key -> (sum of log-probs, number of tokens)."""


class Ready(NamedTuple):
    """A micro-batch, with all that can be known of it before the policy is asked: what the host has to do for it."""

    packed: PackedBatch
    reference: LogProbs | None
    preferences: Preferences


@dataclass(frozen=True)
class Objective:
    """A loss with all that it needs beside the policy's log-probs of one micro-batch."""

    loss: Loss
    lm: LanguageModel
    reference: Sums | None = None
    tokens_per_microbatch: int = 4096
    reference_is: str | None = None
    """the reference's fingerprint"""
    longest: int | None = None
    """where to cut the responses of KTO's baseline, with their prompts: what the model takes may have an end"""

    @property
    def unit(self) -> Unit:
        return self.loss.unit

    @property
    def tokens_without_gradient(self) -> int:
        """How many to compute at once where only one layer's activations are kept at a time."""
        return 4 * self.tokens_per_microbatch

    def ready(self, batch: Sequence[Encoded]) -> Ready:
        """A micro-batch in the form in which the policy and the loss read it; may be made in another thread."""
        preferences = plan.preferences(batch, self.unit, self.lm.device)
        return Ready(self.lm.pack(batch), self.reference_logprobs(batch), preferences)

    def __call__(self, batch: Ready, baseline: torch.Tensor | None = None) -> LossOutput:
        """The loss [P] of the P examples of a micro-batch, with the policy's gradient."""
        policy = self.lm.logprobs(batch.packed, self.tokens_per_microbatch)
        return self.loss(policy, batch.reference, replace(batch.preferences, baseline=baseline))

    def at_reference(self, batch: Sequence[Encoded]) -> LossOutput:
        """What the loss gives where the policy is the reference: ln 2 for DPO."""
        reference = self.reference_logprobs(batch)
        assert reference is not None
        comparison = plan.preferences(batch, self.unit, self.lm.device)
        return self.loss(reference, reference, replace(comparison, baseline=reference.sum.new_zeros(())))

    def all_at_reference(self, units: Sequence[Encoded]) -> dict[str, float]:
        """Average metrics over ``units`` of a policy that is the reference: nothing needs to be computed."""
        output, metrics = self.at_reference(units), Metrics()
        metrics.add({"loss": output.loss, **output.metrics})
        return metrics.reduce()

    def reference_logprobs(self, batch: Sequence[Encoded]) -> LogProbs | None:
        """[R] sums and lengths, from the store's figures."""
        if self.reference is None:
            return None
        known = [self.reference[key] for example in batch for key in response_keys(example)]
        sums, lengths = zip(*known, strict=True)
        there = (to_device(torch.tensor(x, dtype=torch.float32), self.lm.device) for x in (sums, lengths))
        return LogProbs(*there)

    def baseline(self, batch: Sequence[Encoded]) -> torch.Tensor | None:
        """KTO's z0 over one whole optimizer step, without a gradient; None for every other loss."""
        if not self.loss.needs_baseline:
            return None
        policy, reference = [], []
        for group in self.lm.microbatches(plan.mismatched(batch, self.longest), self.tokens_without_gradient):
            policy.append(self.lm.score(self.lm.pack(group)))
            reference.append(self.reference_logprobs(group))
        return kto_baseline(_joined(policy), _joined(reference))


def _joined(parts: Sequence[LogProbs | None]) -> LogProbs:
    """The sums of several micro-batches as one; their tokens are not needed any more."""
    known = [part for part in parts if part is not None]
    return LogProbs(torch.cat([part.sum for part in known]), torch.cat([part.length for part in known]))
