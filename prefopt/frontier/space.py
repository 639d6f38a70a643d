"""A finite response space as a token tree, so that every response's exact log-probability costs one pass.

The responses to one prompt share their beginnings. Each shared beginning is read once: in depth-first
order, token j is visible to token i exactly when ``j <= i < subtree_end[j]``. A response's last token is
followed by the end token, which is predicted and never read, so it is no node.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from prefopt.model.tree import grow


@dataclass(frozen=True, slots=True)
class ResponseTree:
    """All Y responses to one prompt, M tokens read in depth-first order, the prompt's first.

    ``ids``, ``depth``, ``parent``, ``subtree_end`` [M]; the root's parent is -1. ``prompt_length``: nodes
    before it are the prompt, a single path. ``leaf`` [Y]: the node after which each response ends.

    >>> tree = ResponseTree.build([1], [[5, 6], [5, 7], [8]], end_token=2)
    >>> tree.ids.tolist(), tree.depth.tolist()
    ([1, 5, 6, 7, 8], [0, 1, 2, 2, 1])
    >>> tree.parent.tolist(), tree.subtree_end.tolist(), tree.leaf.tolist()
    ([-1, 0, 1, 1, 0], [5, 4, 3, 4, 5], [2, 3, 4])
    """

    ids: np.ndarray
    depth: np.ndarray
    parent: np.ndarray
    subtree_end: np.ndarray
    leaf: np.ndarray
    prompt_length: int
    end_token: int

    @classmethod
    def build(cls, prompt: Sequence[int], responses: Collection[Sequence[int]], end_token: int) -> ResponseTree:
        """The tree of ``responses``, token ids without the end token, in any order.

        ValueError if two responses are equal, or one or the prompt is empty.
        """
        if not len(prompt) or not all(map(len, responses)):
            raise ValueError("an empty prompt or response has no log-probability")
        length = np.array([len(response) for response in responses])
        rows = np.full((len(responses), len(prompt) + length.max()), -1, np.int64)
        rows[:, : len(prompt)] = prompt
        for row, response in zip(rows, responses, strict=True):
            row[len(prompt) : len(prompt) + len(response)] = response

        order = np.lexsort(rows.T[::-1])
        nodes = grow(rows[order])
        end = nodes.node[np.arange(len(rows)), len(prompt) + length[order] - 1]
        if len(np.unique(end)) < len(end):
            raise ValueError("two responses are equal")
        leaf = np.empty(len(rows), np.int64)
        leaf[order] = end
        return cls(nodes.ids, nodes.depth, nodes.parent, nodes.subtree_end, leaf, len(prompt), end_token)

    @property
    def source(self) -> np.ndarray:
        """[N] the node whose hidden state predicts each scored token; N = M - prompt_length + Y."""
        return np.concatenate([self.parent[self.prompt_length :], self.leaf])

    @property
    def target(self) -> np.ndarray:
        """[N] the scored tokens: every node after the prompt, then the end token of each response."""
        return np.concatenate([self.ids[self.prompt_length :], np.full(len(self.leaf), self.end_token)])

    def enumerate_logps(self, next_token_logps: np.ndarray) -> np.ndarray:
        """[Y] log π(y|x) in nats from next-token log-probabilities [M, V] at every node.

        >>> tree = ResponseTree.build([1], [[0], [1]], end_token=2)
        >>> halves = np.log(np.full((3, 3), 0.5))
        >>> np.exp(tree.enumerate_logps(halves)).tolist()  # two halvings: the word, then the end
        [0.25, 0.25]
        """
        return self.path_sums(next_token_logps[self.source, self.target])

    def path_sums(self, token_logps: np.ndarray) -> np.ndarray:
        """[Y] sums over each response's tokens of log-probabilities [N], in the order of ``source`` and ``target``."""
        total = np.zeros(len(self.ids))
        inner = len(self.ids) - self.prompt_length
        total[self.prompt_length :] = token_logps[:inner]
        for depth in range(self.prompt_length, self.depth.max() + 1):
            nodes = np.flatnonzero(self.depth == depth)
            total[nodes] += total[self.parent[nodes]]
        return total[self.leaf] + token_logps[inner:]


NODES_AT_ONCE, STRETCHES_AT_ONCE = 64, 32
"""a stretch of so many nodes is one sequence, and so many stretches one batch: for speed and memory only"""


def next_token_logps(model: nn.Module, tree: ResponseTree) -> np.ndarray:
    """[M, V] float64 log π(· | the path to each node), in nats, for a small vocabulary."""
    return read(model, tree, "logits").double().log_softmax(-1).numpy()


@torch.no_grad()
def read(model: nn.Module, tree: ResponseTree, output: str) -> torch.Tensor:
    """[M, ...] what ``model`` gives at every node, by the name of its output: its logits, or its last hidden state.

    The depth-first order is cut into stretches; each is read behind the path that leads to it, under the mask of the
    rule above. ``model`` is any causal language model of transformers, or its body, that takes positions and a mask of
    its own.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    stretches = _stretches(tree)
    for nodes in np.split(stretches, range(STRETCHES_AT_ONCE, len(stretches), STRETCHES_AT_ONCE)):
        i, j = nodes[:, :, None], nodes[:, None, :]
        sees = (j >= 0) & (j <= i) & (i < tree.subtree_end[j])
        sees |= np.eye(nodes.shape[1], dtype=bool)  # a row that saw nothing would be nan
        mask = torch.zeros(sees.shape).masked_fill_(torch.from_numpy(~sees), float("-inf"))
        ids, positions = (torch.as_tensor(per_node[nodes], device=device) for per_node in (tree.ids, tree.depth))
        out = model(ids, attention_mask=mask[:, None].to(device), position_ids=positions, use_cache=False)
        wanted = torch.as_tensor(nodes[:, -NODES_AT_ONCE:] >= 0, device=device)
        parts.append(out[output][:, -NODES_AT_ONCE:][wanted].cpu())
    model.train(was_training)
    return torch.cat(parts)


def _stretches(tree: ResponseTree) -> np.ndarray:
    """[S, path + NODES_AT_ONCE] nodes: the ancestors of a stretch's first node, then the stretch; -1 where none is."""
    starts = np.arange(0, len(tree.ids), NODES_AT_ONCE)
    own = starts[:, None] + np.arange(NODES_AT_ONCE)
    above = [tree.parent[starts]]
    while (above[-1] >= 0).any():
        above.append(np.where(above[-1] >= 0, tree.parent[above[-1]], -1))
    return np.column_stack([*above[::-1], np.where(own < len(tree.ids), own, -1)])
