"""Recorded passes against the same without a recording; on a CPU with a recorder that does the work each time anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefopt.model import graphs
from prefopt.model.attention import Tree
from prefopt.model.graphs import filled
from prefopt.model.language_model import LanguageModel
from prefopt.model.narrow import narrow
from prefopt.model.tree import pack
from prefopt.train import optimizer
from tests.model.conftest import make_model
from tests.model.test_tree import encoded

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def imitated(made: list | None = None, check=lambda: None):
    """Does the work while it is recorded, where a GPU would not: a gradient of nothing is added. ``made``: what was."""

    def recorder():
        def record(work):
            work()
            if made is not None:
                made.append(work)

            def replay():
                check()
                with torch.enable_grad():
                    work()

            return replay

        return record

    return recorder


def recorded(lm: LanguageModel, recorder, notes: list | None = None, eager: int = 0) -> LanguageModel:
    lm.graphs = lm._graphs(print if notes is None else notes.append)
    lm.graphs.recorder, lm.graphs.eager = recorder, eager
    return lm


def examples(seed: int):
    """Some 60 to 110 tokens: filled to 256."""
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


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "qwen3"])
def test_what_goes_in_is_replaced_and_gradients_add_up(flexible, name):
    lm = LanguageModel(make_model(name, wide=True).eval(), "tree")
    plain = steps(lm)
    notes, made = [], []
    ours = steps(recorded(lm, imitated(made), notes))
    assert {*lm.graphs.known} == {256} and len(made) == 2 and lm.graphs.eager == graphs.EAGER and not notes
    for mine, theirs in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_replay_reads_the_weights_of_now(flexible):
    """Those in bfloat16 too, which nothing but a forward pass without a recording would look after."""
    lm = LanguageModel(make_model("llama", wide=True).eval(), "tree", torch.bfloat16)
    lm._narrow = narrow(lm.layers)
    seen = []

    def fresh():
        seen.append(all(torch.equal(linear._narrow, linear.weight.bfloat16()) for linear in lm._narrow))

    steps(recorded(lm, imitated(check=fresh)))
    made = optimizer.build("adamw", lm.module.named_parameters())
    optimizer.set_learning_rate(made, 0.1)
    for _ in range(2):
        optimizer.step_if(made, torch.tensor(True))
        lm.logprobs(lm.pack(examples(0))).sum.sum().backward()
    assert len(seen) > 4 and all(seen)


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral", "gpt2", "qwen2", "qwen3", "gemma3", "opt", "olmo2"])
def test_on_cuda_what_is_recorded_is_what_was_computed(name, dtype):
    lm = LanguageModel(make_model(name, wide=True).eval().cuda(), "tree", dtype)
    plain = steps(lm)
    notes = []
    with lm.recorded(notes.append):
        for _ in range(2):  # the second time all is there, but of other weights
            with torch.no_grad():
                for p in lm.module.parameters():
                    p.neg_()
            ours = steps_in_place(lm)
        assert {*lm.graphs.known} == {256} and not notes
        lm.graphs.make_room()
        again = steps_in_place(lm)
        assert {*lm.graphs.known} == {256} and not notes
        assert all(torch.equal(a, b) for a, b in zip(again[0], ours[0], strict=True))
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
    torch.rand(1, device="cuda")  # which a recording that failed may have left impossible
    for mine, theirs in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def fails(error):
    def record(work):
        raise error

    return lambda: record


def test_what_can_not_be_recorded_is_computed_and_said_once(flexible):
    lm = LanguageModel(make_model("llama", wide=True).eval(), "tree")
    plain, notes = steps(lm), []
    ours = steps(recorded(lm, fails(RuntimeError("no such graph")), notes, graphs.EAGER))
    assert len(notes) == 1 and "no such graph" in notes[0] and not lm.graphs.known
    assert lm.graphs.failures == graphs.TRIES and not lm.recording
    for mine, theirs in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert lm.pack(examples(0)).ids.shape[1] < 128  # nothing is filled up any more


def test_one_failure_may_be_a_kernel_that_was_still_to_be_made(flexible):
    lm = LanguageModel(make_model("llama", wide=True).eval(), "tree")
    steps(recorded(lm, fails(RuntimeError("once")), eager=graphs.EAGER), range(1))
    lm.graphs.recorder = imitated()
    steps(lm, range(3))
    assert {*lm.graphs.known} == {256} and lm.recording


def test_a_recording_that_finds_no_memory_gives_back_what_there_is(flexible):
    lm, notes = LanguageModel(make_model("llama", wide=True).eval(), "tree"), []
    steps(recorded(lm, fails(torch.OutOfMemoryError("CUDA out of memory")), notes, graphs.EAGER), range(2))
    assert lm.graphs.made_room == 2 and lm.recording and not notes
    steps(lm, range(2))
    assert not lm.recording and "need the memory" in notes[0]


def test_a_weight_that_gets_its_first_gradient_is_not_recorded(flexible):
    lm = LanguageModel(make_model("llama", wide=True).eval(), "tree")
    plain = steps(lm, range(2))[1]
    recorded(lm, imitated(), eager=graphs.EAGER)
    ours = steps(lm, range(2))[1]  # begins with no gradients at all
    assert lm.graphs.eager == graphs.EAGER + 1 and {*lm.graphs.known} == {256}
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_attention_that_the_host_plans_is_not_recorded():
    lm, notes = LanguageModel(make_model("llama").eval(), "tree"), []
    steps(recorded(lm, imitated(), notes, graphs.EAGER))
    assert not lm.recording and "planned by the host" in notes[0]


def test_what_a_gpu_is_busy_with_for_long_is_not_recorded(flexible, monkeypatch):
    lm = recorded(LanguageModel(make_model("llama", wide=True).eval(), "tree"), imitated(), eager=graphs.EAGER)
    assert lm.graphs.parameters == sum(p.numel() for p in lm.bare.base_model.parameters())
    monkeypatch.setattr(graphs, "GPU_BOUND", lm.graphs.parameters * 256)
    steps(lm)
    assert not lm.graphs.known
    monkeypatch.setattr(graphs, "GPU_BOUND", lm.graphs.parameters * 256 + 1)
    steps(lm)
    assert lm.graphs.known


def test_what_a_batch_is_filled_up_with_is_not_recomputed():
    lm = recorded(LanguageModel(make_model("llama").eval(), "tree"), imitated())
    batch = type("Batch", (), {"ids": torch.zeros(1, graphs.filled(257))})
    assert batch.ids.numel() == 384 and lm._recomputed(batch, 256) == 0
    lm.graphs = None
    assert lm._recomputed(batch, 256) > 0


def test_a_tree_is_filled_with_what_sees_itself_alone():
    plain, ours = (pack(examples(0), fill=fill) for fill in (None, filled))
    size = plain.ids.shape[1]
    assert ours.ids.shape[1] == 256 and torch.equal(ours.ids[:, :size], plain.ids)
    assert ours.subtree_end[size:].tolist() == [*range(size + 1, 257)]
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
    return recorded(lm, imitated(), eager=graphs.EAGER), plain


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
    before = lm.graphs.known[256]
    loss(lm, 0).backward()
    assert lm.graphs.known[256] is before
    lm.module.zero_grad(set_to_none=True)
    for seed in range(2):
        loss(lm, seed).backward()
        assert lm.graphs.known.get(256) is not before
    same(lm, plain)


def test_a_window_that_was_not_planned_is_no_recordings():
    tree = Tree(torch.tensor([3, 3, 3]))
    tree.block_mask(None, torch.device("cpu"))
    copied = tree.copied()
    assert copied.block_mask(None, torch.device("cpu")) is not tree.block_mask(None, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not planned"):
        copied.block_mask(2, torch.device("cpu"))
