"""The value model: what reward is to be expected from here on, a forecast at every token.

It is a model of its own and shares no weights with the policy: its errors then pull on its own weights only, it can
start from the reward model, which knows already what is good, and it has a learning rate of its own. The price
is a second model and its optimizer's state. InstructGPT, TRL and OpenRLHF do the same.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.model.language_model import LanguageModel, Way
from prefopt.model.load import without_dropout
from prefopt.rl.reward_model import scores
from prefopt.types import PackedBatch


class ValueModel:
    """A transformers body and a scalar head on its hidden states, read as ``policy`` is read."""

    def __init__(self, body: nn.Module, head: nn.Linear, policy: LanguageModel):
        body.score = head  # within the module, so that it is trained, saved and moved with it
        way: Way = "tree" if policy.way == "tree" else "rows"
        self.lm = LanguageModel(body.to(policy.device).requires_grad_(), way, policy.dtype)
        self.lm.read_as(way)

    @classmethod
    def of_policy(cls, policy: LanguageModel) -> ValueModel:
        """A copy of the policy's body, with a head that forecasts 0 everywhere."""
        body = copy.deepcopy(policy.bare.base_model)
        head = nn.Linear(body.config.get_text_config().hidden_size, 1, bias=False)
        nn.init.zeros_(head.weight)
        return cls(body, head, policy)

    @classmethod
    def of_reward_model(cls, classifier: Any, policy: LanguageModel) -> ValueModel | None:
        """A copy of a reward model (a sequence classifier with one output); None where it is no model of this kind.

        It has to have the policy's architecture, since it reads the policy's tokens in the policy's way.
        """
        theirs, ours = classifier.config, policy.bare.config
        head = getattr(classifier, "score", None)
        alike = theirs.model_type == ours.model_type and theirs.vocab_size == ours.vocab_size
        if not alike or not isinstance(head, nn.Linear) or head.out_features != 1:
            return None
        body = copy.deepcopy(classifier.base_model).float()
        without_dropout(body)
        return cls(body, copy.deepcopy(head).float(), policy)

    def __call__(self, batch: PackedBatch, room: int | None = None) -> Tensor:
        """[N] V(s_t) for every token of a batch, where s_t ends with the token before it; with its gradient."""
        return scores(self.lm, batch, room)

    @torch.no_grad()
    def score(self, batch: PackedBatch) -> Tensor:
        """``__call__`` without a gradient."""
        return self(batch)
