"""FlexAttention's block mask against the dense rule. The kernel itself needs CUDA; its definition runs anywhere."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention

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


def few(prompt: int):
    """A prompt of so many tokens, with two short responses."""
    rng = np.random.default_rng(prompt)
    return pack([encoded(rng.integers(0, 9, prompt).tolist(), [1, 2, 3], [1, 3])])


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

    # The backward pass goes through the same blocks from the keys.
    for count, keys, by_count, by in (
        (mask.kv_num_blocks, mask.kv_indices, mask.q_num_blocks, mask.q_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices, mask.full_q_num_blocks, mask.full_q_indices),
    ):
        pairs = {(q, k) for q in range(blocks) for k in keys[0, 0, q, : count[0, 0, q]].tolist()}
        assert pairs == {(q, k) for k in range(blocks) for q in by[0, 0, k, : by_count[0, 0, k]].tolist()}


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


@pytest.fixture
def compiled(monkeypatch):
    """The kernel is taken, with its gradient, and compiled as on CUDA but for the last stage, which is a GPU's."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # torch has no gradient here uncompiled
    monkeypatch.setattr(flex, "takes", lambda query: True)
    monkeypatch.setattr(flex, "_kernel", lambda query: flex._compiled("aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (30, None), (30, 5.0), (None, 5.0)])
def test_its_gradient_is_the_dense_one_and_a_length_costs_no_compilation(compiled, window, softcap):
    made = []
    for tree in (few(20), few(300), few(511), few(700), a_tree(0), a_tree(1)):
        ours, theirs = outputs_and_gradients(tree, window, softcap, 16, torch.device("cpu"), torch.float32)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
        made.append(compiled())
    assert made == [1, 2, 2, 2, 2, 2]  # one block of 128 tokens is a case of its own


def outputs_and_gradients(tree, window, softcap, width, device, dtype):
    """The kernel's, and those of the dense rule in double precision: out, and of query, key and value."""
    size, scale = len(tree.subtree_end), width**-0.5
    q = torch.randn(1, 4, size, width, device=device, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(1, 2, size, width, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    out = flex.attend(q, k, v, Tree(tree.subtree_end).block_mask(window, device), scale, softcap)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = exact[0] @ exact[1].repeat_interleave(2, 1).transpose(2, 3) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    hidden = ~visible(tree.subtree_end, tree.positions[0], window).to(device)
    dense = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ exact[2].repeat_interleave(2, 1)
    upstream = torch.randn_like(out)
    ours = [out, *torch.autograd.grad(out, (q, k, v), upstream)]
    theirs = [dense, *torch.autograd.grad(dense, exact, upstream.double())]
    return [x.detach() for x in ours], [x.detach().to(dtype) for x in theirs]


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("window", "softcap", "width"), [(None, None, 64), (None, None, 128), (200, None, 64), (30, 5.0, 32)]
)
def test_on_cuda_blocks_and_their_gradients_are_the_dense_ones(window, softcap, width, dtype):
    """As a share of the norm: products of float32 are rounded to TF32's 11 bits by the kernel's own choice."""
    for tree in (few(20), few(127), few(511), few(1000), a_tree(0), a_tree(1)):
        ours, theirs = outputs_and_gradients(tree, window, softcap, width, torch.device("cuda"), dtype)
        for what, a, b in zip(("out", "query", "key", "value"), ours, theirs, strict=True):
            off = float((a.double() - b.double()).norm() / b.double().norm())
            assert off < (1e-2 if dtype == torch.bfloat16 else 1e-3), (len(tree.subtree_end), what, off)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "gemma3"])
def test_a_models_gradient_is_that_of_the_cpus_attention(compiled, monkeypatch, name, dtype):
    """Half of the layers are recomputed, in which the kernel is called by the backward pass."""
    lm = LanguageModel(make_model(name, wide=True), "tree", dtype)
    batch = lm.pack(random_examples(lm, 64))
    room = batch.ids.numel() * 6 // 10
    names, parameters = zip(*lm.module.named_parameters(), strict=True)

    def gradient() -> list[torch.Tensor]:
        return torch.autograd.grad(lm.logprobs(batch, room).sum.sum(), parameters)

    ours = gradient()
    assert compiled() > 0
    monkeypatch.setattr(flex, "takes", lambda query: False)
    apart = 1e-5 if dtype == torch.float32 else 0.05
    for name, a, b in zip(names, ours, gradient(), strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0) > 1 - apart, name


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


@pytest.mark.parametrize("longest", [1, 64, 119, 128, 160, 4096])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_probe_reads_no_further_than_a_model_does(longest, device):
    config = SimpleNamespace(vocab_size=97)
    bare = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    lm = SimpleNamespace(bare=bare, device=torch.device(device))
    reads = max(len(e.prompt) + len(r) for e in random_examples(lm, longest) for r in e.responses)
    assert reads <= max(34, longest) and (device == "cpu" or longest < 160 or reads > 128)


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TREE)
def test_on_cuda_the_tree_gives_the_models_own_numbers(name, dtype, monkeypatch):
    lm = LanguageModel(make_model(name, wide=True).cuda(), dtype=dtype)
    seen = watched(monkeypatch)
    probe(lm, 100)
    assert seen and lm.way == "tree", lm.why
    examples = random_examples(lm, 100)
    truth = one_at_a_time(lm, examples)
    lm.read_as("tree")
    assert float((lm.score(lm.pack(examples)).token - truth).abs().max()) < TOLERANCE[dtype]
