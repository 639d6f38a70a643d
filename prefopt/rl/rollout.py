"""Rollouts: what the policy answers to some prompts, and what policy, reference, value model and reward think of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prefopt.data.decode import decoded
from prefopt.generate import Prompt, TransformersGenerator
from prefopt.model.language_model import LanguageModel
from prefopt.rl.ppo import entropy
from prefopt.rl.rewards import Reward, rewarded
from prefopt.rl.value import ValueModel
from prefopt.statistics import mean
from prefopt.types import Encoded, PackedBatch


@dataclass(frozen=True, eq=False)
class Rollouts:
    """P prompts with N responses each: R in all, whose tokens stand one after another, in this order.

    ``examples`` P: a prompt and its responses. By response [R]: ``scores``, what the reward gave; ``ended``, whether it
    ended itself; ``length``. By token [N]: ``logps``, ``reference``, ``values``, as when it was drawn. No gradient.
    """

    examples: list[Encoded]
    scores: Tensor
    ended: Tensor
    length: Tensor
    logps: Tensor
    reference: Tensor
    values: Tensor

    @property
    def kl(self) -> float:
        """KL(π ‖ π_ref) in nats a response, by the mean of log π − log π_ref over what π itself drew: without bias."""
        return float((self.logps - self.reference).double().sum()) / len(self.length)

    def described(self) -> dict[str, float]:
        """The figures of what was drawn; ``entropy`` is nats a token."""
        return {
            "reward": float(self.scores.double().mean()),
            "kl": self.kl,
            "entropy": float(entropy(self.logps.double()).mean()),
            "response_length": float(self.length.double().mean()),
            "ended": float(self.ended.double().mean()),
        }

    def interval(self) -> dict[str, float]:
        """Of the mean reward, 95 %, over prompts."""
        prompts = np.repeat(np.arange(len(self.examples)), [len(example.responses) for example in self.examples])
        _, low, high = mean(self.scores.double().cpu().numpy(), prompts)
        return {"reward_low": low, "reward_high": high}


def token_indices(examples: Sequence[Encoded]) -> dict[int, np.ndarray]:
    """Where each example's tokens stand among those of all, by the example's ``id``."""
    ends = np.cumsum([sum(map(len, example.responses)) for example in examples])
    return {id(e): np.arange(end - sum(map(len, e.responses)), end) for e, end in zip(examples, ends, strict=True)}


def groups(lm: LanguageModel, examples: Sequence[Encoded], budget: int) -> Iterable[tuple[list[Encoded], Tensor]]:
    """Micro-batches of about ``budget`` of ``lm``'s tokens, each with the places of its tokens among all."""
    places = token_indices(examples)
    for group in lm.microbatches(examples, budget):
        yield group, torch.from_numpy(np.concatenate([places[id(example)] for example in group]))


@dataclass(frozen=True)
class Cast:
    """Who takes part. ``texts``: what each prompt reads, by its key, since a reward reads text."""

    policy: LanguageModel
    reference: LanguageModel
    value: ValueModel
    reward: Reward
    texts: Mapping[str, Prompt]
    tokens_per_microbatch: int

    def roll_out(self, asked: Sequence[Encoded], samples: int, generator: TransformersGenerator) -> Rollouts:
        """``samples`` responses to each prompt, drawn by ``generator`` and scored by everyone."""
        drawn = generator.ids([example.prompt for example in asked], samples)
        examples = [_answered(example, ids) for example, ids in zip(asked, drawn, strict=True)]
        prompts = [self.texts[example.prompt_key] for example in examples]
        texts = decoded(generator.encoder, prompts, drawn)
        responses = [(prompt, said) for prompt, of_prompt in zip(prompts, texts, strict=True) for said in of_prompt]
        device = self.policy.device
        ids = [ids for example in examples for ids in example.responses]
        length = torch.tensor([len(r) for r in ids], device=device)
        logps, reference, values = (torch.empty(int(length.sum()), device=device) for _ in range(3))
        for group, at in groups(self.policy, examples, self.tokens_per_microbatch):
            batches = packed(group, self.policy, self.reference, self.value.lm)
            logps[at] = _tokens(self.policy, batches)
            reference[at] = _tokens(self.reference, batches)
            values[at] = self.value.score(batches[self.value.lm.way])
        ended = [generator.is_whole(r) for r in ids]
        scores = torch.tensor(rewarded(self.reward, responses, ended), dtype=torch.float32, device=device)
        return Rollouts(examples, scores, torch.tensor(ended, device=device), length, logps, reference, values)


def packed(group: Sequence[Encoded], *models: LanguageModel) -> dict[str, PackedBatch]:
    """One token tree for all models that read trees, and rows for the others; its tokens stand in the same order."""
    return {way: lm.pack(group) for way, lm in {lm.way: lm for lm in models}.items()}


def _tokens(lm: LanguageModel, batches: Mapping[str, PackedBatch]) -> Tensor:
    token = lm.score(batches[lm.way]).token
    assert token is not None
    return token


def _answered(asked: Encoded, responses: Sequence[np.ndarray]) -> Encoded:
    every = tuple(np.ones(len(ids), bool) for ids in responses)
    return replace(asked, responses=tuple(responses), scored=every, scores=(None,) * len(responses))
