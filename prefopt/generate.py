"""Responses from a model: a generator is anything that takes prompts and gives n texts for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from prefopt.data.decode import decoded
from prefopt.data.encode import Encoder
from prefopt.errors import UserError
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import positions
from prefopt.model.quiet import quiet
from prefopt.types import Content, Example, Message, Response

Prompt = Content


@dataclass(frozen=True, eq=False)
class Realign:
    """Decoding from π_ref^(1−λ) π^λ, normalized token by token: 0 is the reference, 1 the policy, above 1 goes beyond.

    Of a policy that was tuned with β it is, token by token, the one with β/λ. Liu et al. 2024, 2402.02992.
    """

    reference: LanguageModel
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"realign must be at least 0, not {self.weight}")


@dataclass(frozen=True)
class TransformersGenerator:
    """Generates with transformers' own ``generate``, in batches padded at the left.

    A prompt is encoded as in training. ``temperature=0`` is greedy; above it ``top_p`` is the share of the mass
    and ``top_k`` the number of tokens (0: all) that is drawn from, and ``realign`` mixes a reference in. Equal
    ``seed``, prompts, ``n`` and ``batch_size``, equal responses; the caller's random state is left as it was.
    UserError where a prompt leaves no room for ``max_new_tokens``, or more than one greedy response is asked for.
    """

    lm: LanguageModel
    encoder: Encoder
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 32
    seed: int = 0
    top_k: int = 0
    realign: Realign | None = None

    def __post_init__(self) -> None:
        for name, right in (
            ("temperature", self.temperature >= 0),
            ("top_p", 0 < self.top_p <= 1),
            ("top_k", self.top_k >= 0),
            ("max_new_tokens", self.max_new_tokens > 0),
            ("batch_size", self.batch_size > 0),
        ):
            if not right:
                raise UserError(f"{name} cannot be {getattr(self, name)}")

    def __call__(self, prompts: Sequence[Prompt], n: int = 1) -> list[list[str]]:
        return decoded(self.encoder, prompts, self.ids(self.encoder.prompts(prompts), n))

    def ids(self, prompts: Sequence[np.ndarray], n: int = 1) -> list[list[np.ndarray]]:
        """Ids of prompts (``Encoder.prompts``) -> ``n`` int32 arrays each, the end token included where it came."""
        if not prompts:
            return []
        self._check(prompts, n)
        found: list[list[np.ndarray]] = [[] for _ in prompts]
        asked = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike in length, so little padding
        rows = [i for i in asked for _ in range(n)]
        devices = [self.lm.device] if self.lm.device.type == "cuda" else []
        with torch.random.fork_rng(devices), quiet(), torch.no_grad():
            torch.manual_seed(self.seed)
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                for i, ids in zip(batch, self._generate([prompts[i] for i in batch]), strict=True):
                    found[i].append(ids)
        return found

    def _generate(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), self._settings.pad_token_id, np.int64)
        read = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            read[row, width - len(prompt) :] = 1
        mask = torch.from_numpy(read).to(self.lm.device)
        mixed = LogitsProcessorList([_Mixed(self.realign, mask)] if self.realign else [])
        others = [self.realign.reference] if self.realign else []
        with ExitStack() as stack:
            for lm in (self.lm, *others):
                stack.enter_context(_undisturbed(lm))
            stack.enter_context(self.lm.computing())
            written = self.lm.bare.generate(
                input_ids=torch.from_numpy(ids).to(self.lm.device),
                attention_mask=mask,
                generation_config=self._settings,
                logits_processor=mixed,
            )
        return [self._ended(row[width:]) for row in written.cpu().numpy().astype(np.int32)]

    def is_whole(self, ids: np.ndarray) -> bool:
        """Whether a response came to its end token, not to the limit."""
        return len(ids) > 0 and int(ids[-1]) in self._ends

    def _ended(self, ids: np.ndarray) -> np.ndarray:
        """Without the padding behind the first end token."""
        ends = np.flatnonzero(np.isin(ids, self._ends))
        return ids[: ends[0] + 1] if len(ends) else ids

    @cached_property
    def _settings(self) -> GenerationConfig:
        drawn: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            eos_token_id=self._ends or None,
            pad_token_id=self._ends[0] if self._ends else 0,
            **(drawn if self.temperature > 0 else {}),
        )

    @cached_property
    def _ends(self) -> list[int]:
        """The tokens that end a response: the tokenizer's, the model's, and what the chat template ends a turn with."""
        tokenizer, known = self.encoder.tokenizer, self.lm.bare.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
        if tokenizer.chat_template is not None:
            turn = Example((Message("user", "a"),), (Response((Message("assistant", "b"),)),))
            parts = self.encoder.parts([turn], self.encoder.survey([turn]))  # none if the template refuses it
            last = {int(draft.responses[0][-1]) for part in parts for draft in part.drafts}
            ends |= last & set(tokenizer.all_special_ids)
        return sorted(ends - {None})

    def _check(self, prompts: Sequence[np.ndarray], n: int) -> None:
        if n > 1 and self.temperature == 0:
            raise UserError(f"{n} greedy responses would all be the same: set a temperature above 0")
        limit = positions(self.lm.bare.config)
        longest = max(map(len, prompts))
        if limit and longest + self.max_new_tokens > limit:
            raise UserError(
                f"a prompt of {longest} tokens leaves no room for {self.max_new_tokens} more: the model takes {limit}; "
                "lower max_new_tokens"
            )


class _Mixed(LogitsProcessor):
    """Puts (1−λ) log π_ref + λ log π in place of log π; the reference reads along with a cache of its own."""

    def __init__(self, realign: Realign, mask: torch.Tensor):
        self.realign, self.mask = realign, mask
        self.cache: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[rows, L] ids so far and [rows, V] logits of the policy -> [rows, V], up to a constant a row."""
        weight, reference = self.realign.weight, self.realign.reference
        fresh = input_ids if self.cache is None else input_ids[:, -1:]
        if self.cache is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(fresh), 1)], 1)
        inputs = {"input_ids": fresh, "attention_mask": self.mask}
        if reference.takes_positions:
            inputs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -fresh.shape[1] :]
        with reference.computing():
            out = reference.bare(**inputs, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        theirs = out.logits[:, -1].float().log_softmax(-1)
        return (1 - weight) * theirs + weight * scores.float().log_softmax(-1)


@contextmanager
def _undisturbed(lm: LanguageModel) -> Iterator[None]:
    """The model without what would change its responses or its speed, put back afterwards; with its own attention.

    transformers fills what a request leaves open (a repetition penalty, say) from the model's own
    generation_config.json.
    """
    training, own, way, why = lm.module.training, lm.bare.generation_config, lm.way, lm.why
    lm.read_as("logits")
    lm.module.eval()
    lm.bare.generation_config = GenerationConfig()
    try:
        yield
    finally:
        lm.read_as(way, why)
        lm.bare.generation_config = own
        lm.module.train(training)
