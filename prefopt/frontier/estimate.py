"""Where a policy stands between reward and KL, estimated from responses that it draws itself.

On a space that cannot be enumerated, KL(π ‖ π_ref) = E_{y~π}[log π(y|x) − log π_ref(y|x)] is a mean over samples at
temperature 1. Both log-probabilities are computed, so the only error is that of the mean; its interval resamples
prompts (of a single prompt, the responses). A response that reaches the limit of tokens is a draw from the policy
that stops there, and KL and reward are those of that policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xxhash

from prefopt.data.decode import decoded, ended
from prefopt.data.encode import Encoder
from prefopt.errors import UserError
from prefopt.generate import Prompt, TransformersGenerator
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model
from prefopt.model.scoring import scored
from prefopt.rl.rewards import Reward, rewarded
from prefopt.statistics import Interval, mean
from prefopt.types import Encoded

MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Sampling:
    """How every policy of a comparison is sampled: from the same prompts, with the same seed."""

    responses: int = 64
    max_new_tokens: int = MAX_NEW_TOKENS
    seed: int = 0
    reward: Reward | None = None
    reward_is: str = ""
    """what tells this reward from others, see `prefopt.rl.rewards.identity`"""

    def key(self, models: Sequence[str], prompts: Sequence[np.ndarray]) -> str:
        """What an estimate depends on, beside what is in the models' folders."""
        content = xxhash.xxh3_128(b"".join(len(p).to_bytes(4, "little") + p.tobytes() for p in prompts))
        content.update(repr((models, self.responses, self.max_new_tokens, self.seed, self.reward_is)).encode())
        return content.hexdigest()


class Estimate(NamedTuple):
    """``kl`` in nats a response. ``tokens``: mean length; ``at_limit``: share of responses that reached the limit."""

    kl: Interval
    reward: Interval | None
    prompts: int
    responses: int
    tokens: float
    at_limit: float


def choose(units: Sequence[Encoded], sampling: Sampling, longest: int | None) -> list[Encoded]:
    """Whose prompts to answer: different ones, drawn by the seed, that leave room for a response.

    UserError where no prompt does; ``longest`` is what the model takes.
    """
    room = math.inf if longest is None else longest - sampling.max_new_tokens
    different = {unit.prompt_key: i for i, unit in enumerate(units) if len(unit.prompt) <= room}
    if not different:
        raise UserError(
            f"no prompt leaves room for --max-new-tokens {sampling.max_new_tokens}: the model takes {longest} tokens"
        )
    keys = sorted(different)  # not the order of the file, which says nothing about the prompts
    order = np.random.default_rng(sampling.seed).permutation(len(keys))
    return [units[different[keys[i]]] for i in order[: sampling.responses]]


def draw(lm: LanguageModel, encoder: Encoder, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Encoded]:
    """One example for each prompt, with its responses: one, or several where there are fewer prompts than asked for."""
    generator = TransformersGenerator(
        lm, encoder, temperature=1.0, max_new_tokens=sampling.max_new_tokens, seed=sampling.seed
    )
    each = math.ceil(sampling.responses / len(prompts))
    try:
        answers = generator.ids(prompts, each)
    except UserError:
        raise
    except Exception as error:  # whatever an architecture's own code may raise
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"no samples: the model cannot generate ({what}); --samples 0 does without") from error
    return [_example(prompt, responses) for prompt, responses in zip(prompts, answers, strict=True)]


def prompt_key(prompt: np.ndarray) -> str:
    """Of a prompt as it is read, cut or not."""
    return xxhash.xxh3_128_hexdigest(prompt.tobytes())


def _example(prompt: np.ndarray, responses: Sequence[np.ndarray]) -> Encoded:
    key = prompt_key(prompt)
    masks = tuple(np.ones(len(response), bool) for response in responses)
    return Encoded(prompt, tuple(responses), masks, (None,) * len(responses), "sample", key, key)


def estimate(
    drawn: Sequence[Encoded],
    policy: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    rewards: Sequence[float] | None,
    limit: int,
) -> Estimate:
    """From P examples with n responses each: their log-probs [P][n] under both models, and rewards [P n]."""
    of = np.repeat(np.arange(len(drawn)), [len(example.responses) for example in drawn])
    ratios = np.concatenate([np.subtract(ours, theirs) for ours, theirs in zip(policy, reference, strict=True)])
    lengths = np.array([len(response) for example in drawn for response in example.responses])
    return Estimate(
        kl=mean(ratios, of),
        reward=None if rewards is None else mean(rewards, of),
        prompts=len(drawn),
        responses=len(lengths),
        tokens=float(lengths.mean()),
        at_limit=float((lengths >= limit).mean()),
    )


def measure(
    policy: str,
    reference: str,
    encoder: Encoder,
    prompts: Sequence[np.ndarray],
    texts: Mapping[str, Prompt],
    sampling: Sampling,
    config: Any,
) -> Estimate:
    """Of two models by folder or name, one after the other in memory; ``config`` says dtype, device and micro-batch."""
    longest = max(map(len, prompts)) + sampling.max_new_tokens

    def logps(lm: LanguageModel) -> list[list[float]]:
        return [sums for sums, _ in scored(lm, drawn, config.tokens_per_microbatch)]

    lm = load_model(policy, config.dtype, config.device, longest)
    drawn = draw(lm, encoder, prompts, sampling)
    ours = logps(lm)
    if policy != reference:
        del lm
        lm = load_model(reference, config.dtype, config.device, longest)
    found = rewards(drawn, texts, encoder, sampling.reward) if sampling.reward else None
    return estimate(drawn, ours, logps(lm), found, sampling.max_new_tokens)


def rewards(drawn: Sequence[Encoded], texts: Mapping[str, Prompt], encoder: Encoder, reward: Reward) -> list[float]:
    """Of all responses in their order; ``texts``: what each prompt reads, by its key, since a reward reads text."""
    prompts = [texts[example.prompt_key] for example in drawn]
    answers = decoded(encoder, prompts, [example.responses for example in drawn])
    pairs = [(prompt, said) for prompt, of_prompt in zip(prompts, answers, strict=True) for said in of_prompt]
    whole = [ended(encoder.controls, response) for example in drawn for response in example.responses]
    return rewarded(reward, pairs, whole)
