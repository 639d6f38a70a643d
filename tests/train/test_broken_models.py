"""A model that is not what it says is refused in one sentence, by whatever reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefopt.cli import main
from tests.train import tiny


@pytest.fixture
def broken(given, tmp_path) -> Path:
    return Path(shutil.copytree(given.model, tmp_path / "broken"))


def lose(model: Path, prefix: str) -> None:
    kept = {name: value for name, value in tiny.weights_of(model).items() if not name.startswith(prefix)}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


def change(model: Path, **settings) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


BREAK = {
    "its weights are not whole": lambda model: lose(model, "model.layers.1."),
    "log-probs are not finite": lambda model: save_file(
        {name: value * torch.nan for name, value in load_file(model / "model.safetensors").items()},
        model / "model.safetensors",
        metadata={"format": "pt"},
    ),
    "no model can be loaded": lambda model: (model / "model.safetensors").write_bytes(
        (model / "model.safetensors").read_bytes()[:1000]
    ),
    "they do not belong together": lambda model: change(model, vocab_size=200),
    "it has no head that writes text": lambda model: change(model, architectures=["LlamaForSequenceClassification"]),
}


@pytest.mark.parametrize("said", BREAK)
def test_it_is_refused(given, broken, tmp_path, capsys, said):
    BREAK[said](broken)
    assert tiny.cli("train", str(broken), given.pairs, tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and said in err.splitlines()[-1] and str(broken) in err
    assert main(["score", "--policy", str(broken), "--data", given.pairs]) == 2
    assert said in capsys.readouterr().err


def test_a_head_that_is_not_there_is_not_made_up(given, broken, tmp_path, capsys):
    if "lm_head.weight" in tiny.weights_of(broken):
        lose(broken, "lm_head")
    change(broken, tie_word_embeddings=False)
    assert tiny.cli("sft", str(broken), given.pairs, tmp_path / "run") == 2
    assert "1 of the model's tensors are missing (lm_head.weight" in capsys.readouterr().err


def test_a_start_that_failed_is_in_nobodys_way(given, broken, tmp_path):
    """Nothing was run, so the same command may be given again."""
    weights = (broken / "model.safetensors").read_bytes()
    BREAK["its weights are not whole"](broken)
    assert tiny.cli("train", str(broken), given.pairs, tmp_path / "run") == 2
    (broken / "model.safetensors").write_bytes(weights)
    assert tiny.cli("train", str(broken), given.pairs, tmp_path / "run") == 0
    assert tiny.cli("train", str(broken), given.pairs, tmp_path / "run") == 2, "now it holds a run"


def test_the_folder_of_a_run_is_no_model_but_has_one(given, tmp_path, capsys):
    shutil.copytree(given.model, tmp_path / "run" / "model")
    run = str(tmp_path / "run")
    assert main(["score", "--policy", run, "--data", given.pairs]) == 2
    assert capsys.readouterr().err.endswith(f"did you mean {run}/model?\n")


def test_score_writes_over_no_file(given, tmp_path, capsys):
    data = Path(shutil.copy(given.pairs, tmp_path / "pairs.jsonl"))
    before = data.read_bytes()
    assert main(["score", "--policy", given.model, "--data", str(data), "--out", str(data)]) == 2
    assert capsys.readouterr().err.endswith(f"--out {data} exists: choose another file, or remove it\n")
    assert data.read_bytes() == before
