"""A world small enough to enumerate: short film reviews from a word grammar, with a known reward.

    Horror film:  Frankly, a hardly superb story with wooden acting.

Four genres are the prompts; each has the same 36,864 reviews, with probabilities and rewards of its own.
The corpus comes from a latent mood that correlates a review's words; the reward lets words interact
("hardly superb" is bad, "never dull" is good), always two of them and the genre. Everything that a paper has to
estimate is a sum here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from prefopt.frontier.exact import bradley_terry, condition
from prefopt.frontier.space import ResponseTree, next_token_logps, read
from prefopt.types import Encoded, Example, Response

GENRES = ("Horror", "Comedy", "Drama", "Documentary")

# Openings and adjectives carry a sentiment, an adverb scales the adjective's or turns it around.
OPENINGS = {"Happily,": 1.0, "Surprisingly,": 0.4, "Overall,": 0.0, "Frankly,": -0.2, "Again,": -0.5, "Sadly,": -1.0}
ADVERBS = {
    "truly": 1.4,
    "simply": 1.2,
    "rather": 0.9,
    "fairly": 0.7,
    "supposedly": 0.4,
    "barely": 0.2,
    "never": -0.7,
    "hardly": -0.9,
}
# The last three mean something else in each genre: horror may frighten and comedy be silly.
ADJECTIVES = {
    "superb": (1.0, 1.0, 1.0, 1.0),
    "charming": (0.3, 0.9, 0.7, 0.5),
    "clever": (0.7, 0.6, 0.6, 0.8),
    "dull": (-0.9, -0.9, -0.7, -0.6),
    "dreadful": (-1.0, -1.1, -1.1, -1.0),
    "frightening": (1.1, -0.8, -0.2, -0.4),
    "silly": (-0.6, 0.8, -0.8, -0.9),
    "slow": (-0.2, -0.6, 0.3, -0.3),
}
NOUNS = {
    "story": (0.0, 0.0, 0.2, 0.0),
    "film": (0.0, 0.0, 0.0, 0.0),
    "mystery": (0.2, -0.1, 0.0, 0.0),
    "romp": (-0.1, 0.2, -0.3, -0.3),
    "portrait": (-0.2, -0.1, 0.2, 0.2),
    "sequel": (-0.2, -0.1, -0.2, -0.3),
}
DETAILS = {"sharp": 0.7, "warm": 0.4, "wooden": -0.7, "noisy": -0.4}
# How much a detail says of a film: nobody minds noise in a horror film's music.
ASPECTS = {
    "dialogue.": (0.5, 1.2, 1.0, 0.4),
    "acting.": (0.9, 0.8, 1.2, 0.2),
    "music.": (-0.6, 0.5, 0.6, 0.5),
    "pacing.": (1.0, 0.9, 0.3, 0.9),
}
SLOTS = tuple(tuple(slot) for slot in (OPENINGS, ADVERBS, ADJECTIVES, NOUNS, DETAILS, ASPECTS))
TEMPLATE = "{} a {} {} {} with {} {}"

MOODS = (1.3, 0.0, -1.3)  # pleased, indifferent, annoyed
CRITICS = np.array([[0.35, 0.3, 0.35], [0.4, 0.35, 0.25], [0.3, 0.4, 0.3], [0.35, 0.45, 0.2]])  # [genre, mood]


class World:
    """X prompts, Y reviews of each, and all that is true of them.

    >>> world = World()
    >>> world.prompts[0], world.texts[0]
    ('Horror film:', 'Happily, a truly superb story with sharp dialogue.')
    >>> world.reward.shape, float(world.reward[0, 0])
    ((4, 36864), 2.58)
    """

    def __init__(self) -> None:
        self.prompts = tuple(f"{genre} film:" for genre in GENRES)
        self.texts = tuple(TEMPLATE.format(*words) for words in product(*SLOTS))
        self.words = np.indices([len(slot) for slot in SLOTS]).reshape(len(SLOTS), -1).T
        """[Y, 6] which word of each slot"""
        opening, adverb, adjective, noun, detail, aspect = self.words.T
        tone = _column(OPENINGS)[opening]
        claim = _column(ADVERBS)[adverb] * _column(ADJECTIVES)[:, adjective]
        finding = _column(DETAILS)[detail] * _column(ASPECTS)[:, aspect]
        # An opening helps where it agrees with the detail: "Sadly, ... with sharp dialogue" puts people off.
        agreement = tone * _column(DETAILS)[detail]
        self.reward = np.round(1.25 * claim + finding + _column(NOUNS)[:, noun] + 0.4 * agreement + 0.2 * tone, 2)
        """[X, Y] true reward, to two decimals"""
        self.corpus_logps = self._corpus(tone + claim + finding, 4 * _column(NOUNS)[:, noun])
        """[X, Y] log-probability of each review in the corpus, in nats"""

    def _corpus(self, sentiment: np.ndarray, fitting: np.ndarray) -> np.ndarray:
        """Each genre has favourite words, fitting nouns, and critics whose mood m tilts them by exp(m · sentiment)."""
        rng = np.random.default_rng(2305_18290)
        taste = fitting + sum(
            0.5 * rng.standard_normal((len(GENRES), len(s)))[:, w] for s, w in zip(SLOTS, self.words.T, strict=True)
        )
        moods = [
            condition(taste + mood * sentiment).logps + np.log(share)[:, None]
            for mood, share in zip(MOODS, CRITICS.T, strict=True)
        ]
        return np.logaddexp.reduce(moods)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word, punctuation attached; a prompt begins with <s>, a review ends with </s>."""
        words = [word for text in (*self.prompts, TEMPLATE.replace("{}", "")) for word in text.split()]
        words += [word for slot in SLOTS for word in slot]
        vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", *words]))}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
        )

    @cached_property
    def responses(self) -> np.ndarray:
        """[Y, 8] token ids of the reviews, without the end token."""
        return np.array(self.tokenizer(list(self.texts), add_special_tokens=False)["input_ids"])

    @cached_property
    def index(self) -> dict[str, int]:
        """Which review a text is."""
        return {text: y for y, text in enumerate(self.texts)}

    @cached_property
    def trees(self) -> tuple[ResponseTree, ...]:
        """For each prompt, all its reviews as one token tree."""
        return tuple(
            ResponseTree.build(self.tokenizer(prompt)["input_ids"], self.responses, self.tokenizer.eos_token_id)
            for prompt in self.prompts
        )

    def logps(self, model: nn.Module) -> np.ndarray:
        """[X, Y] log π(y|x) of every review that there is, in nats: nothing is sampled."""
        return np.stack([tree.enumerate_logps(next_token_logps(model, tree)) for tree in self.trees])

    def rewards(self, classifier: Any) -> np.ndarray:
        """[X, Y] what a reward model, a sequence classifier with one output, gives every review: read to its end."""
        end = self.tokenizer.eos_token_id
        trees = (ResponseTree.build(prompt.tolist(), self._with_end, end) for prompt in self._prompt_ids)
        hidden = (read(classifier.base_model, tree, "last_hidden_state")[tree.leaf] for tree in trees)
        with torch.no_grad():
            return np.stack([classifier.score(of_prompt)[:, 0].double().numpy() for of_prompt in hidden])

    def draw(self, logps: np.ndarray, prompt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[n] one review for each of the prompts [n], from a policy [X, Y] conditioned on the grammar."""
        cumulative = np.cumsum(np.exp(condition(logps).logps), axis=-1)
        drawn = np.empty(len(prompt), np.int64)
        for x, below in enumerate(cumulative):
            mine = prompt == x
            drawn[mine] = np.searchsorted(below, rng.random(mine.sum()) * below[-1], side="right")
        return drawn

    def corpus(self, n: int, seed: int = 0) -> list[Example]:
        """n reviews as critics write them: what SFT imitates.

        >>> [example] = World().corpus(1)
        >>> example.prompt, example.responses[0].content
        ('Documentary film:', 'Surprisingly, a truly frightening story with noisy acting.')
        """
        rng = np.random.default_rng(seed)
        prompt = rng.integers(len(self.prompts), size=n)
        reviews = zip(prompt, self.draw(self.corpus_logps, prompt, rng), strict=True)
        return [
            Example(self.prompts[x], (Response(self.texts[y]),), f"corpus:{i}") for i, (x, y) in enumerate(reviews, 1)
        ]

    def pairs(self, logps: np.ndarray, n: int, seed: int = 0, flip: float = 0.0) -> Pairs:
        """n pairs of different reviews from a policy [X, Y], labelled by Bradley–Terry with the true reward.

        ``flip`` is the rate at which a label is then turned around. ValueError if the policy writes, for some
        prompt, practically one review only.
        """
        if np.exp(2 * condition(logps).logps).sum(-1).max() > 0.999:
            raise ValueError("this policy hardly ever writes two different reviews: there is nothing to compare")
        rng = np.random.default_rng(seed)
        prompt = rng.integers(len(self.prompts), size=n)
        first, second = self.draw(logps, prompt, rng), self.draw(logps, prompt, rng)
        while len(equal := np.flatnonzero(first == second)):
            first[equal], second[equal] = self.draw(logps, prompt[equal], rng), self.draw(logps, prompt[equal], rng)
        wins = rng.random(n) < bradley_terry(self.reward[prompt, first] - self.reward[prompt, second])
        flipped = rng.random(n) < flip
        chosen_first = wins ^ flipped
        return Pairs(prompt, np.where(chosen_first, first, second), np.where(chosen_first, second, first), flipped)

    def examples(self, pairs: Pairs) -> Iterator[Example]:
        """The pairs as a person would write them down."""
        for i, (x, chosen, rejected) in enumerate(zip(pairs.prompt, pairs.chosen, pairs.rejected, strict=True)):
            both = (Response(self.texts[chosen], 1.0), Response(self.texts[rejected], 0.0))
            yield Example(self.prompts[x], both, f"pairs:{i}")

    def encoded(self, prompt: int, reviews: tuple[int, ...], source: str = "") -> Encoded:
        """Reviews of one prompt, best first, as a tokenizer would make them of the text.

        >>> pair = World().encoded(0, (0, 1))
        >>> pair.tokens, pair.scores
        (21, (2.0, 1.0))
        """
        responses = tuple(self._with_end[y] for y in reviews)
        scores = tuple(float(rank) for rank in range(len(reviews), 0, -1))
        scored = (np.ones(len(responses[0]), bool),) * len(reviews)
        prompt_key = self.prompts[prompt]
        return Encoded(
            self._prompt_ids[prompt], responses, scored, scores, source, f"{prompt_key}{reviews}", prompt_key
        )

    @cached_property
    def _with_end(self) -> np.ndarray:
        end = np.full((len(self.responses), 1), self.tokenizer.eos_token_id)
        return np.hstack([self.responses, end]).astype(np.int32)

    @cached_property
    def _prompt_ids(self) -> list[np.ndarray]:
        return [np.array(self.tokenizer(prompt)["input_ids"], np.int32) for prompt in self.prompts]


@cache
def the_world() -> World:
    """There is one, and what it knows of itself is worked out once."""
    return World()


@dataclass(frozen=True, slots=True)
class Pairs:
    """n comparisons by index, each array [n]; ``flipped`` says whose label was turned around."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    flipped: np.ndarray


def _column(table: dict) -> np.ndarray:
    return np.array(list(table.values())).T
