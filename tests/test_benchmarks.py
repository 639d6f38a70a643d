"""The benchmarks run from end to end at toy size, and what they compare computes the same thing."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import __main__ as driver
from benchmarks import growth, head, report, sampling

pytestmark = pytest.mark.slow


def test_side_by_side(tmp_path, capsys):
    schemes = ["prefopt", "padded"]
    once = ["--size", "toy", "--workloads", "hh", "--batch-sizes", "4", "--rounds", "1", "--threads", "1"]
    driver.main([*once, "--schemes", *schemes, "--out", str(tmp_path)])

    rows = report.rows(json.loads((tmp_path / "results.json").read_text())["records"])
    assert [scheme for _, _, scheme in rows] == schemes
    ours = rows["hh", 4, "prefopt"].losses
    assert ours[0] == pytest.approx(0.693147, abs=1e-5)
    assert abs(ours[1] - ours[0]) > 1e-5  # something was learned, so equal losses mean equal updates
    for row in rows.values():
        assert row.losses == pytest.approx(ours, abs=1e-4)
        assert row.pairs_per_second > 0 and row.memory > 1e8

    written = (tmp_path / "RESULTS.md").read_text()
    assert "## hh, 4 pairs a step" in written and "## Open" in written
    assert "padded" in (tmp_path / "results.svg").read_text()
    assert "prefopt" in capsys.readouterr().out


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_side_by_side_on_a_gpu(tmp_path):
    driver.main(
        ["--device", "cuda", "--size", "toy", "--workloads", "hh", "--batch-sizes", "4", "--rounds", "1",
         "--schemes", "prefopt", "padded", "--out", str(tmp_path)]
    )  # fmt: skip
    rows = report.rows(json.loads((tmp_path / "results.json").read_text())["records"])
    ours, padded = (rows["hh", 4, scheme] for scheme in ("prefopt", "padded"))
    assert padded.losses == pytest.approx(ours.losses, abs=1e-2)  # in bf16


def test_heads_beside_one_another(monkeypatch, capsys):
    monkeypatch.setitem(head.SHAPES, "cpu", ((16, 64, 200),))
    monkeypatch.setattr("prefopt.model.logprobs.CHUNK_BYTES", 128)
    head.main(["--repeats", "1"])
    assert "prefopt" in capsys.readouterr().out
    rows = {name: off for name, *_, off in head.rows("cpu", 16, 64, 200, 1)}
    assert float(rows["logits"]) == 0 and float(rows["prefopt"]) < 1e-6


def test_a_turn_that_fails_is_named_and_not_counted():
    failed = {"workload": "hh", "batch_size": 8, "scheme": "trl", "failed": "not done after 1 s"}
    settings = {"date": "today", "size": "toy", "device": "cpu", "threads": 1, "data": "made"}
    written = report.written(settings | {"left_out": [], "records": [failed]})
    assert "hh, 8 pairs, trl: not done after 1 s" in written


def test_a_gpus_figures_stand_beside_the_cpus(tmp_path):
    record = {"workload": "hh", "batch_size": 16, "turn": 0, "date": "today", "untimed": 2, "losses": [0.7] * 4}
    record |= {"reference_seconds": 0.0, "useful_tokens": [9] * 4, "useful_flops": [4e9] * 4, "peak_flops": 1e10}
    records = [record | {"scheme": "prefopt", "seconds": [9.0, 9.0, 1.0, 1.0], "memory": 5e9, "others": 0.0}]
    for scheme, seconds in (("trl", 5.0), ("trl-best", 4.0), ("trl-best-8", 3.0)):
        records.append(records[0] | {"scheme": scheme, "seconds": [9.0, 9.0, seconds, seconds], "memory": 1e10})
    gpu = {"date": "today", "size": "7B", "device": "cuda", "threads": 1, "data": "made", "left_out": []}
    gpu |= {"records": records, "machine": {"gpu": "a card"}}
    for folder, results in ((tmp_path, gpu | {"device": "cpu", "records": []}), (tmp_path / "card", gpu)):
        folder.mkdir(exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
    report.write(tmp_path / "card")
    report.write(tmp_path)
    written = (tmp_path / "RESULTS.md").read_text()
    assert "### 7B parameters on one a card, bf16" in written and "[card](card/RESULTS.md)" in written
    for figure in ("≥ 4 | 5.00 ✓", "≥ 2 | 3.00 ✓", "≤ 0.6 | 0.50 ✓", "≥ 0.4 | 0.40 ✓"):  # the best of TRL's settings
        assert figure in written
    assert "the first 2 steps of a turn are not timed" in (tmp_path / "card/RESULTS.md").read_text()


def test_growth(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "SMALL", {"pairs": [20], "responses": [3]})
    growth.main(["--toy", "--axes", "pairs", "--threads", "1", "--out", str(tmp_path)])
    growth.main(["--toy", "--axes", "responses", "--add", "--threads", "1", "--out", str(tmp_path)])
    points = json.loads((tmp_path / "growth.json").read_text())
    assert [point["kept"] for point in points["pairs"]] == [20]
    assert all(point["seconds"] > 0 for point in points["responses"])
    assert (tmp_path / "growth.svg").exists()


def test_sampling(tmp_path):
    toy = ["--toy", "--rounds", "2", "--batches", "1", "--new-tokens", "6", "--threads", "1"]
    sampling.main([*toy, "--out", str(tmp_path)])
    written = (tmp_path / "SAMPLING.md").read_text()
    assert written.count("| yes |") == 2 and "| NO |" not in written
