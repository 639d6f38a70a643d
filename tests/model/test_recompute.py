"""What is recomputed gives the same gradient to the bit, and keeps what it promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, ZambaConfig

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
    assert gradient(lm, tokens // 2)[1] < everything


def test_without_a_gradient_nothing_is():
    lm = LanguageModel(make_model("llama"), "tree")
    batch = lm.pack(random_examples(lm, 64))
    assert lm._recomputed(batch, 1) == len(lm.layers)
    with torch.no_grad():
        assert lm._recomputed(batch, 1) == 0


@pytest.mark.parametrize("share", [0.5, 0.7])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_some_layers_keep_no_more_than_was_promised(name, share):
    lm = LanguageModel(make_model(name), "tree")
    batch = lm.pack(random_examples(lm, 64))
    room = int(share * batch.ids.numel())
    assert 0 < lm._recomputed(batch, room) < len(lm.layers)
    (plain, everything), (_, least) = gradient(lm), gradient(lm, 1)
    some, kept = gradient(lm, room)
    assert all(map(torch.equal, plain, some))
    assert least < kept < everything and kept <= least + recompute.SLACK * share * everything


def test_of_layers_within_layers_the_outer_ones_are_taken():
    """Were the inner ones taken too, what they save would be given back in another order: wrong, and in silence."""
    config = ZambaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, layers_block_type=["mamba", "hybrid"] * 2, mamba_d_state=8, n_mamba_heads=2,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = LanguageModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), "rows")
    assert len(lm.layers) == 4
    plain, everything = gradient(lm)
    recomputed, less = gradient(lm, 1)
    assert all(map(torch.equal, plain, recomputed)) and less < everything


def test_layers_are_left_as_they_were_found():
    lm = LanguageModel(make_model("llama"), "tree")
    lm.module.train()
    gradient(lm, 1)
    assert all(layer.training and not layer.gradient_checkpointing for layer in lm.layers)
    assert not any("_gradient_checkpointing_func" in vars(layer) for layer in lm.layers)


@given(st.integers(1, 10**5), st.integers(1, 10**4), st.integers(1, 100))
def test_as_few_as_need_be(tokens, room, layers):
    def kept(recomputed: int) -> float:
        return tokens * (recomputed * recompute.INPUT + layers - recomputed)

    chosen = recompute.how_many(tokens, room, layers)
    assert chosen == layers or kept(chosen) <= recompute.SLACK * room * layers
    assert chosen == 0 or kept(chosen - 1) > recompute.SLACK * room * layers
