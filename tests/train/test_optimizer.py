import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from prefopt.errors import UserError
from prefopt.train import rng
from prefopt.train.optimizer import build, flatten_state, learning_rate, restore_state, set_learning_rate

KINDS = ["adamw", "rmsprop"]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 1, bias=True))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        set_learning_rate(optimizer, learning_rate(step, 0.01, 2, 8, "cosine"))
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_optimizer_takes_the_same_steps_to_the_bit(tmp_path, kind):
    whole = network()
    train(whole, build(kind, whole.named_parameters()), range(1, 7))

    first = network()
    optimizer = build(kind, first.named_parameters())
    train(first, optimizer, range(1, 4))
    save_file(flatten_state(optimizer), tmp_path / "optimizer.safetensors")

    second = network(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = build(kind, second.named_parameters())
    restore_state(resumed, load_file(tmp_path / "optimizer.safetensors"))
    train(second, resumed, range(4, 7))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_is_flat_and_named():
    model = network()
    optimizer = build("adamw", model.named_parameters())
    assert flatten_state(optimizer) == {}
    train(model, optimizer, range(1, 3))
    state = flatten_state(optimizer)
    assert set(state) == {f"{n}.{k}" for n, _ in model.named_parameters() for k in ("step", "exp_avg", "exp_avg_sq")}
    assert state["0.weight.step"].tolist() == [2.0]
    assert state["0.weight.exp_avg"].shape == (7, 5)


def test_a_parameter_of_one_element_keeps_its_shape():
    model = network()
    optimizer = build("adamw", model.named_parameters())
    train(model, optimizer, range(1, 3))
    fresh = build("adamw", model.named_parameters())
    restore_state(fresh, flatten_state(optimizer))
    assert fresh.state[model[2].bias]["exp_avg"].shape == (1,)
    assert fresh.state[model[2].bias]["step"].shape == ()


def test_a_restored_state_owns_its_memory():
    model = network()
    optimizer = build("adamw", model.named_parameters())
    train(model, optimizer, range(1, 3))
    state = {name: tensor.clone() for name, tensor in flatten_state(optimizer).items()}
    fresh = build("adamw", model.named_parameters())
    restore_state(fresh, state)
    before = state["0.weight.exp_avg"].clone()
    train(model, fresh, range(3, 5))
    assert torch.equal(state["0.weight.exp_avg"], before)


def test_a_parameter_that_never_had_a_gradient_has_no_state():
    model = network()
    model.register_parameter("unused", nn.Parameter(torch.ones(3, 3)))
    optimizer = build("adamw", model.named_parameters())
    train(model, optimizer, range(1, 3))
    fresh = build("adamw", model.named_parameters())
    restore_state(fresh, flatten_state(optimizer))
    assert model.unused not in fresh.state and len(fresh.state) == len(optimizer.state)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s | {"ghost.exp_avg": torch.ones(1)}, "'ghost'"),
        (lambda s: {n: t for n, t in s.items() if n != "0.weight.exp_avg_sq"}, "exp_avg, step for '0.weight'"),
        (lambda s: s | {"0.weight.exp_avg": torch.ones(2, 2)}, "another shape"),
    ],
)
def test_the_state_of_another_model_is_refused(spoil, message):
    model = network()
    optimizer = build("adamw", model.named_parameters())
    train(model, optimizer, range(1, 3))
    with pytest.raises(UserError, match=message):
        restore_state(build("adamw", model.named_parameters()), spoil(flatten_state(optimizer)))


def test_the_state_of_another_optimizer_is_refused():
    model = network()
    optimizer = build("rmsprop", model.named_parameters())
    train(model, optimizer, range(1, 3))
    with pytest.raises(UserError, match=r"square_avg.*AdamW"):
        restore_state(build("adamw", model.named_parameters()), flatten_state(optimizer))


def test_only_matrices_decay():
    """With no gradient a decoupled decay of 0.5 at rate 0.1 leaves 1 − 0.05 of each weight."""
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build("adamw", model.named_parameters(), weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (0.95 if parameter.ndim == 2 else 1.0))


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    names = [name for group in build("adamw", model.named_parameters()).param_groups for name in group["param_names"]]
    assert sorted(names) == ["1.bias", "1.weight", "2.bias", "2.weight"]


def test_a_decay_without_effect_is_an_error():
    with pytest.raises(UserError, match="weight_decay"):
        build("rmsprop", network().named_parameters(), weight_decay=0.1)


def test_rmsprop_takes_the_step_worked_out_by_hand():
    """v = 0.01·g² after one step from 0, so the step is lr·g / (0.1·|g| + 1e-8) = 10·lr·sign(g)."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = build("rmsprop", [("w", weight)])
    weight.grad = torch.tensor([[3.0, -0.5]])
    set_learning_rate(optimizer, 1e-3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[0.99, -1.99]]))


def test_rates_by_hand():
    """Warm-up of 2 in 6 steps: t = (step − 2)/5."""
    assert [learning_rate(s, 1.0, 2, 6, "constant") for s in range(1, 7)] == [0.5, 1, 1, 1, 1, 1]
    assert [learning_rate(s, 1.0, 2, 6, "linear") for s in range(1, 7)] == pytest.approx([0.5, 1, 0.8, 0.6, 0.4, 0.2])
    # Without a warm-up: t = (step − 1)/3, and (1 + cos πt)/2 is 1, 3/4, 1/4.
    assert [learning_rate(s, 2.0, 0, 3, "cosine") for s in range(1, 4)] == pytest.approx([2, 1.5, 0.5])


@given(st.floats(1e-8, 1.0), st.integers(0, 50), st.integers(1, 200), st.sampled_from(["constant", "linear", "cosine"]))
def test_rates_rise_to_the_peak_and_never_again(peak, warmup, total, kind):
    rates = [learning_rate(step, peak, warmup, total, kind) for step in range(1, total + 1)]
    assert all(0 < rate <= peak for rate in rates)
    top = max(warmup, 1)
    assert rates[:top] == sorted(rates[:top]) and rates[top - 1 :] == sorted(rates[top - 1 :], reverse=True)
    if total >= top:
        assert rates[top - 1] == peak


def test_rates_past_the_end_are_zero_but_for_constant():
    assert learning_rate(12, 1.0, 2, 10, "linear") == learning_rate(12, 1.0, 2, 10, "cosine") == 0
    assert math.isclose(learning_rate(12, 1.0, 2, 10, "constant"), 1.0)


@pytest.mark.parametrize("draws", [0, 1])
def test_random_states_come_back_from_tensors(tmp_path, draws):
    """With an odd number of normal draws, both Python and NumPy hold one back."""

    def draw():
        return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.rand(1).item()]

    for _ in range(draws):
        random.gauss(0, 1), np.random.randn()
    save_file(rng.capture(), tmp_path / "rng.safetensors")
    expected = [draw() for _ in range(3)]
    rng.restore(load_file(tmp_path / "rng.safetensors"))
    assert [draw() for _ in range(3)] == expected
