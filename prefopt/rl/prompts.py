"""What is asked in PPO: the prompts of any data, without their responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import xxhash

from prefopt.config import PPO
from prefopt.data import plan
from prefopt.data.encode import Draft, Encoder, fit
from prefopt.data.prompts import prompts, tell_of_text
from prefopt.display import Display
from prefopt.errors import UserError
from prefopt.generate import Prompt
from prefopt.terminal import counted
from prefopt.train.prepare import TRAINED_ON_TOO, Prepared, trained_on_too
from prefopt.types import Encoded, Example


@dataclass(frozen=True)
class Asked(Prepared):
    """``train`` and ``held_out`` have no responses yet. ``texts``: what each prompt reads, by its key."""

    texts: Mapping[str, Prompt] = field(default_factory=dict)
    answer: int = 0
    """tokens that an answer may have"""

    @cached_property
    def longest(self) -> int:
        return max(len(example.prompt) for example in chain(self.train, self.held_out)) + self.answer


def prepare(config: PPO, tokenizer: Any, unit: str, max_length: int | None, display: Display) -> Asked:
    """The different prompts of ``config.data``, those that leave room for an answer. UserError where there are none."""
    encoder = Encoder(tokenizer, max_length, config.overlong)
    texts: dict[str, Prompt] = {}
    counts: Counter[str] = Counter()

    def left_out(text: str) -> None:
        if config.strict:
            raise UserError(f"{text}; --strict refuses such data")
        display.note(text)

    def asked(specs: Sequence[str]) -> list[Encoded]:
        examples = prompts(specs, config.format, left_out)
        tell_of_text(encoder, examples, display.note)
        found = encode(encoder, examples, config.max_new_tokens)
        texts.update((encoded.prompt_key, example.prompt) for encoded, example in found)
        if len(found) < len(examples):
            without = counted(len(examples) - len(found), "prompt")
            left_out(
                f"no room for --max-new-tokens {config.max_new_tokens} within {max_length} tokens after {without}, "
                "dropped: --overlong cut-prompt would cut their beginning"
            )
        if not found:
            raise UserError(
                f"{', '.join(specs)}: no prompt leaves room for --max-new-tokens {config.max_new_tokens} within "
                f"{max_length} tokens: lower it, or use --overlong cut-prompt"
            )
        return [encoded for encoded, _ in found]

    train: Sequence[Encoded] = asked(config.data)
    held_out: Sequence[Encoded] = asked(config.eval_data) if config.eval_data else []
    if overlap := trained_on_too(train, held_out):
        display.note(f"{overlap:,} of {counted(len(held_out), 'held-out prompt')} are trained on too")
        counts[TRAINED_ON_TOO] = overlap
    if config.eval_fraction:
        train, held_out = plan.split(train, config.eval_fraction, config.seed)
        if not train:
            raise UserError(f"--eval-fraction {config.eval_fraction:g} holds out every prompt: lower it")
        if not held_out:
            display.note(f"--eval-fraction {config.eval_fraction:g} of so few prompts is none: nothing is held out")
    counts["prompts"] = len(train)
    return Asked(train, held_out, counts, texts, config.max_new_tokens)


def encode(encoder: Encoder, examples: Sequence[Example], answer: int) -> list[tuple[Encoded, Example]]:
    """Each prompt as the policy reads it, if it leaves room for an answer of so many tokens, or can be cut to."""
    room = None if encoder.max_length is None else encoder.max_length - answer
    found = []
    for i, ids in enumerate(encoder.prompts([example.prompt for example in examples])):
        draft = Draft(i, ids, [ids[:0]], [])
        fitted = fit(draft, room, encoder.overlong, encoder.head(draft)).draft
        if fitted is not None:
            key = xxhash.xxh3_128_hexdigest(ids.tobytes())  # of all of it, as in other runs
            found.append((Encoded(fitted.prompt, (), (), (), examples[i].source, key, key), examples[i]))
    return found
