"""One thread and no network, whatever the machine; and a cache that is gone with the tests."""

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the order of sums must not depend on the machine
# Nothing is asserted on wall-clock time, and every run tries the same examples.
hypothesis.settings.register_profile("any machine", deadline=None, derandomize=True)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many responses models were asked about, a few at a time, with a store of its own."""
    from prefopt.model import scoring

    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    read, counts = scoring._read, []

    def counting(*arguments: Any) -> Any:
        found = read(*arguments)
        counts.append(len(found))
        return found

    monkeypatch.setattr(scoring, "_read", counting)
    return counts


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PREFOPT_CACHE"] = str(tmp_path_factory.mktemp("prefopt-cache"))


@pytest.fixture
def flexible(monkeypatch):
    """FlexAttention on a CPU, with its gradient."""
    import torch
    from torch.nn.attention import flex_attention

    from prefopt.model import flex
    from prefopt.model.attention import Tree

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "takes", lambda query: True)
    monkeypatch.setattr(flex, "_kernel", lambda query: flex._compiled("aot_eager"))
    monkeypatch.setattr(Tree, "plan", lambda self, windows, device: [self.block_mask(w, device) for w in windows])
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
