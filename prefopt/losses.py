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
- ``weights``, where the loss is a function of the margin alone: −∂loss/∂margin, the pull of this pair.

A loss of your own is a dataclass, in any file of yours, and takes ten lines. Subclassing `Loss` is
not needed; one that differs from its defaults (pairs, with a reference) says so by attributes.

>>> import torch
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

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prefopt.errors import UserError
from prefopt.types import LogProbs, LossOutput, Preferences

if TYPE_CHECKING:  # torch takes seconds to import, and the command line's help reads the options below
    from torch import Tensor

Unit = Literal["pair", "ranking", "response", "demonstration"]


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


# --- what the equations share -------------------------------------------------------------------


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


def _require_positive(loss: object, *fields: str) -> None:
    for name in fields:
        if not 0 < (value := getattr(loss, name)) < math.inf:
            raise UserError(f"{name} must be a number above 0, not {value}")


def _require_non_negative(loss: object, *fields: str) -> None:
    for name in fields:
        if not 0 <= (value := getattr(loss, name)) < math.inf:
            raise UserError(f"{name} must be a number of at least 0, not {value}")


def _require_noise_rate(loss: object, *fields: str) -> None:
    for name in fields:
        if not 0 <= (value := getattr(loss, name)) < 0.5:
            raise UserError(f"{name} must be at least 0 and below 0.5 (the share of wrong labels), not {value}")


# --- pairs, with a reference --------------------------------------------------------------------


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
        _require_positive(self, "beta")
        _require_noise_rate(self, "label_smoothing")

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
        _require_positive(self, "beta")
        _require_noise_rate(self, "label_smoothing")

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
        _require_positive(self, "tau")

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
        _require_positive(self, "tau")

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
        _require_positive(self, "beta")

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
        _require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        s_w, s_l = pair(log_ratio(policy, reference) / policy.length, preferences)
        z = self.beta * (s_w - s_l)
        rewards = self.beta * s_w, self.beta * s_l
        return pair_output(-log_sigmoid(z), policy, preferences, rewards, weights=(-z).sigmoid())


# --- pairs, without a reference -----------------------------------------------------------------


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
        _require_positive(self, "odds_weight")

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
        _require_positive(self, "beta")
        _require_non_negative(self, "gamma")

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
        _require_positive(self, "beta")
        _require_non_negative(self, "alpha")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        logp_w, logp_l = pair(policy.sum, preferences)
        z = self.beta * (logp_w - logp_l)
        nll = -policy.mean[preferences.chosen]
        loss = -log_sigmoid(z) + self.alpha * nll
        return pair_output(loss, policy, preferences, (self.beta * logp_w, self.beta * logp_l), nll=nll)


# --- rankings, single answers, demonstrations ---------------------------------------------------


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
        _require_positive(self, "beta")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        present = preferences.ranking >= 0  # [P, K]
        ranking = preferences.ranking.clamp(min=0)
        reward = self.beta * log_ratio(policy, reference)[ranking]  # [P, K]

        below = present.new_ones(reward.shape[1], reward.shape[1]).triu(1)  # [k, j]: j is ranked below k
        pairs = below & present[:, :, None] & present[:, None, :]  # [P, k, j]
        # a padded place is compared with itself alone, which adds 0 and pulls on nothing
        rivals = pairs | below.new_ones(len(below)).diag()
        rival_rewards = reward[:, None, :].expand(rivals.shape).masked_fill(~rivals, -math.inf)
        loss = (rival_rewards.logsumexp(-1) - reward).sum(-1)

        def against_others(values: Tensor) -> tuple[Tensor, Tensor]:
            return values[:, 0], (values * present)[:, 1:].sum(-1) / present[:, 1:].sum(-1).clamp(min=1)

        ordered = (pairs & (reward[:, :, None] > reward[:, None, :])).sum((1, 2))
        metrics = {
            "rewards/accuracies": ordered / pairs.sum((1, 2)).clamp(min=1),
            "logps/rejected": against_others(policy.sum[ranking])[1],
        }
        return pair_output(loss, policy, preferences, against_others(reward), **metrics)


def kto_baseline(mismatched_policy: LogProbs, mismatched_reference: LogProbs) -> Tensor:
    """KTO's z0 = max(0, mean of s), a scalar without gradient, in nats.

    The responses are mismatched: y_{i+1} answers x_i. Hand over those of a whole optimizer step, over all
    ranks, for the result not to depend on how it is split. Ethayarajh et al. 2024, 2402.01306, sec. 4.1.

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
        _require_positive(self, "beta")
        _require_non_negative(self, "desirable_weight", "undesirable_weight")

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        good, z0 = preferences.desirable, preferences.baseline
        assert good is not None and z0 is not None, "kto reads preferences.desirable and preferences.baseline"
        s = log_ratio(policy, reference)[preferences.chosen]
        sign = good.to(s.dtype) * 2 - 1
        weight = self.desirable_weight * good + self.undesirable_weight * ~good
        loss = weight * (-sign * self.beta * (s - z0.detach())).sigmoid()  # 1 − σ(z) = σ(−z)
        rewards, logps = self.beta * s.detach(), policy.sum.detach()[preferences.chosen]
        metrics = {
            "rewards/chosen": rewards[good],
            "rewards/rejected": rewards[~good],
            "logps/chosen": logps[good],
            "logps/rejected": logps[~good],
            "baseline": z0.detach().expand_as(s),
        }
        return LossOutput(loss, metrics)


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


# --- what composes with any pair loss -----------------------------------------------------------


@dataclass(frozen=True)
class WithNLL(Loss):
    """loss + nll_weight · (−mean log π(y_w|x)): any pair loss, and imitation of the chosen response. [P].

    Pang et al. 2024 (iterative RPO), 2404.19733, sec. 2. Adds the metric ``nll``, nats per token. TRL offers the same as
    loss_type ["sigmoid", "sft"] with loss_weights, averaging over all tokens of the micro-batch.
    """

    loss: Loss
    nll_weight: float

    def __post_init__(self) -> None:
        _require_non_negative(self, "nll_weight")

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.loss.needs_reference

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        out = self.loss(policy, reference, preferences)
        nll = -policy.mean[preferences.chosen]
        return LossOutput(out.loss + self.nll_weight * nll, {**out.metrics, "nll": nll.detach()})


LOSSES: dict[str, type[Loss]] = {
    "dpo": DPO,
    "robust": Robust,
    "ipo": IPO,
    "ipo_mean": IPOMean,
    "hinge": Hinge,
    "sigmoid_norm": SigmoidNorm,
    "orpo": ORPO,
    "simpo": SimPO,
    "cpo": CPO,
    "plackett_luce": PlackettLuce,
    "kto": KTO,
    "sft": SFT,
}


# --- from a name and options to a loss ----------------------------------------------------------


class Option(NamedTuple):
    """A field of a loss, as the command line shows it. ``default`` is dataclasses.MISSING where there is none."""

    type: type
    default: Any
    help: str


def options_of(spec: str | Callable[..., Any]) -> dict[str, Option]:
    """The options of a loss: its fields, and ``nll_weight`` where one example is a pair.

    >>> options_of("dpo")["beta"]
    Option(type=<class 'float'>, default=0.1, help='strength of the tie to the reference: larger stays closer')
    >>> list(options_of("simpo"))
    ['beta', 'gamma', 'nll_weight']
    """
    return _options(_definition(spec))


def make_loss(spec: str | Callable[..., Any], options: Mapping[str, object] | None = None) -> Loss:
    """A loss from its name, or ``my_file.py:MyLoss``, or your own class, instance or function; and its options.

    Values may be text, as from a command line. UserError where the name or an option does not exist or a value
    is of the wrong type or out of range.

    >>> make_loss("dpo", {"beta": "0.3"})
    DPO(beta=0.3, label_smoothing=0.0)
    >>> make_loss("dpo", {"betta": 0.3})
    Traceback (most recent call last):
    prefopt.errors.UserError: dpo has no option betta; did you mean beta? It has beta, label_smoothing, nll_weight
    """
    definition, given = _definition(spec), dict(options or {})
    label = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
    known = _options(definition)
    for name in given:
        if name not in known:
            raise UserError(f"{label} has no option {name}{_nearest(name, known)} It has {', '.join(known) or 'none'}")
    for name, option in known.items():
        if option.default is dataclasses.MISSING and name not in given:
            raise UserError(f"{label} needs a value for {name}")

    values = {name: _convert(name, value, known[name].type) for name, value in given.items()}
    nll_weight = values.pop("nll_weight", 0.0) if _takes_nll_weight(definition) else 0.0
    loss: Any = definition(**values) if inspect.isclass(definition) else definition
    if not isinstance(loss, Loss):
        loss = Custom(loss, label)
    return WithNLL(loss, nll_weight) if nll_weight else loss


@dataclass(frozen=True)
class Custom(Loss):
    """A loss of the user's own: what it leaves unsaid is `Loss`'s default, and what it returns is checked."""

    loss: Callable[..., Any]
    name: str

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise UserError(f"{self.name} cannot be called: give it __call__(self, policy, reference, preferences)")
        if self.unit not in typing.get_args(Unit):
            raise UserError(f"{self.name}.unit must be one of {', '.join(typing.get_args(Unit))}, not {self.unit!r}")

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        return getattr(self.loss, "unit", Loss.unit)

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return getattr(self.loss, "needs_reference", Loss.needs_reference)

    @property
    def needs_baseline(self) -> bool:  # type: ignore[override]
        return getattr(self.loss, "needs_baseline", Loss.needs_baseline)

    def __call__(self, policy: LogProbs, reference: LogProbs | None, preferences: Preferences) -> LossOutput:
        out = self.loss(policy, reference, preferences)
        if not isinstance(out, LossOutput):
            raise UserError(f"{self.name} returned a {type(out).__name__}: return a LossOutput")
        if out.loss.shape != preferences.ranking.shape[:1]:
            examples, shape = len(preferences.ranking), list(out.loss.shape)
            raise UserError(f"{self.name} returned a loss of shape {shape}: return one for each of {examples} examples")
        return LossOutput(out.loss, {name: value.detach() for name, value in out.metrics.items()})


def _definition(spec: str | Callable[..., Any]) -> Any:
    """A loss's class; or, for one without options, the function or instance itself."""
    if not isinstance(spec, str):
        return spec
    if ".py:" in spec:
        file, name = spec.rsplit(":", 1)
        return _load(Path(file), name)
    if spec.endswith(".py"):
        raise UserError(f"{spec} names no loss: write {spec}:MyLoss")
    if spec not in LOSSES:
        raise UserError(
            f"there is no loss {spec}{_nearest(spec, LOSSES)} There are {', '.join(LOSSES)}, or my_file.py:MyLoss"
        )
    return LOSSES[spec]


def _load(file: Path, name: str) -> Any:
    """What ``name`` is in the user's Python file."""
    if not file.is_file():
        raise UserError(f"{file}: no such file (for --loss {file}:{name})")
    module_name = f"{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(module_name, file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module  # dataclasses and inspect look a class's module up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise UserError(f"{file}:{line or 1}: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
        raise UserError(f"{file} defines no {name}{_nearest(name, own)} It defines {', '.join(own) or 'nothing'}")
    return getattr(module, name)


def _takes_nll_weight(definition: Any) -> bool:
    """Not where the loss has a field of that name itself."""
    own = getattr(definition, "__dataclass_fields__", {})
    return getattr(definition, "unit", Loss.unit) == "pair" and "nll_weight" not in own


def _options(definition: Any) -> dict[str, Option]:
    from docstring_parser import parse_from_object  # reads the strings below the fields

    options = {}
    if inspect.isclass(definition) and dataclasses.is_dataclass(definition):
        types = typing.get_type_hints(definition, vars(sys.modules[definition.__module__]))
        try:
            helps = {param.arg_name: param.description or "" for param in parse_from_object(definition).params}
        except OSError:  # a class typed at the prompt has no source
            helps = {}
        for field in dataclasses.fields(definition):
            if field.init:
                options[field.name] = Option(types[field.name], field.default, helps.get(field.name, ""))
    if _takes_nll_weight(definition):
        options["nll_weight"] = Option(float, 0.0, "weight of imitating the chosen response beside the loss")
    return options


def _convert(name: str, value: object, to: type) -> Any:
    """``value``, perhaps text from a command line, as a float, int, bool or str; or a UserError that names the key."""
    text = str(value).strip()
    if to is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if to is str and isinstance(value, str):
        return value
    if to in (int, float) and not isinstance(value, bool):
        try:
            return to(text)
        except ValueError:
            pass
    if to not in (bool, str, int, float):
        raise UserError(f"{name} is a {getattr(to, '__name__', to)}, which can be set from Python only")
    kind = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}[to]
    raise UserError(f"{name} must be {kind}, not {value!r}")


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else "."
