"""A reward is anything that takes (prompt, response) pairs and gives a number for each.

runs/reward/model                 a reward model: a sequence classifier with one output
textattack/bert-imdb:LABEL_1      any text classifier: the probability, 0 to 1, of one of its labels
my_reward.py:score                a Python function
implicit:runs/dpo/model@runs/sft/model:0.1
                                  the implicit reward β (log π(y|x) − log π_ref(y|x)) of a DPO policy, β = 0.1
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from transformers import AutoModelForSequenceClassification

from prefopt.data.encode import Draft, Encoder, fit
from prefopt.errors import UserError
from prefopt.generate import Prompt
from prefopt.losses.custom import load
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import (
    check_reference,
    classifies,
    load_config,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    positions,
    whole,
)
from prefopt.model.scoring import scored
from prefopt.types import Encoded, Example, Message, Response

Pair = tuple[Prompt, str]
BATCH = 16
"""texts that a classifier reads at once"""
IMPLICIT = "implicit:"


class Reward(Protocol):
    """What sampling, PPO and evaluation ask of a reward. A plain function of one's own is one."""

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        """A finite number for each (prompt, response), in their order; higher is better."""
        ...


def load_reward(spec: str | Callable[..., Any], dtype: str = "auto", device: str = "auto") -> Reward:
    """What ``spec`` names, or a function of one's own; the forms are in this module's docstring.

    UserError where there is no such thing.
    """
    if callable(spec):
        return Function(spec, _name(spec))
    if spec.startswith(IMPLICIT):
        return _implicit(spec, dtype, device)
    name, colon, last = spec.rpartition(":")
    if colon and name.endswith(".py"):
        return Function(load(Path(name), last, "--reward"), spec)
    if not colon or Path(spec).expanduser().is_dir():
        return _reward_model(spec, dtype, device)
    return _classifier(name, last, dtype, device)


def rewarded(reward: Reward, pairs: Sequence[Pair], ended: Iterable[bool]) -> list[float]:
    """What a reward gives to responses of which some were cut off, and did not come to their end.

    Only log-probs are of the tokens that were drawn. All others judge a text; a reward model reads it as in its own
    training, with an end token.
    """
    return reward(pairs, ended) if isinstance(reward, Implicit) else reward(pairs)


def identity(spec: str | Callable[..., Any]) -> str:
    """What tells a reward from others: its name and, of a file, what stands in it. Models are known by name alone.

    >>> identity("runs/reward/model")
    'runs/reward/model'
    """
    if callable(spec):
        return f"{getattr(spec, '__module__', '')}.{_name(spec)}"
    file = Path(spec.rpartition(":")[0]).expanduser()
    return f"{spec} {xxhash.xxh3_128_hexdigest(file.read_bytes())}" if file.suffix == ".py" else spec


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


@dataclass(frozen=True)
class Function:
    """A function of the user's own, its answers checked: of (prompt, response) pairs, or of prompts and responses.

    With two arguments it gets every prompt as text. UserError where it fails, or does not give one finite number for
    each response.

    >>> Function(lambda pairs: [len(response) for _, response in pairs], "length")([("2+2=", "4")])
    [1.0]
    >>> Function(lambda prompts, responses: map(len, responses), "length")([("2+2=", "4")])
    [1.0]
    """

    function: Callable[..., Any]
    name: str

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise UserError(f"--reward {self.name} cannot be called: make it a function of (prompt, response) pairs")

    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        try:
            rewards = [float(reward) for reward in self.function(*self._arguments(pairs))]
        except Exception as error:  # whatever the user's own code may raise; PREFOPT_DEBUG=1 shows its traceback
            theirs = traceback.extract_tb(error.__traceback__)[1:]
            place = f" at {theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""
            raise UserError(f"--reward {self.name} failed{place}: {type(error).__name__}: {error}") from error
        if len(rewards) != len(pairs):
            raise UserError(f"--reward {self.name} gave {len(rewards)} numbers for {len(pairs)} responses")
        for reward, (_, response) in zip(rewards, pairs, strict=True):
            if not math.isfinite(reward):
                raise UserError(f"--reward {self.name} gave {reward} for the response {response[:80]!r}")
        return rewards

    def _arguments(self, pairs: Sequence[Pair]) -> list[Any]:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):  # some that are written in C do not tell
            return [list(pairs)]
        if sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) < 2:
            return [list(pairs)]
        return [[text(prompt) for prompt, _ in pairs], [response for _, response in pairs]]


def text(prompt: Prompt) -> str:
    """A prompt as one text: messages without their roles, a blank line between them.

    >>> text((Message("user", "Hi"), Message("assistant", "Hello")))
    'Hi\\n\\nHello'
    """
    return prompt if isinstance(prompt, str) else "\n\n".join(message.content for message in prompt)


def _read_on(prompt: Prompt, response: str) -> str:
    """Both as one text: a response goes on where a text stopped, and is another message after messages."""
    return prompt + response if isinstance(prompt, str) else text((*prompt, Message("assistant", response)))


def encode(encoder: Encoder, pairs: Sequence[Pair], ended: Iterable[bool] | None = None) -> list[Encoded]:
    """One example for each pair, as in training; a prompt that is too long loses its beginning.

    ``ended``: which responses came to their end, and have an end token; by default all of them.
    UserError where the template refuses one, or a response alone is longer than ``encoder.max_length``.
    """
    whole = [True] * len(pairs) if ended is None else ended
    examples = [_example(*pair, end, i) for i, (pair, end) in enumerate(zip(pairs, whole, strict=True))]
    made = []
    for draft in _drafts(encoder, examples):
        fitted = fit(draft, encoder.max_length, "cut-prompt", encoder.head(draft)).draft
        if fitted is None:
            raise UserError(f"{examples[draft.index].source} alone is longer than {encoder.max_length} tokens")
        made.append(
            Encoded(
                fitted.prompt, (*fitted.responses,), (*fitted.scored,), (None,), examples[draft.index].source, "", ""
            )
        )
    return made


def _drafts(encoder: Encoder, examples: list[Example]) -> list[Draft]:
    """Each as if it were alone: whether its text was rendered by a template is told from nothing but itself."""
    rendered = [encoder.survey([example]).templated for example in examples]
    drafts: dict[int, Draft] = {}
    for kind in set(rendered):
        at = [i for i, one in enumerate(rendered) if one == kind]
        drafts |= zip(at, encoder.drafts([examples[i] for i in at]), strict=True)
    return [replace(drafts[i], index=i) for i in range(len(examples))]


def _example(prompt: Prompt, response: str, ended: bool, i: int) -> Example:
    content = response if isinstance(prompt, str) else (Message("assistant", response),)
    return Example(prompt, (Response(content, ended=ended),), f"response {i + 1}")


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A sequence classifier with one output, which reads prompt and response as they are read in training."""

    module: Any
    encoder: Encoder

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        texts = [np.concatenate([e.prompt, e.responses[0]]) for e in encode(self.encoder, pairs)]
        pad = self.module.config.get_text_config().pad_token_id
        found = np.zeros(len(texts))
        for rows in _alike(texts, BATCH if pad is not None else 1):  # without padding transformers reads one at a time
            width = max(len(texts[i]) for i in rows)
            ids = torch.full((len(rows), width), pad or 0)
            read = torch.zeros_like(ids)
            for row, i in enumerate(rows):
                ids[row, : len(texts[i])] = torch.from_numpy(texts[i].astype(np.int64))
                read[row, : len(texts[i])] = 1
            device = self.module.device
            scores = self.module(input_ids=ids.to(device), attention_mask=read.to(device)).logits
            found[rows] = scores[:, 0].double().cpu().numpy()
        return found.tolist()


@dataclass(frozen=True, eq=False)
class Classifier:
    """The probability, 0 to 1, that a text classifier gives to one label; of a long text it reads the end.

    It reads the prompt's text with the response behind it, as Rafailov et al. 2023 do for sentiment (section 6).
    """

    module: Any
    tokenizer: Any
    label: int

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        texts = [_read_on(prompt, response) for prompt, response in pairs]
        longest = positions(self.module.config) or math.inf
        longest = min(self.tokenizer.model_max_length, longest)
        found = np.zeros(len(texts))
        for rows in _alike(texts, BATCH if self.tokenizer.pad_token is not None else 1):
            inputs = self.tokenizer(
                [texts[i] for i in rows],
                return_tensors="pt",
                padding=len(rows) > 1,
                truncation=longest < math.inf,
                max_length=longest if longest < math.inf else None,
            )
            logits = self.module(**inputs.to(self.module.device)).logits
            found[rows] = logits.double().softmax(-1)[:, self.label].cpu().numpy()
        return found.tolist()


@dataclass(frozen=True, eq=False)
class Implicit:
    """β (log π(y|x) − log π_ref(y|x)), in nats times β: what a DPO policy was trained to prefer (equation 5)."""

    policy: LanguageModel
    reference: LanguageModel
    encoder: Encoder
    beta: float

    def __call__(self, pairs: Sequence[Pair], ended: Iterable[bool] | None = None) -> list[float]:
        """``ended`` as for `encode`; 0 for what was cut off before it had any text, such as one control token."""
        examples = encode(self.encoder, pairs, ended)
        said = [example for example in examples if len(example.responses[0])]
        if not said:
            return [0.0] * len(examples)
        both = zip(scored(self.policy, said), scored(self.reference, said), strict=True)
        found = (self.beta * (ours[0] - theirs[0]) for (ours, _), (theirs, _) in both)
        return [next(found) if len(example.responses[0]) else 0.0 for example in examples]


def _alike(texts: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Indices in groups of ``size``, alike in length, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _load_classifier(name: str, dtype: str, device: str) -> Any:
    where = pick_device(device)
    what = "sequence classifier"
    load = AutoModelForSequenceClassification.from_pretrained
    return whole(load, name, what, dtype=pick_dtype(dtype, where)).to(where).eval()


def _labels(name: str) -> dict[int, str]:
    """Of a classifier, from its configuration alone; UserError where the folder holds something else."""
    config = load_config(name)
    if not classifies(name):
        raise UserError(f"--reward {name} is no sequence classifier: train one with prefopt reward")
    return config.id2label


def _reward_model(name: str, dtype: str, device: str) -> RewardModel:
    labels = _labels(name)
    if len(labels) > 1:
        choices = ", ".join(f"{name}:{label}" for label in labels.values())
        raise UserError(f"--reward {name} tells {len(labels)} labels apart: name one of them, {choices}")
    module = _load_classifier(name, dtype, device)
    return RewardModel(module, Encoder(load_tokenizer(name), positions(module.config), "cut-prompt"))


def _classifier(name: str, label: str, dtype: str, device: str) -> Classifier:
    labels = _labels(name)
    if len(labels) < 2:
        raise UserError(f"--reward {name}:{label}: {name} has one output and no labels: write --reward {name}")
    at = next((i for i, known in labels.items() if label in (known, str(i))), None)
    if at is None:
        raise UserError(f"--reward {name}:{label}: its labels are {', '.join(labels.values())}")
    tokenizer = load_tokenizer(name)
    tokenizer.truncation_side = "left"
    return Classifier(_load_classifier(name, dtype, device), tokenizer, at)


def _implicit(spec: str, dtype: str, device: str) -> Implicit:
    body, colon, number = spec.removeprefix(IMPLICIT).rpartition(":")
    try:
        beta = float(number) if colon else 0.1
    except ValueError:
        raise UserError(f"--reward {spec}: beta must be a number above 0, not {number!r}") from None
    policy, at, reference = (body if colon else number).rpartition("@")
    if not at or not policy or not reference:
        raise UserError(f"--reward {spec}: write {IMPLICIT}POLICY@REFERENCE or {IMPLICIT}POLICY@REFERENCE:BETA")
    if not 0 < beta < math.inf:
        raise UserError(f"--reward {spec}: beta must be a number above 0, not {number}")
    tokenizer = load_tokenizer(policy)
    check_reference(reference, policy, tokenizer)
    lm = load_model(policy, dtype, device)
    encoder = Encoder(tokenizer, positions(lm.bare.config), "cut-prompt")
    return Implicit(lm, load_model(reference, dtype, device), encoder, beta)
