"""A reward model: a causal LM's body with a scalar head, read at the last token of each response.

It is what transformers calls a sequence classifier with one label, so what is trained here is read by
``AutoModelForSequenceClassification``. In training the responses of a batch are one token tree, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from prefopt.data import plan
from prefopt.errors import UserError
from prefopt.losses import PlackettLuce
from prefopt.losses.base import require_non_negative
from prefopt.model.language_model import LanguageModel, Way, rows
from prefopt.model.load import classifies, pick_device, pick_dtype, whole, without_dropout
from prefopt.model.probe import random_examples
from prefopt.model.quiet import quiet
from prefopt.progress import Advance, untold
from prefopt.transfer import to_device
from prefopt.types import Encoded, LogProbs, LossOutput, PackedBatch, Unit

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""largest difference of a hidden state between the ways of reading, as a share of the largest hidden state"""
PAD = "<|pad|>"


@dataclass(frozen=True)
class RewardLoss:
    """−Σ_k [z_k − log Σ_{j≥k} exp z_j] + c (Σ_k r_k)² with z = r − m s. [P], nats.

    r are the scores of an example's responses, best first, and s what a person gave them; of a pair it is
    −log σ(r_w − r_l − m (s_w − s_l)), Bradley–Terry with the margin of Touvron et al. 2023, 2307.09288, eq. 2; of K it
    is Plackett–Luce. The second term keeps the scores around 0, which no comparison does: Eisenstein et al. 2023,
    2312.09244. Metrics as `PlackettLuce` has them, of r.

    >>> scores, given = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 0.0])
    >>> RewardLoss()(scores, given, torch.tensor([[0, 1]])).loss  # −log σ(2)
    tensor([0.1269])
    >>> RewardLoss(margin=2.0)(scores, given, torch.tensor([[0, 1]])).loss  # −log σ(2 − 2)
    tensor([0.6931])
    >>> RewardLoss(center=0.1)(scores + 1, given, torch.tensor([[0, 1]])).loss  # 0.1 · (2 + 0)² more
    tensor([0.5269])
    """

    rankings: bool = False
    """an example is all responses to a prompt, not two of them"""
    margin: float = 0.0
    """m"""
    center: float = 0.0
    """c"""

    needs_reference = needs_baseline = False

    def __post_init__(self) -> None:
        require_non_negative(self, "margin", "center")

    @property
    def unit(self) -> Unit:
        return "ranking" if self.rankings else "pair"

    def __call__(self, scores: Tensor, given: Tensor, ranking: Tensor) -> LossOutput:
        """[R] scores, [R] what a person gave and [P, K] indices, best first and -1 where a ranking is shorter."""

        def plackett_luce(z: Tensor) -> LossOutput:
            nothing = torch.zeros_like(z)
            return PlackettLuce(beta=1.0)(
                LogProbs(z, nothing + 1), LogProbs(nothing, nothing + 1), plan.Preferences(ranking)
            )

        sums = (scores[ranking.clamp(min=0)] * (ranking >= 0)).sum(-1)
        loss = plackett_luce(scores - self.margin * given).loss + self.center * sums**2
        metrics = plackett_luce(scores.detach()).metrics
        return LossOutput(loss, {name: v for name, v in metrics.items() if not name.startswith("logps/")})


class Compared(NamedTuple):
    """R responses as the model reads them, [R] what a person gave them, and [P, K] which are compared."""

    packed: PackedBatch
    given: Tensor
    ranking: Tensor


@dataclass(frozen=True)
class RewardObjective:
    """The loss on the scores of one micro-batch: to the loop what `Objective` is."""

    loss: RewardLoss
    lm: LanguageModel
    tokens_per_microbatch: int
    reference: None = None
    reference_is: None = None

    @property
    def tokens_without_gradient(self) -> int:
        """How many to compute at once where only one layer's activations are kept at a time."""
        return 4 * self.tokens_per_microbatch

    def ready(self, batch: Sequence[Encoded]) -> Compared:
        """A micro-batch in the form in which the model and the loss read it."""
        given = to_device(torch.tensor([s or 0.0 for e in batch for s in e.scores]), self.lm.device)
        ranking = plan.preferences(batch, self.loss.unit, self.lm.device).ranking
        return Compared(self.lm.pack(ended(batch)), given, ranking)

    def __call__(self, batch: Compared, baseline: None = None) -> LossOutput:
        """The loss [P] of the P examples of a micro-batch, with its gradient."""
        return self.loss(scores(self.lm, batch.packed, self.tokens_per_microbatch), batch.given, batch.ranking)

    def baseline(self, batch: Sequence[Encoded]) -> None:
        """No loss here needs one."""


def ended(examples: Sequence[Encoded]) -> list[Encoded]:
    """``examples`` such that what is scored of each response is the token that would follow it.

    So all of the response is read, and the hidden state that would predict the next token is the one at its end.
    """
    return [
        replace(
            example,
            responses=tuple(np.append(r, np.int32(0)) for r in example.responses),
            scored=tuple(np.arange(len(r) + 1) == len(r) for r in example.responses),
        )
        for example in examples
    ]


def scores(lm: LanguageModel, batch: PackedBatch, room: int | None = None) -> Tensor:
    """[R] the reward of each response of a batch that was made of `ended` examples, with its gradient.

    ``room``: tokens whose activations may be kept, as for `LanguageModel.logprobs`.
    """
    with lm.computing():
        return lm.bare.score(rows(lm.hidden(batch, room), batch.source))[:, 0].float()


@torch.no_grad()
def scored(lm: LanguageModel, examples: Sequence[Encoded], budget: int, advance: Advance = untold) -> list[list[float]]:
    """Per example the rewards of its responses; ``budget`` tokens are computed at once."""
    found: list[list[float]] = []
    for start in range(0, len(examples), 256):
        some, known = examples[start : start + 256], dict[int, list[float]]()
        for group in lm.microbatches(some, budget):
            values = scores(lm, lm.pack(ended(group))).split([len(example.responses) for example in group])
            known |= {id(example): v.tolist() for example, v in zip(group, values, strict=True)}
            advance(len(group))
        found += [known[id(example)] for example in some]
    return found


def load_reward_model(name: str, tokenizer: Any, dtype: str, device: str, longest: int) -> LanguageModel:
    """A causal LM of that name with a head of zeros, so that it prefers nothing yet; or a reward model as it is.

    transformers reads a padded row at the last token that is not padding, so the padding must be a token that ends no
    response: where the tokenizer has none of that kind, it gets one. UserError where the architecture has no
    sequence classifier with a linear head.
    """
    begun = classifies(name)
    load = AutoModelForSequenceClassification.from_pretrained
    module: Any = whole(load, name, "reward model", "-" if begun else "score.", num_labels=1)
    if not isinstance(getattr(module, "score", None), nn.Linear):
        raise UserError(f"{name}: {type(module).__name__} has no linear head, so it cannot become a reward model")
    if not begun:
        nn.init.zeros_(module.score.weight)
    without_dropout(module)
    _pad(module, tokenizer)
    where = pick_device(device)
    lm = LanguageModel(module.to(where), dtype=pick_dtype(dtype, where))
    _probe(lm, longest)
    return lm


def _pad(module: Any, tokenizer: Any) -> None:
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
        if len(tokenizer) > module.get_input_embeddings().num_embeddings:
            module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    module.config.get_text_config().pad_token_id = tokenizer.pad_token_id


@torch.no_grad()
def _probe(lm: LanguageModel, longest: int) -> None:
    """Set ``lm`` to the fastest way that gives the hidden states of one sequence at a time."""
    examples = random_examples(lm, longest)
    rows = [np.concatenate([e.prompt, r]) for e in examples for r in e.responses]
    with quiet(), lm.computing():
        ids = [torch.from_numpy(row.astype(np.int64))[None].to(lm.device) for row in rows]
        truth = torch.stack([lm.bare.base_model(input_ids=row).last_hidden_state[0, -1].float() for row in ids])
        why = ""
        ways: tuple[Way, ...] = ("tree", "rows")
        for way in ways:
            try:
                lm.read_as(way, why)
                batch = lm.pack(ended(examples))
                off = float((lm.hidden(batch)[batch.source].float() - truth).abs().max() / truth.abs().max())
            except Exception as error:  # whatever a model's own code raises on an input that it does not know
                problem = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            else:
                if off <= TOLERANCE[lm.dtype]:
                    return
                problem = f"hidden states differ by {off:.1%} from one sequence at a time"
            why = why or f"{type(lm.bare).__name__} is read one sequence per row: as a token tree, {problem}"
    raise UserError(f"{type(lm.bare).__name__} cannot be read in batches: {why}")
