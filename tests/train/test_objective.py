"""A real model, real packing and the store: policy = reference, and steps that do not depend on how they are cut."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest
import torch

from prefopt import config
from prefopt.data import plan
from prefopt.display import Display
from prefopt.errors import UserError
from prefopt.losses import LOSSES, make_loss
from prefopt.model import scoring
from prefopt.train import loop, reference, run
from prefopt.train.job import Job
from prefopt.train.objective import Objective
from prefopt.types import LossOutput, Unit
from tests.train import tiny


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


def data_for(given, unit: Unit) -> str:
    return {"ranking": given.rankings, "response": given.unpaired}.get(unit, given.pairs)


def objective(given, out: Path, loss: str, **settings) -> tuple[Job, Objective]:
    """As a run makes it, the reference's figures from the store."""
    made = make_loss(loss)
    data = data_for(given, made.unit)
    resolved = config.Train(model=given.model, data=(data,), out=out / "run", loss=loss, batch_size=8, **settings)
    with Display(0, "", terminal=False, file=io.StringIO()) as display:
        job = Job.plan(resolved, made, display)
        return job, run.objective(job, display)


WITH_REFERENCE = [name for name, loss in LOSSES.items() if loss.needs_reference]


@pytest.mark.parametrize("budget", [1, 70, 100_000])
def test_policy_equal_to_reference_gives_ln_2(given, tmp_path, budget):
    """For every example to 1e-5, all rewards 0, in any packing: the reference's pass was another one."""
    objective(given, tmp_path, "dpo")  # fills the store, 2,048 tokens at once
    job, ours = objective(given, tmp_path, "dpo", tokens_per_microbatch=budget)
    groups = plan.microbatches(job.data.train, budget)
    outputs = [ours(ours.ready(group)) for group in groups]
    assert sum(len(out.loss) for out in outputs) == 24
    for out in outputs:
        torch.testing.assert_close(out.loss, torch.full_like(out.loss, math.log(2)), atol=1e-5, rtol=0)
        for side in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            torch.testing.assert_close(out.metrics[side], torch.zeros_like(out.loss), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_step_0_of_every_loss_passes(given, tmp_path, name):
    job, ours = objective(given, tmp_path, name)
    reference.verify_step_zero(job, ours)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "plackett_luce"])
def test_figures_of_another_model_stop_the_run(given, tmp_path, monkeypatch, capsys, name):
    """The store holds what is wrong, under the right key: step 0 finds it, and says what may be the cause."""
    scored = scoring._read
    data = data_for(given, make_loss(name).unit)
    with monkeypatch.context() as patched:
        # From the responses' length, so that no difference of two cancels it.
        patched.setattr(scoring, "_read", lambda *a: [(key, total - n, n) for key, total, n in scored(*a)])
        assert tiny.cli("train", given.model, data, tmp_path / "a", loss=name) == 1
    assert tiny.cli("train", given.model, data, tmp_path / "b", loss=name) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"prefopt: step 0: policy and reference should agree, but (\d+) of \1 responses", last)
    assert f"{data}:" in last and "stale" in last and "dropout is on" in last and "adapter" in last
    assert not list(tmp_path.glob("*/model")) and not list(tmp_path.glob("*/checkpoints/*"))


def test_dropout_stops_the_run(given, tmp_path, monkeypatch, capsys):
    def with_dropout(job, objective, display):
        known = reference.reference_sums(job, objective, display)
        body = objective.lm.bare.base_model
        body.norm = torch.nn.Sequential(body.norm, torch.nn.Dropout(0.3))
        return known

    monkeypatch.setattr(run, "reference_sums", with_dropout)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run") == 1
    assert "dropout is on" in capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_reports_no_rewards_is_checked_too(given, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from prefopt.types import LossOutput\n"
        "class Plain:\n"
        "    def __call__(self, policy, reference, preferences):\n"
        "        s = policy.sum - reference.sum\n"
        "        return LossOutput(-(s[preferences.chosen] - s[preferences.rejected]))\n"
    )
    job, ours = objective(given, tmp_path, f"{file}:Plain")
    reference.verify_step_zero(job, ours)
    wrong = {key: (total - len(key) * (i % 2), n) for i, (key, (total, n)) in enumerate(ours.reference.items())}
    with pytest.raises(Exception, match="step 0"):
        reference.verify_step_zero(job, Objective(ours.loss, ours.lm, wrong, 2048))


# --- the gradient does not depend on how a step is cut up -----------------------------------------


@pytest.mark.parametrize("name", ["dpo", "kto", "sft", "orpo", "plackett_luce"])
def test_one_micro_batch_of_8_equals_8_of_one(given, tmp_path, monkeypatch, name):
    counts: dict[int, list[int]] = {1: [], 10**6: []}
    cut = plan.microbatches

    def counting(batch, budget):
        groups = cut(batch, budget)
        counts.get(budget, []).append(len(groups))  # and others without a gradient
        return groups

    monkeypatch.setattr(loop.plan, "microbatches", counting)
    made = make_loss(name)
    command = ["sft"] if name == "sft" else ["train"]
    more = {} if name == "sft" else {"loss": name}
    outs = []
    for budget in counts:
        outs.append(tmp_path / str(budget))
        code = tiny.cli(
            *command, given.model, data_for(given, made.unit), outs[-1],
            batch_size=8, tokens_per_microbatch=budget, learning_rate=1e-4, **more,
        )  # fmt: skip
        assert code == 0
    assert max(counts[10**6]) == 1 and counts[1].count(8) >= 4
    assert tiny.apart(*map(tiny.weights, outs)) < 1e-6
    assert tiny.apart(tiny.weights(outs[0]), tiny.weights_of(given.model)) > 1e-4, "it did train"
    for one, other in zip(*map(tiny.metrics, outs), strict=True):
        figures = one.keys() - {"rewards/accuracies", "learning_rate"}  # at step 1 each margin is rounding
        assert {k: one[k] for k in figures} == pytest.approx({k: other[k] for k in figures}, abs=1e-3)


def test_and_averages_of_micro_batches_would_be_seen(given, tmp_path, monkeypatch):
    """The control: each micro-batch's own mean, as gradient accumulation is often done."""
    call = Objective.__call__

    def averaged(self, batch, baseline=None):
        out = call(self, batch, baseline)
        return LossOutput(out.loss * (4 / len(out.loss)), out.metrics)

    monkeypatch.setattr(Objective, "__call__", averaged)
    monkeypatch.setattr(run, "verify_step_zero", lambda *_: None)
    outs = [tmp_path / "whole", tmp_path / "cut"]
    for out, budget in zip(outs, (10**6, 100), strict=True):
        settings = dict(batch_size=8, tokens_per_microbatch=budget, learning_rate=1e-4)
        assert tiny.cli("train", given.model, given.pairs, out, **settings) == 0
    assert tiny.apart(*map(tiny.weights, outs)) > 1e-5


def test_weights_of_another_shape_are_refused(given, tmp_path):
    _, ours = objective(given, tmp_path, "sft")
    saved = {name: tensor.clone() for name, tensor in ours.lm.weights().items()}
    ours.lm.load_weights(saved)
    name = next(iter(saved))
    for other in (saved | {name: saved[name][:1]}, {k: v for k, v in saved.items() if k != name}):
        with pytest.raises(UserError, match=f"has no {name} of this model's shape"):
            ours.lm.load_weights(other)
