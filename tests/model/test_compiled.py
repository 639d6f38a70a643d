"""Compiled layers against the same without: on a CPU by all of torch's compiler but what writes kernels."""

from __future__ import annotations

import gc
from collections.abc import Callable
from weakref import ref

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from prefopt.model import probe
from prefopt.model.language_model import LanguageModel
from prefopt.model.narrow import narrow
from tests.model.conftest import make_model
from tests.model.test_graphs import examples, imitated, recorded, steps

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def made(name: str, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    lm = LanguageModel(make_model(name, wide=True).eval(), "tree", dtype)
    lm._narrow = narrow(lm.layers) if dtype == torch.bfloat16 else []
    return lm


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many were compiled."""
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "name, dtype",
    [("llama", torch.float32), ("qwen3", torch.bfloat16), ("gpt2", torch.bfloat16), ("deepseek-v3", torch.bfloat16)],
)
def test_log_probs_and_gradients_are_those_of_the_layers_as_they_were(name, dtype):
    lm = made(name, dtype)
    plain = steps(lm)
    lm.compile(backend="aot_eager")
    ours = steps(lm)
    room = 1e-4 if dtype == torch.float32 else 2e-2
    for mine, theirs in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        assert float((mine - theirs).norm()) <= room * float(theirs.norm()) + 1e-4
    assert all(p.grad is not None for p in lm.module.parameters() if p.requires_grad)


def test_layers_share_what_is_compiled_and_no_length_costs_another_one():
    """Nor do layers that are computed twice."""
    ran: list[Callable] = []

    def counting(graph, inputs):
        return lambda *given: ran.append(graph) or graph.forward(*given)

    lm = made("llama")
    lm.compile(backend=aot_autograd(fw_compiler=counting, bw_compiler=counting))
    gradients, logps = [], []
    for seed, room, times in ((1, None, 2), (0, None, 2), (0, 1, 3)):
        lm.module.zero_grad()
        ran.clear()
        logps.append(lm.logprobs(lm.pack(examples(seed)), room).sum)
        logps[-1].sum().backward()
        gradients.append([p.grad.clone() for p in lm.module.parameters()])
        assert len(ran) == times * 4 * len(lm.layers)
        assert graphs() == 4  # to attention and from it, in the layer and in the module within
    assert torch.equal(*logps[1:])
    assert all(torch.equal(a, b) for a, b in zip(*gradients[1:], strict=True))
    assert not any(layer.gradient_checkpointing or layer.training for layer in lm.layers)


def test_a_compiled_model_is_gone_when_nobody_has_it():
    lm = made("llama")
    lm.compile(backend="eager")
    steps(lm, [0])
    torch._dynamo.reset()
    weight = ref(lm.layers[0].mlp.up_proj.weight)
    gc.collect()
    gc.disable()
    try:
        del lm
        assert weight() is None
    finally:
        gc.enable()


def test_a_recording_compiles_nothing(flexible):
    """Which would end it: a compiler runs kernels of its own, and waits for them."""
    lm, notes = made("llama"), []
    recorded(lm, imitated(), notes)
    lm.compile(backend="aot_eager")
    steps(lm, range(2))
    before = graphs()
    steps(lm, range(2, 6))
    assert {*lm.graphs.known} == {256} and not notes and graphs() == before > 4


def test_passes_without_a_gradient_are_not_compiled():
    lm = made("llama")
    lm.compile(backend="eager")
    lm.score(lm.pack(examples(0)))
    assert graphs() == 0
    lm.logprobs(lm.pack(examples(0)))
    assert graphs() > 0
    lm.compile(wanted=False)
    assert all(layer._compiled_call_impl is None for layer in lm.layers)


def test_what_is_compiled_is_held_against_what_was(monkeypatch):
    compile = LanguageModel.compile
    monkeypatch.setattr(LanguageModel, "compile", lambda lm, wanted=True: compile(lm, wanted, "aot_eager"))
    lm = made("llama")
    assert probe.compile_layers(lm, 64) == "" and lm.layers[0]._compiled_call_impl is not None
    assert all(p.grad is None for p in lm.module.parameters())

    # Where nothing below asks for a gradient, a compiler leaves the backward pass out, and with it what is learnt.
    lm = made("olmo2")
    lm.bare.get_input_embeddings().weight.requires_grad_(False)
    why = probe.compile_layers(lm, 64)
    assert "are not compiled" in why and "gradient" in why and lm.layers[0]._compiled_call_impl is None


@pytest.mark.parametrize(
    "does, said",
    [
        (lambda call, *args, **kwargs: call(*args, **kwargs) * 1.5, "log-probs would differ"),
        (lambda call, *args, **kwargs: call(*args, **kwargs) * float("nan"), "log-probs would differ by up to nan"),
        (lambda call, *args, **kwargs: call(*args, **kwargs).detach(), "gradient"),
        (lambda call, *args, **kwargs: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_is_compiled_wrongly_is_not_used(monkeypatch, does, said):
    def compile(lm, wanted=True):
        for layer in lm.layers:
            layer._compiled_call_impl = (lambda *a, call=layer._call_impl, **k: does(call, *a, **k)) if wanted else None

    monkeypatch.setattr(LanguageModel, "compile", compile)
    lm = made("llama")
    before = lm.score(lm.pack(examples(0))).token
    assert said in probe.compile_layers(lm, 64)
    assert torch.equal(lm.score(lm.pack(examples(0))).token, before)


def test_no_gradient_is_too_small_to_be_missed():
    lm, token = made("llama"), torch.zeros(3)
    before, now = torch.tensor([1.0, 1e-4]), torch.tensor([1.0, 0.0])
    assert "1 gradients would be left out" in probe.difference(lm, (token, now), (token, before))
    assert probe.difference(lm, (token, before), (token, before)) == ""
    assert probe.difference(lm, (token, now), (token, now)) == ""  # what had none has none


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_on_cuda_compiled_layers_are_recorded(name):
    lm = LanguageModel(make_model(name, wide=True).eval().cuda(), "tree", torch.bfloat16)
    assert probe.compile_layers(lm, 64) == ""
    lm.compile(wanted=False)
    plain = steps(lm)
    lm.compile()
    steps(lm)
    notes = []
    with lm.recorded(notes.append):
        steps(lm, range(3))  # with gradients from here on
        lm.module.zero_grad = lambda: [p.grad.zero_() for p in lm.module.parameters()]
        ours = steps(lm)
        assert lm.graphs.known and lm.graphs.eager < 6 and not notes
    for mine, theirs in zip(ours[0], plain[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=5e-2)
    for mine, theirs in zip(ours[1], plain[1], strict=True):
        assert float((mine - theirs).norm()) <= 5e-2 * float(theirs.norm()) + 1e-3
