"""The tree against the one-line rule, for any set of sequences."""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.model import attention
from prefopt.model.attention import Tree, tree_attention
from prefopt.model.language_model import LanguageModel
from prefopt.model.tree import pack, pack_rows, visible
from prefopt.types import Encoded
from tests.model.conftest import make_model


def encoded(prompt: list[int], *responses: list[int], scored: list[list[bool]] | None = None) -> Encoded:
    masks = scored or [[True] * len(r) for r in responses]
    return Encoded(
        np.array(prompt, np.int32),
        tuple(np.array(r, np.int32) for r in responses),
        tuple(np.array(m, bool) for m in masks),
        (None,) * len(responses), "test", "", "",
    )  # fmt: skip


tokens = st.lists(st.integers(1, 3), min_size=1, max_size=6)  # few ids, so that much is shared
examples = st.lists(
    st.builds(lambda p, rs: encoded(p, *rs), tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=4
)


def path_to(batch, node: int) -> list[int]:
    """The token ids that are visible to a node, itself last."""
    sees = visible(batch.subtree_end, batch.positions[0])[node]
    return batch.ids[0][sees].tolist()


@given(examples)
def test_every_scored_token_sees_its_own_sequence_and_nothing_else(batch_of):
    batch = pack(batch_of)
    flat = [(e.prompt, r) for e in batch_of for r in e.responses]
    seen = [[] for _ in flat]
    for source, target, owner in zip(batch.source.tolist(), batch.target.tolist(), batch.owner.tolist(), strict=True):
        prompt, response = flat[owner]
        at = len(seen[owner])
        assert path_to(batch, source) == [*prompt, *response[:at]]
        assert target == response[at]
        seen[owner].append(target)
    assert [len(s) for s in seen] == [len(response) for _, response in flat]


@given(examples)
def test_no_token_is_computed_twice(batch_of):
    batch = pack(batch_of)
    sequences = [tuple([*e.prompt, *r][:-1]) for e in batch_of for r in e.responses]
    prefixes = {s[:n] for s in sequences for n in range(1, len(s) + 1)}
    assert batch.ids.shape[1] == len(prefixes)


@given(examples)
def test_positions_are_depths(batch_of):
    batch = pack(batch_of)
    sees = visible(batch.subtree_end, batch.positions[0])
    assert (sees.sum(1) - 1).tolist() == batch.positions[0].tolist()


@given(examples)
def test_rows_and_tree_ask_for_the_same_tokens(batch_of):
    tree, rows = pack(batch_of), pack_rows(batch_of)
    assert torch.equal(tree.target, rows.target) and torch.equal(tree.owner, rows.owner)
    assert torch.equal(tree.ids[0][tree.source], rows.ids.flatten()[rows.source])


def test_unscored_tokens_are_read_and_not_asked_for():
    batch = pack([encoded([5], [6, 7, 8], scored=[[True, False, True]])])
    assert batch.ids.tolist() == [[5, 6, 7]]
    assert batch.source.tolist() == [0, 2] and batch.target.tolist() == [6, 8]


def test_pairs_of_one_prompt_share_it_in_whatever_order_they_stand():
    a, b, other = encoded([1, 2, 3], [4, 9], [5, 9]), encoded([1, 2, 3], [6, 9], [4, 9]), encoded([7], [8, 9], [9])
    batch = pack([a, other, b])
    assert batch.ids.shape[1] == 3 + 3 + 2  # the prompt, [4] [5] [6] once each, then [7] [8]


@settings(deadline=None)
@given(examples, st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, 5.0]), st.sampled_from([0, 8, 2048]))
def test_attention_on_runs_is_dense_attention_under_the_rule(batch_of, window, softcap, call):
    with mock.patch.object(attention, "CALL", call):  # 0: every run alone; 2048: all of a small tree as one block
        check_attention(batch_of, window, softcap)


@settings(deadline=None)
@given(examples, st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, 5.0]), st.sampled_from([1, 5, 8]))
def test_attention_on_stretches_is_dense_attention_under_the_rule(batch_of, window, softcap, stretch):
    with mock.patch.object(attention, "STRETCH", stretch):
        check_attention(batch_of, window, softcap)


def test_short_texts_are_computed_in_stretches_and_long_ones_in_runs():
    short, long = ([encoded([1] * n, *([i] * 9 for i in range(2, 20)))] for n in (8, 80))
    assert Tree(pack(short).subtree_end).stretches.shape == (3, 8 + attention.STRETCH)
    assert Tree(pack(long).subtree_end).stretches is None


def check_attention(batch_of, window, softcap):
    batch = pack(batch_of)
    size = batch.ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, size, 4, generator=generator, requires_grad=True) for _ in range(3))
    out = tree_attention(Tree(batch.subtree_end), q, k, v, scaling=0.5, window=window, softcap=softcap)

    scores = q @ k.transpose(2, 3) * 0.5
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    hidden = ~visible(batch.subtree_end, batch.positions[0], window)
    dense = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v

    assert torch.allclose(out, dense, atol=1e-5)
    weight = torch.randn(out.shape, generator=generator)
    ours = torch.autograd.grad((out * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((dense * weight).sum(), (q, k, v))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_a_long_run_is_computed_in_pieces(monkeypatch):
    monkeypatch.setattr(attention, "CALL", 0)
    monkeypatch.setattr(attention, "STRETCH", 1)
    batch = pack([encoded([1] * 5, [2] * 40, [3] * 30)])
    q, k, v = (torch.randn(1, 1, batch.ids.shape[1], 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
    whole = tree_attention(Tree(batch.subtree_end), q, k, v, window=11)
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 7)
    assert torch.allclose(tree_attention(Tree(batch.subtree_end), q, k, v, window=11), whole, atol=1e-6)


def test_a_gradient_is_the_same_to_the_bit_whatever_the_threads_do():
    """Many responses to one prompt: what its last token gets from each must be added up in one order."""
    random, threads = np.random.default_rng(0), torch.get_num_threads()
    lm = LanguageModel(make_model("llama"), way="tree")
    batch = lm.pack([encoded([1, 2, 3], *random.integers(4, 40, (256, 8)).tolist())])
    torch.set_num_threads(2)
    try:
        found = set()
        for _ in range(30):
            lm.module.zero_grad()
            lm.logprobs(batch).sum.sum().backward()
            found.add(b"".join(p.grad.numpy().tobytes() for p in lm.module.parameters()))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_a_batch_that_waits_keeps_its_plan_and_no_masks():
    lm = LanguageModel(make_model("llama"), "tree")
    batch = lm.pack([encoded([1, 2], [3, 1, 2], [3, 2]), encoded([1, 3], [2], [1, 1, 1])])
    first, again = lm.score(batch).sum, lm.score(batch).sum
    assert torch.equal(first, again)
    assert not batch.tree._masks and "blocks" in batch.tree.__dict__
