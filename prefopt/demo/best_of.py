"""Best-of-N in the world: its exact distribution, and beside it what comes of drawing N reviews to keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prefopt.data.decode import decoded
from prefopt.data.encode import Encoder
from prefopt.demo.account import Row, point
from prefopt.demo.world import World
from prefopt.frontier.exact import Frontier, best_of_n, best_of_n_bound, condition
from prefopt.generate import TransformersGenerator
from prefopt.model.load import load_model
from prefopt.statistics import Interval, clustered_bootstrap

BEST_OF = (2, 4, 8, 16, 32, 64)
DRAWS = 1024
"""reviews of each genre: 512 pairs to choose from, or 16 times 64"""


def draw(world: World, model: Path, seed: int, n: int = DRAWS) -> list[np.ndarray]:
    """For each prompt, which reviews ``model`` writes: n draws, less those that are no review or do not end."""
    lm, encoder = load_model(str(model), device="cpu"), Encoder(world.tokenizer)
    longest = world.responses.shape[1] + 1
    generator = TransformersGenerator(lm, encoder, max_new_tokens=longest, batch_size=512, seed=seed)
    drawn = generator.ids(encoder.prompts(world.prompts), n)
    texts = decoded(encoder, world.prompts, [list(filter(generator.is_whole, of_prompt)) for of_prompt in drawn])
    return [np.array([world.index[text] for text in of_prompt if text in world.index]) for of_prompt in texts]


def best_of(exact: Frontier, scores: Sequence[np.ndarray], drawn: Sequence[np.ndarray]) -> list[Row]:
    """For each N the policy that keeps the best of N by a score [X, Y], and what ``drawn`` says of it.

    Of several scores the mean, as of several seeds; drawn is by the first.
    """
    reference = condition(exact.reference).logps
    rows = []
    for n in BEST_OF:
        policies = [best_of_n(reference, score, n) for score in scores]
        best = chosen(drawn, scores[0], n)
        found = {"groups": best.size, "drawn": estimates(exact, policies[0], best)}
        rows.append(point(f"Best of {n}", *map(exact.place, policies), n=n, bound=best_of_n_bound(n), **found))
    return rows


def chosen(drawn: Sequence[np.ndarray], score: np.ndarray, n: int) -> np.ndarray:
    """[X, G] the best of each n draws; as many groups of every prompt. Of equally good ones the first.

    >>> chosen([np.array([0, 1, 2, 0, 1])], np.array([[0.0, 5.0, 1.0]]), n=2).tolist()
    [[1, 2]]
    """
    groups = min(map(len, drawn)) // n
    tried = np.stack([of_prompt[: groups * n].reshape(groups, n) for of_prompt in drawn])
    x = np.arange(len(drawn))
    first = score[x[:, None, None], tried].argmax(-1)
    return np.take_along_axis(tried, first[..., None], -1)[..., 0]


def estimates(exact: Frontier, policy: np.ndarray, best: np.ndarray) -> dict[str, Interval]:
    """True reward and KL, as `prefopt.frontier.estimate` has them where nothing can be enumerated: means over draws.

    With 95 % intervals. Every prompt counts alike, so what is resampled is one group of each.
    """
    log_ratio = policy - condition(exact.reference).logps
    x, groups = np.arange(len(best))[:, None], np.broadcast_to(np.arange(best.shape[1]), best.shape).ravel()
    values = {"reward": exact.reward, "kl": log_ratio}
    return {name: clustered_bootstrap(of[x, best].ravel(), groups) for name, of in values.items()}
