"""Gradients too small for a normal float are zero while a model computes, and only then."""

from __future__ import annotations

import torch

from prefopt.model.subnormal import flushed_to_zero


def product() -> float:
    return float(torch.tensor(1e-30) * 1e-10)


def test_only_within():
    assert product() > 0
    with flushed_to_zero():
        with flushed_to_zero():
            assert product() == 0
        assert product() == 0
    assert product() > 0


def test_a_backward_pass_within_has_none():
    """Weighed by 1e-42, as σ(−βh) may be, each product is below 1e-38."""
    for expected in (True, False):
        torch.manual_seed(0)
        layer = torch.nn.Linear(64, 64)
        small = 1e-42 if not expected else 1e-20

        @flushed_to_zero()
        def step(layer=layer, small=small):
            (layer(torch.randn(512, 64)).sum() * small).backward()

        step()
        assert bool(layer.weight.grad.any()) is expected
