"""A model and data that many runs share; nothing writes to their folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from prefopt import report
from prefopt.train import evidence, metrics
from tests.train import tiny


class Given(NamedTuple):
    model: str
    pairs: str
    rankings: str
    unpaired: str


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report and short samples, which take longer than these runs; fixtures of a module's scope have both."""
    monkeypatch.setattr(report, "write", lambda *_: None)
    monkeypatch.setattr(evidence, "SAMPLE_TOKENS", 2)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's figures as on a GPU: not there before they are waited for."""
    monkeypatch.setattr(metrics.Sent, "there", lambda self: False)


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder: Path = tmp_path_factory.mktemp("given")
    torch.set_num_threads(1)
    return Given(
        tiny.model(folder / "model"),
        tiny.pairs(folder / "pairs.jsonl"),
        tiny.rankings(folder / "rankings.jsonl"),
        tiny.unpaired(folder / "unpaired.jsonl"),
    )
