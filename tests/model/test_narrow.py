"""Linear layers that compute in less than their weights are held in, against autocast's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prefopt.model.narrow import NarrowLinear, narrow
from prefopt.train import optimizer


def grads(module, x, upstream, times=1):
    module.zero_grad()
    x = x.clone().requires_grad_()
    for _ in range(times):
        with torch.autocast(x.device.type, torch.bfloat16):
            out = module(x)
        out.backward(upstream.to(out.dtype))
    return out, x.grad, *(p.grad for p in module.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device")])],
)  # fmt: skip
def test_it_is_autocasts_and_its_gradient_adds_up(bias, device):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 40, bias=bias), nn.SiLU(), nn.Linear(40, 8, bias=bias)).to(device)
    ours = copy.deepcopy(plain)
    assert len(narrow([ours])) == 2
    x, upstream = torch.randn(3, 7, 24, device=device), torch.randn(3, 7, 8, device=device)
    for times in (1, 3):
        for mine, theirs in zip(grads(ours, x, upstream, times), grads(plain, x, upstream, times), strict=True):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=3e-2)
    exact = copy.deepcopy(plain).double()
    exact.zero_grad()
    exact(x.double()).backward(3 * upstream.double())
    off, theirs = (float((m[0].weight.grad.double() - exact[0].weight.grad).norm()) for m in (ours, plain))
    assert off <= 1.05 * theirs  # added up in float32, where autocast rounds each part
    assert torch.equal(ours(x), plain(x))  # without autocast they are the same


def test_it_knows_when_its_weight_has_changed():
    linear = nn.Linear(4, 4, bias=False)
    narrow([nn.Sequential(linear)])
    first = linear.narrow(torch.bfloat16)
    made = optimizer.build("adamw", linear.named_parameters())
    optimizer.set_learning_rate(made, 0.5)
    for change in (
        lambda: optimizer.step_if(made, torch.tensor(True)),
        lambda: linear.load_state_dict({"weight": torch.randn(4, 4)}),
        lambda: linear.weight.detach().mul_(2),
    ):
        linear.weight.grad = torch.ones(4, 4)
        before = first.clone()
        change()
        assert linear.narrow(torch.bfloat16) is first  # where a recorded step reads it
        assert torch.equal(first, linear.weight.bfloat16()) and not torch.equal(first, before)


def test_what_is_no_plain_linear_layer_and_what_is_frozen():
    class Own(nn.Linear):
        pass

    parts = nn.Sequential(nn.Linear(3, 3), Own(3, 3))
    assert [type(part) for part in narrow([parts])] == [NarrowLinear] and type(parts[1]) is Own
    parts.requires_grad_(False)
    x = torch.randn(2, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        parts(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in parts.parameters())
    assert {*parts.state_dict()} == {"0.weight", "0.bias", "1.weight", "1.bias"}
