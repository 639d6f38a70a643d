"""A sentiment reward: p(positive) of a text, by logistic regression on its words and pairs of words.

Trained by the recipe, which puts a copy of this file beside the weights; the copy is a reward for any command:

    prefopt sample --reward runs/sentiment/reward/ngrams.py:positive ...
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?|[!?]")


def ngrams(text: str) -> set[str]:
    """
    >>> sorted(ngrams("Not good, not bad"))
    ['bad', 'good', 'good not', 'not', 'not bad', 'not good']
    """
    words = WORD.findall(text.lower())
    return {*words, *map(" ".join, pairwise(words))}


def positive(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """p(positive) of each prompt with its response behind it, by the weights in this file's folder."""
    return probabilities([prompt + response for prompt, response in pairs], *weights(Path(__file__).parent))


def probabilities(texts: Sequence[str], known: dict[str, float], bias: float) -> list[float]:
    logits = [bias + sum(known.get(ngram, 0.0) for ngram in ngrams(text)) for text in texts]
    return torch.tensor(logits, dtype=torch.float64).sigmoid().tolist()


@cache
def weights(folder: Path) -> tuple[dict[str, float], float]:
    saved = np.load(folder / "ngrams.npz", allow_pickle=False)
    return dict(zip(saved["ngrams"].tolist(), saved["weights"].tolist(), strict=True)), float(saved["bias"])


def train(texts: Sequence[str], labels: Sequence[bool], l2: float, least: int = 3) -> tuple[dict[str, float], float]:
    """Each n-gram's weight, and the bias: least mean −log p(label) + l2/2 |weights|².

    N-grams that stand in fewer than ``least`` texts count nothing.
    """
    found = [ngrams(text) for text in texts]
    counts = Counter(ngram for of_text in found for ngram in of_text)
    place = {ngram: i for i, ngram in enumerate(sorted(n for n, count in counts.items() if count >= least))}
    ids = [[place[n] for n in sorted(of_text) if n in place] for of_text in found]
    rows = torch.tensor(np.repeat(np.arange(len(ids)), [len(i) for i in ids]))
    columns = torch.tensor([i for of_text in ids for i in of_text])
    y = torch.tensor(labels, dtype=torch.float32)
    w, bias = torch.zeros(len(place), requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = torch.zeros(len(ids)).index_add(0, rows, w[columns]) + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, y) + l2 / 2 * (w @ w)
        value.backward()
        return value

    optimizer.step(loss)
    return dict(zip(place, w.tolist(), strict=True)), bias.item()


def save(folder: Path, known: dict[str, float], bias: float) -> None:
    """The weights and, beside them, this file: a folder that is a reward."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / "ngrams.npz", ngrams=np.array(list(known)), weights=np.array(list(known.values())), bias=bias
    )
    (folder / "ngrams.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
