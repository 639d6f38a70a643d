"""``prefopt sample``: answers to the prompts of a file, or the best of several.

One JSON object for each response, in the order of the prompts, which prefopt reads back as prompt and completion:

    {"prompt": "2+2=", "completion": " 4", "ended": true, "reward": 0.7, "source": "prompts.jsonl:1"}

To messages the completion is the content of the answer's message, without what the chat template writes around it.
``ended``: it came to its end, not to --max-new-tokens; read back, one that did not has no end token. The settings stand
beside the file, in ``out.jsonl.yaml``.
Prompts are answered a group at a time, each group with a seed of its own, and a group is written as a whole: a run
that was stopped and continued writes what one that was not stopped writes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from prefopt import config as settings
from prefopt.alone import alone_with
from prefopt.config import Sample
from prefopt.data.decode import decoded
from prefopt.data.encode import Encoder
from prefopt.data.prompts import prompts, tell_of_text
from prefopt.display import Display
from prefopt.errors import RunFailed, UserError
from prefopt.generate import Prompt, Realign, TransformersGenerator
from prefopt.model.load import check_reference, length_limit, load_model, load_tokenizer
from prefopt.rl.rewards import Reward, load_reward, rewarded
from prefopt.server import Sampled, ServerGenerator
from prefopt.signals import resumable
from prefopt.statistics import mean_in_words
from prefopt.terminal import counted
from prefopt.types import Example
from prefopt.whole import writable

GROUP = 4
"""batches in a group: enough to put prompts of one length together, few enough to lose little when stopped"""
MAY_CHANGE = {"resume", "device", "data", "format"}
"""of the data, the prompts that are answered already may not"""

Draw = Callable[[Sequence[Prompt], int, int], list[list[Sampled]]]
"""prompts, responses to each, and the number of the first prompt -> the responses"""


def run(config: Sample) -> None:
    """Writes ``config.out``. UserError, RunFailed as everywhere; what is written stays."""
    with Display(0, "sample") as display, alone_with(config.out):
        asked = prompts(config.data, config.format, display.note, repeated=display.note)
        if config.model:
            asked = _with_room(config, asked, display.note)
        draw = _server(config, display.note) if config.server else None
        begun = _begun(config, asked)
        draw = draw or _model(config, asked, display.note)
        reward = load_reward(config.reward, config.dtype, config.device) if config.reward else None
        size = max(1, GROUP * config.batch_size // (config.n * (config.best_of or 1)))
        done = size * (begun // (size * config.n)) if begun < len(asked) * config.n else len(asked)
        _cut(config.out, done * config.n)
        if begun:
            display.note(f"{config.out}: {done:,} of {len(asked):,} prompts are answered already")
        with resumable(), display.pass_("prompts", len(asked) - done) as advance, _appending(config.out) as file:
            for start in range(done, len(asked), size):
                group = asked[start : start + size]
                file.writelines(
                    json.dumps(row, ensure_ascii=False) + "\n"
                    for row in answer(group, draw, config.n, start, config.best_of, reward)
                )
                file.flush()
                advance(len(group))
        for text in told(config, len(asked)):
            display.note(text)


def told(config: Sample, prompts: int) -> Iterator[str]:
    """What a person wants to know first, of the whole file: some of it may have been written before."""
    ended, rewards = 0, []
    with open(config.out, encoding="utf-8") as file:
        for row in map(json.loads, file):
            ended += row["ended"]
            rewards += [row["reward"]] if "reward" in row else []
    count = prompts * config.n
    cut = f"{count - ended:,} cut at --max-new-tokens {config.max_new_tokens}"
    ends = f"{ended:,} came to their end, {cut}" if count > ended else "all came to their end"
    yield f"{counted(count, 'response')} to {counted(prompts, 'prompt')} in {config.out}: {ends}"
    if rewards:
        yield f"mean reward {mean_in_words(rewards, [i // config.n for i in range(count)])}"


@contextmanager
def _appending(file: Path) -> Iterator[IO[str]]:
    opened = open(file, "a", encoding="utf-8")  # noqa: SIM115
    try:
        yield opened
    except OSError as error:
        raise RunFailed(f"{file}: cannot be written ({error.strerror}); --resume continues") from error
    finally:
        with suppress(OSError):  # every write was flushed, and one that failed has been told of
            opened.close()


def _with_room(config: Sample, asked: list[Example], note: Callable[[str], None]) -> list[Example]:
    """The prompts that leave room for a response."""
    assert config.model is not None
    limit = length_limit(None, config.model, config.reference)
    if limit is None:
        return asked
    lengths = map(len, Encoder(load_tokenizer(config.model)).prompts([example.prompt for example in asked]))
    kept = [e for e, length in zip(asked, lengths, strict=True) if length + config.max_new_tokens <= limit]
    if not kept:
        raise UserError(f"no prompt leaves room for --max-new-tokens {config.max_new_tokens}: {limit} tokens are all")
    if len(kept) < len(asked):
        without = counted(len(asked) - len(kept), "prompt")
        note(f"no response to {without}: with it they may exceed the model's {limit} tokens")
    return kept


def answer(
    asked: Sequence[Example], draw: Draw, n: int, first: int, best_of: int | None, reward: Reward | None
) -> Iterator[dict[str, Any]]:
    """The rows of some prompts: ``n`` responses to each, every one the best of ``best_of`` by ``reward``."""
    each = n * (best_of or 1)
    drawn = draw([example.prompt for example in asked], each, first)
    pairs = [(e.prompt, s.text) for e, of_prompt in zip(asked, drawn, strict=True) for s in of_prompt]
    ended = [sampled.ended for of_prompt in drawn for sampled in of_prompt]
    rewards = iter(rewarded(reward, pairs, ended) if reward else [None] * len(pairs))
    for example, of_prompt in zip(asked, drawn, strict=True):
        scored = list(zip(of_prompt, itertools.islice(rewards, each), strict=True))
        for i in range(n):
            mine = scored[i * (best_of or 1) : (i + 1) * (best_of or 1)]
            sampled, value = max(mine, key=lambda pair: pair[1] or 0.0) if best_of else mine[0]
            row: dict[str, Any] = {
                "prompt": _as_json(example.prompt),
                "completion": sampled.text,
                "ended": sampled.ended,
            }
            yield row | ({} if value is None else {"reward": value}) | {"source": example.source}


def _as_json(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [turn._asdict() for turn in prompt]


def _model(config: Sample, asked: Sequence[Example], note: Callable[[str], object]) -> Draw:
    assert config.model is not None
    encoder = Encoder(load_tokenizer(config.model))
    tell_of_text(encoder, asked, note)
    if config.reference:
        check_reference(config.reference, config.model, encoder.tokenizer)
    lm = load_model(config.model, config.dtype, config.device)
    realign = None
    if config.reference and config.realign is not None:
        realign = Realign(load_model(config.reference, config.dtype, config.device), config.realign)
    generator = TransformersGenerator(
        lm,
        encoder,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        realign=realign,
    )

    survey = encoder.survey(dataclasses.replace(example, responses=()) for example in asked)

    def draw(some: Sequence[Prompt], n: int, first: int) -> list[list[Sampled]]:
        seeded = dataclasses.replace(generator, seed=config.seed * 1_000_003 + first)
        found = seeded.ids(encoder.prompts(some, survey), n)
        texts = decoded(encoder, some, found)
        ended = [map(seeded.is_whole, of_prompt) for of_prompt in found]
        return [list(map(Sampled, *of_prompt)) for of_prompt in zip(texts, ended, strict=True)]

    return draw


def _server(config: Sample, note: Callable[[str], object]) -> Draw:
    assert config.server and config.server_model
    told = set()

    def once(text: str) -> None:
        """Many prompts wait for the same."""
        if text not in told:
            told.add(text)
            note(text)

    generator = ServerGenerator(
        config.server,
        config.server_model,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_new_tokens=config.max_new_tokens,
        concurrency=config.batch_size,
        seed=config.seed * 1_000_003,
        note=once,
    )
    return generator.sampled


# --- going on where a run was stopped -------------------------------------------------------------


def _begun(config: Sample, asked: Sequence[Example]) -> int:
    """How many whole rows the output holds; they, and the settings beside it, must be those of this run."""
    beside = config.out.with_name(config.out.name + ".yaml")
    if not config.out.exists() or not config.out.stat().st_size:
        _open(config, beside)
        return 0
    if not config.resume:
        raise UserError(f"--out {config.out} exists: continue it with --resume, or choose another file")
    if not beside.exists():
        raise UserError(f"--out {config.out} was not written by prefopt sample: there is no {beside}")
    before, now = settings.recorded(beside), yaml.safe_load(settings.dump(config))
    settings.unchanged(before, now, now.keys() - MAY_CHANGE, f"{config.out} was begun")
    return _whole_rows(config, asked)


def _open(config: Sample, beside: Path) -> None:
    with writable(config.out):
        config.out.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(settings.dump(dataclasses.replace(config, resume=False)), encoding="utf-8")


def _whole_rows(config: Sample, asked: Sequence[Example]) -> int:
    count = 0
    with open(config.out, encoding="utf-8", errors="replace") as file:  # the last character may be half written
        for line in file:
            if not line.endswith("\n"):
                break
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{config.out}:{count + 1} was not written by prefopt sample") from None
            if count // config.n >= len(asked) or prompt != _as_json(asked[count // config.n].prompt):
                raise UserError(f"{config.out}:{count + 1} answers another prompt than --data has there now")
            count += 1
    return count


def _cut(out: Path, rows: int) -> None:
    """Drop what was written of a group that was not finished."""
    if out.exists():
        with open(out, "r+b") as file:
            for _ in range(rows):
                file.readline()
            file.truncate()
