"""``prefopt score``: what a policy thinks of each response, and its implicit reward against a reference; or a reward.

One JSON object for each response, in the order of the data; of a reward, without what log-probs are:

    {"source": "prefs.jsonl:12", "response": 0, "score": 1.0, "length": 31, "logp": -42.1,
     "reference_logp": -44.6, "reward": 0.25}

Log-probs are kept in the reference store as they are computed: the same command goes on where it was stopped, and
computes nothing that training, or another score, asked of the same model before.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from prefopt.config import Score
from prefopt.data.dataset import Usable, encoded, opened, volume
from prefopt.data.encode import Encoder
from prefopt.data.findings import account
from prefopt.data.shelf import longest
from prefopt.display import Display
from prefopt.errors import RunFailed, UserError
from prefopt.model.figures import Figures
from prefopt.model.load import check_reference, length_limit, load_model, load_tokenizer
from prefopt.model.reference import response_keys
from prefopt.model.scoring import figures_of, scope_of
from prefopt.rl.rewards import Reward, load_reward, rewarded
from prefopt.signals import resumable
from prefopt.statistics import mean_in_words, proportion
from prefopt.terminal import counted
from prefopt.types import Encoded, Example, Response, comparisons
from prefopt.whole import whole, writable

Row = dict[str, Any]
AT_ONCE = 256
"""examples whose responses a reward is asked about together"""


def run(config: Score) -> None:
    """Writes JSON lines to ``config.out`` or stdout, and a few words to stderr.

    Stopped after a signal, with what a policy computed kept.
    """
    with Display(0, "score") as display:
        tally = Tally()
        if config.policy is not None:
            _by_policy(config, config.policy, display, tally)
        else:
            _by_reward(config, display, tally)
        for text in tally.words():
            display.note(text)


def _by_policy(config: Score, name: str, display: Display, tally: Tally) -> None:
    tokenizer = load_tokenizer(name)
    if config.reference is not None:
        check_reference(config.reference, name, tokenizer)
    length = length_limit(config.max_length, name, config.reference)
    encoder = Encoder(tokenizer, length, config.overlong, config.train_on)
    data = encoded(config.data, config.format, encoder, display)
    for text in [*dict.fromkeys(data.notes), *account(data.findings)]:
        display.note(text)
    if not data.examples:
        raise UserError(_nothing(config))
    _check_writable(config.out)
    with resumable("the same command"):
        policy = _figures(config, name, data.examples, display)
        reference = _figures(config, config.reference, data.examples, display) if config.reference else None
        rows = _rows(data.examples, policy, reference, config.beta, tally)
        _write(config.out, rows, "what was computed is kept: make room, and run the same command again")


def _by_reward(config: Score, display: Display, tally: Tally) -> None:
    """Nothing is encoded or kept: a reward reads a prompt and a response."""
    sources = opened(config.data, config.format, display)
    _check_writable(config.out)
    assert config.reward is not None
    reward = load_reward(config.reward, config.dtype, config.device)
    with display.pass_("reward", volume(sources), "B") as advance:
        usable = Usable(sources, advance)
        _write(config.out, _rewarded(usable, reward, tally, _nothing(config)), "make room, and begin again")
    for text in account([*usable.unread, *usable.odd]):
        display.note(text)


def _rewarded(usable: Usable, reward: Reward, tally: Tally, nothing: str) -> Iterator[Row]:
    examples = iter(usable)
    while some := list(itertools.islice(examples, AT_ONCE)):
        answers = [[_said(example, response) for response in example.responses] for example in some]
        pairs = [(e.prompt, answer) for e, those in zip(some, answers, strict=True) for answer in those]
        ended = [response.ended for example in some for response in example.responses]
        rewards = iter(rewarded(reward, pairs, ended))
        for example in some:
            scores = [response.score for response in example.responses]
            rows: list[Row] = [
                {"source": example.source, "response": r, "score": score, "reward": next(rewards)}
                for r, score in enumerate(scores)
            ]
            tally.add(scores, str(example.prompt), rows)
            yield from rows
    if not tally.examples:
        raise UserError(nothing)


def _said(example: Example, response: Response) -> str:
    """The text that a reward reads; UserError where there are several turns."""
    content = response.content
    if isinstance(content, str):
        return content
    if len(content) > 1:
        raise UserError(f"{example.source}: a response of {len(content)} messages, and a --reward reads one")
    return content[0].content


def _nothing(config: Score) -> str:
    return f"{', '.join(config.data)}: nothing is left to score"


def _figures(config: Score, name: str, examples: Sequence[Encoded], display: Display) -> Figures:
    """What one model thinks of all responses; the model is let go again."""
    lm = load_model(name, config.dtype, config.device, longest(examples))
    if lm.why:
        display.note(lm.why)
    return figures_of(lm, scope_of(lm), lambda: iter(examples), config.tokens_per_microbatch, display, name)


def _rows(
    examples: Iterable[Encoded], policy: Figures, reference: Figures | None, beta: float, tally: Tally
) -> Iterator[Row]:
    for example in examples:
        rows: list[Row] = []
        for r, (key, score) in enumerate(zip(response_keys(example), example.scores, strict=True)):
            logp, length = policy[key]
            rows.append({"source": example.source, "response": r, "score": score, "length": length, "logp": logp})
            if reference is not None:
                theirs, _ = reference[key]
                rows[-1] |= {"reference_logp": theirs, "reward": beta * (logp - theirs)}
        tally.add(example.scores, example.prompt_key, rows)
        yield from rows


class Tally:
    """How often the better response has the higher reward (or log-prob), counted as the rows go by."""

    def __init__(self) -> None:
        self.examples, self.responses = 0, 0
        self.key = "logp"
        self.margins: list[float] = []
        self.prompts: list[str] = []
        self.alone: list[float] = []
        """rewards, as long as no pair was met"""
        self.asked: list[str] = []
        """their prompts"""

    def add(self, scores: Sequence[float | None], prompt: str, rows: list[Row]) -> None:
        self.examples, self.responses = self.examples + 1, self.responses + len(rows)
        self.key = "reward" if "reward" in rows[0] else "logp"
        for better, worse in comparisons(scores):
            self.margins.append(rows[better][self.key] - rows[worse][self.key])
            self.prompts.append(prompt)
        if self.key == "reward" and not self.margins:
            self.alone += [row["reward"] for row in rows]
            self.asked += [prompt] * len(rows)

    def words(self) -> Iterator[str]:
        """What a person wants to know first."""
        yield f"{counted(self.responses, 'response')} of {counted(self.examples, 'example')} scored"
        if any(self.margins):
            share = proportion([float(margin > 0) for margin in self.margins], self.prompts)
            pairs = f"{counted(len(self.margins), 'pair')} (95 % interval)"
            yield f"the better response has the higher {self.key} in {share} of {pairs}"
        elif self.margins:
            yield f"both responses of every pair have the same {self.key}"
        elif self.alone:
            yield f"mean reward {mean_in_words(self.alone, self.asked)}"


def _check_writable(out: Path | None) -> None:
    """UserError before anything is computed that could not be written then, or would be written over something."""
    if out is None:
        return
    if out.exists() and out.stat().st_size:
        raise UserError(f"--out {out} exists: choose another file, or remove it")
    with writable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--out {out}: cannot be written; choose another file")


def _write(out: Path | None, rows: Iterable[Row], then: str) -> None:
    try:
        with _written(out) if out else nullcontext(sys.stdout) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunFailed(f"{out or 'stdout'}: cannot be written ({error.strerror}); {then}") from error


@contextmanager
def _written(out: Path) -> Iterator[IO[str]]:
    """A file that is there whole or not at all; a link, a pipe or a device as it is."""
    if out.is_symlink() or (out.exists() and not out.is_file()):
        with open(out, "w", encoding="utf-8") as file:
            yield file
    else:
        with whole(out) as file:
            yield file
