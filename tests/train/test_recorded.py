"""Whole runs whose passes are recorded, with a recorder for a CPU that does the work each time anew."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch._dynamo.utils import counters

from prefopt.model import graphs
from prefopt.model.graphs import Graphs
from prefopt.model.language_model import LanguageModel
from prefopt.train import defaults
from tests.model.test_graphs import imitated
from tests.train import tiny


@pytest.fixture
def wide(given, tmp_path):
    """Heads as wide as the kernel needs them."""
    return given._replace(model=tiny.model(tmp_path / "wide", "wide"))


@pytest.fixture
def kept(monkeypatch):
    """What was recorded in each run, which on a CPU would be nothing."""
    found: list[Graphs] = []

    @contextmanager
    def recorded(self, note):
        self.graphs = self._graphs(note)
        self.graphs.made = []
        self.graphs.recorder = imitated(self.graphs.made)
        found.append(self.graphs)
        yield
        self.graphs = None

    monkeypatch.setattr(LanguageModel, "recorded", recorded)
    monkeypatch.setattr(graphs, "_scarce", lambda: False)
    return found


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "kto"}, {"tokens_per_microbatch": 60}, {"tokens_per_microbatch": 24}],
    ids=["dpo", "kto", "several micro-batches", "some recomputed"],
)
def test_a_run_is_the_same(wide, tmp_path, flexible, request, monkeypatch, settings):
    monkeypatch.setattr(graphs, "BLOCK", 8)
    settings = settings | dict(eval_fraction=0.25, batch_size=4, learning_rate=1e-3, eval_every=3, max_steps=6)
    assert tiny.cli("train", wide.model, wide.pairs, tmp_path / "plain", **settings) == 0
    kept = request.getfixturevalue("kept")
    assert tiny.cli("train", wide.model, wide.pairs, tmp_path / "run", **settings) == 0
    assert len(kept[0].made) == 2 * len(kept[0].known)  # gradients lie where they lay
    recomputed = kept[0].eager > graphs.EAGER
    assert kept[0].known and not kept[0].given_up
    assert recomputed == (settings.get("tokens_per_microbatch") == 24)
    for ours, theirs in zip(tiny.metrics(tmp_path / "run"), tiny.metrics(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert tiny.apart(tiny.weights(tmp_path / "run"), tiny.weights(tmp_path / "plain")) < 1e-4


@pytest.mark.parametrize("settings", [{}, {"tokens_per_microbatch": 24}], ids=["whole", "some recomputed"])
def test_a_run_with_compiled_layers_is_the_same(wide, tmp_path, monkeypatch, capsys, settings):
    settings = settings | dict(eval_fraction=0.25, batch_size=4, learning_rate=1e-3, eval_every=3, max_steps=6)
    assert tiny.cli("train", wide.model, wide.pairs, tmp_path / "plain", **settings) == 0
    asked, compile = [], LanguageModel.compile
    monkeypatch.setattr(defaults, "pays_to_compile", lambda *run: asked.append(run) or True)
    monkeypatch.setattr(LanguageModel, "compile", lambda lm, wanted=True: compile(lm, wanted, "aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    assert tiny.cli("train", wide.model, wide.pairs, tmp_path / "run", **settings) == 0
    assert counters["stats"]["unique_graphs"] >= 4
    assert capsys.readouterr().err.count("layers are compiled") == 1
    [(device, parameters, tokens)] = asked
    assert device.type == "cpu" and parameters == sum(w.numel() for w in tiny.weights(tmp_path / "run").values())
    assert tokens > 6 * 4 * 10  # steps of four pairs
    for ours, theirs in zip(tiny.metrics(tmp_path / "run"), tiny.metrics(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert tiny.apart(tiny.weights(tmp_path / "run"), tiny.weights(tmp_path / "plain")) < 1e-4


def test_layers_are_compiled_where_a_gpu_has_enough_to_do():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not defaults.pays_to_compile(cpu, 7 * 10**9, 10**9)
    assert defaults.pays_to_compile(gpu, 7 * 10**9, 2 * 10**6)
    assert not defaults.pays_to_compile(gpu, 5 * 10**8, 2 * 10**6)


def test_what_needs_their_memory_gets_it(wide, tmp_path, flexible, kept, monkeypatch, capsys):
    """Three times; then there are none any more, which is said."""
    hidden, failed = LanguageModel._hidden, []

    def full(self, batch, again=0):
        if self.graphs and self.graphs.known and not torch.is_grad_enabled():
            failed.append(len(self.graphs.known))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(self, batch, again)

    monkeypatch.setattr(LanguageModel, "_hidden", full)
    settings = dict(eval_fraction=0.25, batch_size=4, eval_every=2, max_steps=10)
    assert tiny.cli("train", wide.model, wide.pairs, tmp_path / "run", **settings) == 0
    assert len(failed) == graphs.MAKING_ROOM and kept[0].given_up and not kept[0].known
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("not recorded as CUDA graphs") == 1 and "need the memory they take" in said
    assert len(tiny.metrics(tmp_path / "run")) > 10


def test_a_long_batch_takes_the_memory_where_it_is_scarce(monkeypatch):
    scarce = False
    monkeypatch.setattr(graphs, "_scarce", lambda: scarce)
    made = Graphs(lambda batch: batch, [], 1, lambda: None, print, imitated(), known={128: object()}, eager=2)
    batch = type("Batch", (), {"ids": torch.zeros(1, 256)})
    assert made.hidden(batch, fits=False) is None and made.known
    scarce = True
    assert made.hidden(batch, fits=False) is None and not made.known and made.made_room == 1
    assert made.hidden(batch, fits=False) is None and made.made_room == 1  # there is nothing to take


def test_few_lengths_and_little_that_is_filled():
    for tokens in (*range(1, 300), 2047, 2048, 2049, 5001, 16384, 16385, 100_000):
        length = graphs.filled(tokens)
        assert tokens <= length < max(257, tokens + max(128, tokens / 8)) and length % 128 == 0
        assert graphs.filled(length) == length
