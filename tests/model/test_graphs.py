"""Recorded passes against the same without a recording; on a CPU with a recorder that does the work each time anew."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention

from prefopt.model import flex, graphs
from prefopt.model.attention import Tree
from prefopt.model.graphs import Graphs, filled
from prefopt.model.language_model import LanguageModel
from prefopt.model.tree import pack
from tests.model.conftest import make_model
from tests.model.test_tree import encoded

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def imitated():
    """The forward pass is done while it is recorded, for its shape; a backward pass has nothing to go through yet."""
    turn = itertools.count()

    def record(work):
        if next(turn) % 2 == 0:
            work()
        return torch.enable_grad()(work)

    return record


def examples(seed: int):
    """Some 60 to 110 tokens: filled to 128."""
    rng = np.random.default_rng(seed)
    return [
        encoded(rng.integers(3, 97, n).tolist(), *(rng.integers(3, 97, m).tolist() for m in rng.integers(3, 12, 2)))
        for n in rng.integers(15, 25, 3)
    ]


def steps(lm: LanguageModel, seeds=range(4)):
    """Log-probs of each batch, and what the gradients add up to."""
    lm.module.zero_grad()
    told = []
    for seed in seeds:
        logps = lm.logprobs(lm.pack(examples(seed)))
        (logps.sum * torch.arange(1.0, 7.0, device=lm.device)).sum().backward()
        told.append(logps.token.detach().clone())
        del logps
    return told, [p.grad.clone() for p in lm.module.parameters()]


@pytest.fixture
def flexible(monkeypatch):
    """FlexAttention on a CPU, with its gradient."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "takes", lambda query: True)
    monkeypatch.setattr(flex, "_kernel", lambda query: flex._compiled("aot_eager"))
    monkeypatch.setattr(Tree, "plan", lambda self, windows, device: [self.block_mask(w, device) for w in windows])
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "qwen3"])
def test_what_goes_in_is_replaced_and_gradients_add_up(flexible, name):
    lm = LanguageModel(make_model(name, wide=True).eval(), "tree")
    plain = steps(lm)
    notes = []
    lm.graphs = Graphs(lm._hidden, lm._trained, lm._ready, notes.append, imitated())
    ours = steps(lm)
    assert {*lm.graphs.known} == {128} and not notes
    for mine, theirs in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral", "gpt2", "qwen2", "qwen3", "gemma3", "opt", "olmo2"])
def test_on_cuda_what_is_recorded_is_what_was_computed(name, dtype):
    lm = LanguageModel(make_model(name, wide=True).eval().cuda(), "tree", dtype)
    plain = steps(lm)
    notes = []
    with lm.recorded(notes.append):
        for _ in range(2):  # the second time all is there
            ours = steps_in_place(lm)
        assert {*lm.graphs.known} == {128} and not notes
    room = 1e-4 if dtype == torch.float32 else 5e-2
    for mine, theirs in zip(ours[0], plain[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=room, atol=room)
    for mine, theirs in zip(ours[1], plain[1], strict=True):
        assert float((mine - theirs).norm()) <= room * float(theirs.norm()) + 1e-3
    assert lm.graphs is None


def steps_in_place(lm):
    for p in lm.module.parameters():
        if p.grad is not None:
            p.grad.zero_()
    zero_grad, lm.module.zero_grad = lm.module.zero_grad, lambda: None
    try:
        return steps(lm)
    finally:
        lm.module.zero_grad = zero_grad


@cuda
@pytest.mark.cuda
def test_on_cuda_what_asks_the_host_is_not_recorded():
    lm = LanguageModel(make_model("llama", wide=True).eval().cuda(), "tree")
    plain = steps(lm)
    lm.layers[1].register_forward_hook(lambda module, inputs, out: float(out.sum()) and None)
    notes = []
    with lm.recorded(notes.append):
        ours = [steps_in_place(lm) for _ in range(2)][-1]
        assert not lm.graphs.known
    assert len(notes) == 1 and "not recorded" in notes[0]
    for mine, theirs in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_what_can_not_be_recorded_is_computed_and_said_once():
    def record(work):
        raise RuntimeError("no such graph")

    lm = LanguageModel(make_model("llama").eval(), "tree")
    plain, notes = steps(lm), []
    lm.graphs = Graphs(lm._hidden, lm._trained, lm._ready, notes.append, record)
    ours = steps(lm, range(4))
    assert len(notes) == 1 and "no such graph" in notes[0] and not lm.graphs.known
    for mine, theirs in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_tree_is_filled_with_what_sees_itself_alone():
    plain, ours = (pack(examples(0), fill=fill) for fill in (None, filled))
    size = plain.ids.shape[1]
    assert ours.ids.shape[1] == 128 and torch.equal(ours.ids[:, :size], plain.ids)
    assert ours.subtree_end[size:].tolist() == [*range(size + 1, 129)]
    for field in ("source", "target", "owner"):
        assert torch.equal(getattr(ours, field), getattr(plain, field))
    assert (ours.tree.positions == ours.positions[0].numpy()).all()


@pytest.fixture
def recording(flexible):
    """A model whose passes are recorded from the first one on, and the gradients that two batches give it."""
    lm = LanguageModel(make_model("llama", wide=True).eval(), "tree")
    plain = steps(lm, range(2))[1]
    for p in lm.module.parameters():
        p.grad.zero_()
    lm.graphs = Graphs(lm._hidden, lm._trained, lm._ready, print, imitated(), eager=graphs.EAGER)
    return lm, plain


def loss(lm, seed):
    return (lm.logprobs(lm.pack(examples(seed))).sum * torch.arange(1.0, 7.0)).sum()


def same(lm, plain):
    for p, theirs in zip(lm.module.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, theirs, rtol=1e-4, atol=1e-4)


def test_a_second_pass_before_the_firsts_backward_is_not_a_replay(recording):
    lm, plain = recording
    first, second = loss(lm, 0), loss(lm, 1)
    assert lm.graphs.eager == graphs.EAGER + 1
    (first + second).backward()
    same(lm, plain)
    del first, second
    loss(lm, 0)  # that nothing came of
    loss(lm, 1)
    assert lm.graphs.eager == graphs.EAGER + 1


def test_a_replay_has_one_backward_pass(recording):
    lm, _ = recording
    once = loss(lm, 0)
    once.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="another one"):
        once.backward()


def test_gradients_that_are_others_are_recorded_anew(recording):
    lm, plain = recording
    loss(lm, 0).backward()
    before = lm.graphs.known[128]
    loss(lm, 0).backward()
    assert lm.graphs.known[128] is before
    lm.module.zero_grad(set_to_none=True)
    for seed in range(2):
        loss(lm, seed).backward()
        assert lm.graphs.known[128] is not before
    same(lm, plain)


def test_a_window_that_was_not_planned_is_no_recordings():
    tree = Tree(torch.tensor([3, 3, 3]))
    tree.block_mask(None, torch.device("cpu"))
    copied = tree.copied()
    assert copied.block_mask(None, torch.device("cpu")) is not tree.block_mask(None, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not planned"):
        copied.block_mask(2, torch.device("cpu"))
