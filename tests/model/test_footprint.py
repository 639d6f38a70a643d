"""What is measured without content is what autograd keeps of real tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from prefopt.model import attention, footprint
from prefopt.model.footprint import kept_a_token
from prefopt.model.language_model import LanguageModel
from prefopt.train import defaults
from prefopt.types import Encoded
from tests.model.conftest import ROWS, TREE, make_model

UNMEASURED = {"mixtral", "deepseek-v3"}  # which expert reads a token depends on what was computed
UNFUSED = {"gemma2", "bloom"}  # their attention keeps a number for each query and key


def kept(lm: LanguageModel, tokens: int) -> int:
    """Bytes that autograd keeps of one sequence."""
    ids = np.arange(tokens, dtype=np.int32) % 90 + 3
    mask = np.ones(tokens - 1, bool)
    batch = lm.pack([Encoded(ids[:2], (ids[1:],), (mask,), (None,), "", "", "")])
    assert batch.ids.numel() == tokens
    weights = {p.untyped_storage().data_ptr() for p in lm.module.parameters()}
    alive = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), lm.computing():
        hidden = lm.hidden(batch)
    assert hidden.requires_grad
    return sum(t.untyped_storage().nbytes() for place, t in alive.items() if place not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted({*TREE, *ROWS} - UNMEASURED - UNFUSED))
def test_it_is_what_autograd_keeps(name, dtype, monkeypatch):
    monkeypatch.setattr(attention, "STRETCH", 1000)  # a short tree is computed in stretches, with keys in two of them
    lm = LanguageModel(make_model(name), "tree" if name in TREE else "rows", dtype)
    few, more = footprint.TOKENS
    real = (kept(lm, more) - kept(lm, few)) / (more - few)
    measured = kept_a_token(lm.bare.config, dtype)
    assert measured == pytest.approx(real, rel=0.2), measured / real


def test_a_model_that_cannot_be_measured_is_estimated_without_a_word(capfd):
    config = TREE["mixtral"]()
    assert kept_a_token(config, torch.float32) is None
    assert defaults.bytes_a_token(config, torch.float32, torch.device("cpu")) == 4 * 32 * 3 * 50
    assert capfd.readouterr() == ("", "")


def test_nothing_is_computed_and_nothing_held():
    """A model with more parameters than this machine has memory for."""
    large = AutoConfig.for_model("llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                                 num_attention_heads=64, num_key_value_heads=8)  # fmt: skip
    before = torch.random.get_rng_state()
    measured = kept_a_token(large, torch.bfloat16)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert 30 < measured / (2 * 8192 * 80) < 45
