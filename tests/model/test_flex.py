"""FlexAttention's block mask against the dense rule. The kernel itself needs CUDA; its definition runs anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefopt.model import flex
from prefopt.model.attention import Tree
from prefopt.model.language_model import LanguageModel
from prefopt.model.probe import TOLERANCE, one_at_a_time, probe, random_examples
from prefopt.model.tree import pack, visible
from tests.model.conftest import TREE, make_model
from tests.model.test_tree import encoded

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def a_tree(seed: int):
    """A few hundred tokens: shared prompts, branches within blocks and across them."""
    rng = np.random.default_rng(seed)
    return pack(
        [
            encoded(rng.integers(0, 9, n).tolist(), *(rng.integers(0, 3, m).tolist() for m in rng.integers(1, 150, 3)))
            for n in rng.integers(1, 200, 3)
        ]
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("window", [None, 1, 40, 200])
def test_the_block_mask_is_the_rule(seed, window):
    batch = a_tree(seed)
    tree = Tree(batch.subtree_end)
    size = len(batch.subtree_end)
    mask = tree.block_mask(window, torch.device("cpu"))
    i, j = torch.arange(size)[:, None], torch.arange(size)[None, :]
    expected = visible(batch.subtree_end, batch.positions[0], window)
    assert torch.equal(mask.mask_mod(0, 0, i, j), expected)

    # What is skipped holds nothing, what is called full holds everything.
    blocks = -(-size // flex.BLOCK)
    padded = torch.zeros(blocks * flex.BLOCK, blocks * flex.BLOCK, dtype=torch.bool)
    padded[:size, :size] = expected
    tiles = padded.unflatten(0, (blocks, flex.BLOCK)).unflatten(2, (blocks, flex.BLOCK))
    real_rows = (torch.arange(blocks * flex.BLOCK) < size).unflatten(0, (blocks, flex.BLOCK))
    for q in range(blocks):
        partial = set(mask.kv_indices[0, 0, q, : mask.kv_num_blocks[0, 0, q]].tolist())
        full = set(mask.full_kv_indices[0, 0, q, : mask.full_kv_num_blocks[0, 0, q]].tolist())
        assert not partial & full
        for k in range(blocks):
            tile = tiles[q, :, k]
            assert k in partial | full or not tile.any()
            assert k not in full or tile[real_rows[q]].all()


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_its_attention_is_the_dense_one(window, softcap):
    batch = a_tree(0)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, len(batch.subtree_end), 16, generator=generator)
    k, v = (torch.randn(1, 2, len(batch.subtree_end), 16, generator=generator) for _ in range(2))
    out = flex.attend(q, k, v, Tree(batch.subtree_end).block_mask(window, q.device), 0.25, softcap)

    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = q @ k.transpose(2, 3) * 0.25
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    hidden = ~visible(batch.subtree_end, batch.positions[0], window)
    assert torch.allclose(out, scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TREE)
def test_what_models_hand_it(name, dtype, monkeypatch):
    """Grouped heads, windows, soft caps, and under autocast queries wider than values: as on CUDA, uncompiled."""
    lm = LanguageModel(make_model(name, wide=True), "tree", dtype)
    examples = random_examples(lm, 64)
    seen = watched(monkeypatch)
    ours = lm.score(lm.pack(examples)).token
    assert not seen  # on a CPU it is not used
    monkeypatch.setattr(flex, "takes", lambda query: True)
    theirs = lm.score(lm.pack(examples)).token
    assert {dtypes for dtypes, _ in seen} == {(dtype,) * 3}
    assert min(width for _, width in seen) >= 16
    assert float((theirs - ours).abs().max()) < 2 * TOLERANCE[dtype]  # both are off, and experts may change


def watched(monkeypatch) -> list:
    """Of each call of the kernel: the types of query, key and value, and how wide the heads are."""
    seen, kernel = [], flex._kernel

    def watching(query):
        def noted(q, k, v, **options):
            seen.append(((q.dtype, k.dtype, v.dtype), min(q.shape[-1], v.shape[-1])))
            return kernel(query)(q, k, v, **options)

        return noted

    monkeypatch.setattr(flex, "_kernel", watching)
    return seen


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TREE)
def test_on_cuda_the_tree_gives_the_models_own_numbers(name, dtype, monkeypatch):
    lm = LanguageModel(make_model(name, wide=True).cuda(), dtype=dtype)
    seen = watched(monkeypatch)
    probe(lm, 64)
    examples = random_examples(lm, 64)
    truth = one_at_a_time(lm, examples)
    assert seen and lm.way == "tree", lm.why
    lm.read_as("tree")
    assert float((lm.score(lm.pack(examples)).token - truth).abs().max()) < TOLERANCE[dtype]
