"""A step on a device that is not the host's: everything it computes with is there, and nothing of it is asked for.

Tensors on torch's ``meta`` device have shapes and no values: an operation on one of them and one of the host's is told
of here, as a GPU would refuse it, and a value that the host asks for is an error of torch's own.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prefopt.losses import LOSSES
from prefopt.model import flex
from prefopt.model.language_model import LanguageModel
from prefopt.rl.reward_model import RewardLoss, RewardObjective, load_reward_model
from prefopt.train import loop, optimizer
from prefopt.train.guard import Guard
from prefopt.train.metrics import Metrics
from tests.train import tiny
from tests.train.test_objective import objective


class OneDevice(TorchDispatchMode):
    """Lets no operation have tensors of two devices, but for a copy, and for a number, which any device takes."""

    def __init__(self):
        super().__init__()
        self.elsewhere = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in given if x.ndim or x.device.type != "cpu"}
        copies = func._schema.name in ("aten::_to_copy", "aten::copy_")
        assert copies or len(devices) < 2, f"{func}: {[(tuple(x.shape), x.device.type) for x in given]}"
        self.elsewhere += devices == {"meta"}
        return func(*args, **(kwargs or {}))


def test_it_sees_two_devices():
    there = torch.ones(3, device="meta")
    with OneDevice() as mode:
        assert (there + torch.tensor(1.0) + there).is_meta and mode.elsewhere == 2
        here, first = torch.ones(3), torch.tensor([0])
        for mixed in (lambda: there + here, lambda: there[first], lambda: here.add_(there)):
            with pytest.raises(AssertionError, match="meta"):
                mixed()
        with pytest.raises(RuntimeError, match="meta tensors"):
            there.sum().item()


def attend(query, key, value, mask, scaling, softcap):
    """What the kernel reads and gives, and its gradient's way."""
    i = torch.zeros(1, dtype=torch.long, device=query.device)
    blocks = [mask.kv_num_blocks, mask.kv_indices, mask.full_kv_indices, mask.q_indices, mask.full_q_indices]
    assert all(x.device == query.device for x in [key, value, mask.mask_mod(0, 0, i, i), *blocks])
    return query * (key.sum() + value.sum())


@pytest.fixture
def elsewhere(monkeypatch):
    """Has a model compute on the device, by the way that a GPU goes."""

    def step(made, job) -> int:
        """How many operations it has."""
        monkeypatch.setattr(flex, "takes", lambda query: True)
        monkeypatch.setattr(flex, "attend", attend)
        monkeypatch.setattr(LanguageModel, "computing", lambda self: nullcontext())  # there is no autocast of meta
        monkeypatch.setattr(Metrics, "send", lambda self: SimpleNamespace(there=bool, read=dict))
        monkeypatch.setattr(loop, "step_if", lambda optimizer, finite: None)  # it has no kernel for meta
        made.lm.module.to("meta")
        with OneDevice() as mode:
            batch = loop.cut(made, next(loop.batches(job.data.train, job.schedule, 0)))
            assert made.lm.way == "tree" and len(batch.parts) > 1
            weights = made.lm.module.named_parameters()
            state = loop.TrainingState(made, optimizer.build("adamw", weights), Guard())
            loop.train_step.__wrapped__(state, batch, job.schedule)
        assert all(p.grad.is_meta for p in made.lm.module.parameters())
        return mode.elsewhere

    return step


@pytest.fixture
def wide(given, tmp_path):
    return given._replace(model=tiny.model(tmp_path / "wide", "wide"))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"kto"}))
def test_a_step_is_all_there(wide, tmp_path, elsewhere, name):
    """Of any loss but KTO's, which asks how many are desirable."""
    job, ours = objective(wide, tmp_path, name, tokens_per_microbatch=60)
    assert elsewhere(ours, job) > 500


def test_so_is_a_reward_models(wide, tmp_path, elsewhere):
    job, _ = objective(wide, tmp_path, "dpo")
    lm = load_reward_model(wide.model, job.tokenizer, "float32", "cpu", longest=40)
    assert elsewhere(RewardObjective(RewardLoss(), lm, 60), job) > 500
