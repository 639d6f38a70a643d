"""The demo, shortened: the same road, with figures too few to be good."""

from __future__ import annotations

import pytest

from prefopt.config import Demo
from prefopt.demo import run as demo
from prefopt.errors import UserError


def test_the_demo_runs_from_a_corpus_to_the_frontier(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "CORPUS", 640)
    monkeypatch.setattr(demo, "PAIRS", 128)
    demo.run(Demo(out=tmp_path / "demo"))
    printed = capsys.readouterr().out
    assert "efficiency" in printed and "optimum at β = 0.1" in printed
    assert (tmp_path / "demo" / "dpo" / "model" / "model.safetensors").exists()


def test_the_demo_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        demo.run(Demo(out=tmp_path))
