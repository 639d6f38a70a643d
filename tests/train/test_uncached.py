"""A run without a cache: nothing is kept for the next one, and nothing else is lost."""

from __future__ import annotations

import tempfile

from tests.train import tiny


def test_a_run_goes_on_where_nothing_can_be_cached(given, tmp_path, monkeypatch, capsys):
    """Not the encoded data, nor the reference's figures: its bits are any run's, and it leaves nothing behind."""
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "cached") == 0
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    capsys.readouterr()
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(f"warning: encoded data is not cached in {tmp_path}/file/cache: Not a directory") == 1
    assert said.count("reference.sqlite: the reference store cannot be used (Not a directory)") == 1
    assert "PREFOPT_CACHE" in said and "every run computes its log-probs anew" in said
    assert tiny.same(tiny.weights(tmp_path / "run"), tiny.weights(tmp_path / "cached"))
    assert not [*(tmp_path / "temporary").iterdir()]
