"""Layers that are compiled, as on a GPU where it pays; here down to the last stage, which makes the kernels."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from torch._dynamo.utils import counters

from prefopt.model.language_model import LanguageModel
from prefopt.train import defaults
from prefopt.train.job import Job
from tests.train import tiny

COMPILE = LanguageModel.compile


@pytest.fixture
def compiled(monkeypatch):
    """How many graphs were made, where every run compiles."""
    monkeypatch.setattr(Job, "compiles", True)
    monkeypatch.setattr(LanguageModel, "compile", partialmethod(COMPILE, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize("settings", [{}, {"tokens_per_microbatch": 20}], ids=["whole", "recomputed"])
def test_a_run_is_the_same_and_a_step_costs_no_compilation(given, tmp_path, request, capsys, settings):
    settings = settings | dict(eval_fraction=0.25, batch_size=4, learning_rate=1e-3)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "plain", max_steps=6, **settings) == 0
    made = request.getfixturevalue("compiled")
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "few", max_steps=2, **settings) == 0
    few = made()
    assert few > 0 and "not compiled" not in capsys.readouterr().err
    torch._dynamo.reset()
    counters.clear()
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", max_steps=6, **settings) == 0
    assert made() == few
    for ours, theirs in zip(tiny.metrics(tmp_path / "run"), tiny.metrics(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert tiny.apart(tiny.weights(tmp_path / "run"), tiny.weights(tmp_path / "plain")) < 1e-4
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("run", "plain")]
    assert samples[0] == samples[1]


def test_what_compiles_wrongly_or_not_at_all_is_not_compiled(given, tmp_path, compiled, monkeypatch, capsys):
    def broken(graph, inputs):
        raise NotImplementedError("no such kernel")

    def wrong(graph, inputs):
        return lambda *args: [out * 1.5 if isinstance(out, torch.Tensor) else out for out in graph(*args)]

    for backend, why in ((broken, "no such kernel"), (wrong, "log-probs would differ by up to")):
        torch._dynamo.reset()
        monkeypatch.setattr(LanguageModel, "compile", partialmethod(COMPILE, backend=backend))
        assert tiny.cli("train", given.model, given.pairs, tmp_path / backend.__name__, max_steps=2) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "the layers of LlamaForCausalLM are not compiled, so a step takes longer" in said and why in said


def test_where_it_pays():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert defaults.pays_to_compile(gpu, 66 * 10**8, 1792, 10**6)
    assert not defaults.pays_to_compile(cpu, 66 * 10**8, 1792, 10**6)
    assert not defaults.pays_to_compile(gpu, 66 * 10**8, 1792, 10**5)  # over before it is paid back
    assert not defaults.pays_to_compile(gpu, 5 * 10**8, 3600, 10**9)  # the host is waited for
