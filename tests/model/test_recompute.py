"""What is recomputed gives the same gradient to the bit, and keeps what it promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefopt.model import recompute
from prefopt.model.language_model import LanguageModel
from prefopt.model.probe import random_examples
from tests.model.conftest import ROWS, TREE, make_model


def gradient(lm: LanguageModel, room: int | None = None) -> tuple[list[torch.Tensor], int]:
    """Of every weight, and how many bytes of activations autograd kept until it was computed."""
    lm.module.zero_grad()
    weights = {p.untyped_storage().data_ptr() for p in lm.module.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other tensor comes to its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps = lm.logprobs(lm.pack(random_examples(lm, 64)), room)
    logps.sum.sum().backward()
    held = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in lm.module.parameters()], held


@pytest.mark.parametrize("name", [*TREE, *ROWS])
def test_the_gradient_is_the_same_to_the_bit_and_less_is_kept(name):
    lm = LanguageModel(make_model(name), "tree" if name in TREE else "rows")
    plain, everything = gradient(lm)
    recomputed, less = gradient(lm, 8)
    assert all(map(torch.equal, plain, recomputed))
    assert less < 0.7 * everything  # what stands outside the layers stays
    assert not any(module.training for module in lm.layers)


def test_of_a_batch_that_fits_nothing_is_recomputed():
    lm = LanguageModel(make_model("llama"), "tree")
    _, everything = gradient(lm)
    tokens = lm.pack(random_examples(lm, 64)).ids.numel()
    assert gradient(lm, tokens)[1] == everything
    assert gradient(lm, tokens - 1)[1] < everything


def test_without_a_gradient_nothing_is():
    lm = LanguageModel(make_model("llama"), "tree")
    batch = lm.pack(random_examples(lm, 64))
    assert lm._recomputed(batch, 1) == len(lm.layers)
    with torch.no_grad():
        assert lm._recomputed(batch, 1) == 0


@given(st.integers(1, 10**5), st.integers(1, 10**4), st.integers(1, 100))
def test_as_few_as_need_be(tokens, room, layers):
    def kept(recomputed: int) -> float:
        return tokens * (recomputed * recompute.INPUT + layers - recomputed)

    chosen = recompute.how_many(tokens, room, layers)
    assert chosen == layers or kept(chosen) <= room * layers
    assert chosen == 0 or kept(chosen - 1) > room * layers
