"""The losses: one frozen dataclass each; its fields are its options, calling it is the equation.

A loss reads log-probabilities and returns one value per example, unreduced; the training loop
averages over the examples of an optimizer step, however they are split. Notation: y_w the chosen and
y_l the rejected response, |y| a response's number of tokens, σ the sigmoid, s(y) = log π(y|x) − log π_ref(y|x)
(sums over tokens), h = s(y_w) − s(y_l). Sources are named by arXiv number.

Every loss with pairs reports, per pair and without gradient (nats, except the accuracies):

- ``rewards/chosen``, ``rewards/rejected``: what the loss itself compares, scaled by its β. With a
  reference that is the implicit reward β s(y); where a loss divides by |y|, so does its reward;
  without a reference it is β times the log-probability, as each docstring says.
- ``rewards/margins``: their difference; ``rewards/accuracies``: 1 where it is strictly above 0.
- ``logps/chosen``, ``logps/rejected``: log π(y|x), sums.
- ``weights``, of `dpo`, `robust`, `hinge`, `sigmoid_norm` and `simpo`: −∂loss/∂margin, the pull of this pair.

A loss of your own is a dataclass, in any file of yours, and takes ten lines. Subclassing `Loss` is
not needed; one that differs from its defaults (pairs, with a reference) says so by attributes.

>>> import torch
>>> from dataclasses import dataclass
>>> from prefopt.types import LogProbs, Preferences
>>> @dataclass(frozen=True)
... class SquaredHinge:
...     beta: float = 0.1
...
...     def __call__(self, policy, reference, preferences):
...         s_w, s_l = pair(log_ratio(policy, reference), preferences)
...         loss = (1 - self.beta * (s_w - s_l)).clamp(min=0) ** 2
...         return pair_output(loss, policy, preferences, rewards=(self.beta * s_w, self.beta * s_l))
>>> policy = LogProbs(sum=torch.tensor([-10.0, -19.0]), length=torch.tensor([4.0, 6.0]))
>>> reference = LogProbs(sum=torch.tensor([-12.0, -14.0]), length=policy.length)
>>> preferences = Preferences(torch.tensor([[0, 1]]))
>>> SquaredHinge()(policy, reference, preferences).loss  # h = 2 − (−5) = 7
tensor([0.0900])

From Python, pass the instance; on the command line, ``--loss my_file.py:SquaredHinge --beta 0.2``.
"""

from prefopt.losses.base import Loss, log_ratio, log_sigmoid, pair, pair_output
from prefopt.losses.compose import WithNLL
from prefopt.losses.custom import Custom
from prefopt.losses.named import LOSSES, Option, make_loss, options_of, spec_of
from prefopt.losses.reference_free import CPO, ORPO, SFT, SimPO, Unlikelihood
from prefopt.losses.variants import APODown, APOZero, BCOPair, DiscoPOP, EXOPair, NCAPair, SPPOHard
from prefopt.losses.with_reference import DPO, IPO, KTO, Hinge, IPOMean, PlackettLuce, Robust, SigmoidNorm, kto_baseline

__all__ = [
    "CPO",
    "DPO",
    "IPO",
    "KTO",
    "LOSSES",
    "ORPO",
    "SFT",
    "APODown",
    "APOZero",
    "BCOPair",
    "Custom",
    "DiscoPOP",
    "EXOPair",
    "Hinge",
    "IPOMean",
    "Loss",
    "NCAPair",
    "Option",
    "PlackettLuce",
    "Robust",
    "SPPOHard",
    "SigmoidNorm",
    "SimPO",
    "Unlikelihood",
    "WithNLL",
    "kto_baseline",
    "log_ratio",
    "log_sigmoid",
    "make_loss",
    "options_of",
    "pair",
    "pair_output",
    "spec_of",
]
