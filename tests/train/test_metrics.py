import json
import math

import pytest
import torch

from prefopt.errors import UserError
from prefopt.train.metrics import Metrics, MetricsFile, peak_memory, read_metrics


def test_every_example_weighs_the_same_however_it_was_batched():
    values = torch.randn(12, dtype=torch.float64)
    whole, parts = Metrics(), Metrics()
    whole.add({"loss": values})
    for part in values.split([1, 5, 6]):
        parts.add({"loss": part})
    assert parts.reduce()["loss"] == pytest.approx(whole.reduce()["loss"], rel=1e-12)


def test_it_starts_anew_once_it_has_told():
    metrics = Metrics()
    metrics.add({"loss": torch.tensor([1.0, 3.0]), "kl": torch.tensor([2.0])})
    assert metrics.reduce() == {"loss": 2.0, "kl": 2.0} and metrics.reduce() == {}
    metrics.add({"loss": torch.tensor([5.0])})
    assert metrics.reduce() == {"loss": 5.0}


def test_no_gradient_is_kept_and_bool_and_half_are_added_precisely():
    metrics = Metrics()
    metrics.add({"loss": torch.ones(2, requires_grad=True), "rewards/accuracies": torch.tensor([True, False])})
    assert not metrics._sums["loss"].requires_grad
    metrics.add({"loss": torch.full((4096,), 1.0, dtype=torch.bfloat16)})
    assert metrics.reduce() == {"loss": 1.0, "rewards/accuracies": 0.5}


def test_a_metric_of_nothing_is_left_out():
    metrics = Metrics()
    metrics.add({"loss": torch.tensor([1.0]), "kl": torch.zeros(0)})
    assert metrics.reduce() == {"loss": 1.0}


def test_one_transfer_per_drain(monkeypatch):
    transfers = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: transfers.append(1) or original(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("waits for the device"))
    metrics = Metrics()
    for _ in range(10):
        metrics.add({"a": torch.ones(3), "b": torch.ones(3)})
    assert transfers == []
    metrics.reduce()
    assert transfers == [1]


def test_file_has_step_and_split_first_and_is_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.write(1, "train", {"loss": 0.5, "rewards/accuracies": 1.0})
        assert list(json.loads(path.read_text())) == ["step", "split", "loss", "rewards/accuracies"]
        file.write(2, "eval", {"loss": 0.25})
    assert read_metrics(path)[1] == {"step": 2, "split": "eval", "loss": 0.25}


def test_nonfinite_values_are_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.write(3, "train", {"loss": math.nan, "grad_norm": math.inf, "kl": -math.inf, "learning_rate": 1e-6})
    line = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"bare {text}"))
    assert line["loss"] is None and line["nonfinite"] == {"loss": "nan", "grad_norm": "inf", "kl": "-inf"}
    (record,) = read_metrics(path)
    assert math.isnan(record["loss"]) and record["grad_norm"] == math.inf and record["kl"] == -math.inf
    assert "nonfinite" not in record


def _five_steps(path):
    with MetricsFile(path) as file:
        for step in range(1, 6):
            file.write(step, "train", {"loss": 1 / step})
            if step % 2 == 0:
                file.write(step, "eval", {"loss": 2 / step})


@pytest.mark.parametrize("resume_at, kept", [(0, 0), (1, 1), (2, 2), (5, 7), (99, 7)])
def test_resume_keeps_what_the_checkpoint_knows(tmp_path, resume_at, kept):
    path = tmp_path / "metrics.jsonl"
    _five_steps(path)
    before = path.read_bytes().splitlines(keepends=True)
    with path.open("ab") as file:
        file.write(b'{"step": 6, "spl')
    with MetricsFile(path, resume_at=resume_at) as file:
        file.write(resume_at + 1, "train", {"loss": 9.0})
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:-1] == before[:kept] and json.loads(lines[-1])["step"] == resume_at + 1


def test_resume_without_a_file_and_a_new_run_over_an_old_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, resume_at=10).close()
    assert read_metrics(path) == []
    _five_steps(path)
    MetricsFile(path).close()
    assert read_metrics(path) == []


@pytest.mark.parametrize("bad", [b"{]\n", b"[1]\n", b'{"step": "1", "split": "train"}\n', b"\xff\n", b"3\n"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "split": "train"}\n' + bad + b'{"step": 2, "split": "train"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        MetricsFile(path, resume_at=2)
    assert len(path.read_bytes().splitlines()) == 3


def test_peak_memory_is_that_of_a_process():
    assert 1e7 < peak_memory() < 1e12
