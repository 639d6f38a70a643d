import json
import math
from pathlib import Path

import pytest
import yaml

from prefopt.config import Train
from prefopt.train.card import model_card, versions, write_results

RESULTS = {
    "method": "dpo",
    "loss": "DPO(beta=0.1, label_smoothing=0.0)",
    "steps": 1200,
    "training": {"before": {"loss": 0.6931}, "after": {"loss": 0.4}},
    "held_out": {
        "before": {"loss": 0.6931},
        "after": {
            "loss": 0.5,
            "rewards/accuracies": 0.712,
            "rewards/accuracies_low": 0.65,
            "rewards/accuracies_high": 0.77,
        },
    },
    "data": {"fingerprint": "0123abcd", "train_rows": 2312},
}


def _config(**more):
    defaults = {"model": "runs/sft/model", "data": ("prefs.jsonl", "more.jsonl=2"), "out": Path("runs/dpo")}
    return Train(**(defaults | {"loss_options": {"beta": 0.1}} | more))


def _front_matter(card):
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_card_has_what_the_hub_and_a_person_need():
    head, body = _front_matter(model_card(_config(model="org/base-1B"), RESULTS))
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prefopt", "dpo"],
        "base_model": "org/base-1B",
    }
    for wanted in (
        "# dpo\n",
        "org/base-1B, trained by prefopt with dpo",
        "1,200 optimizer steps",
        "| reward accuracy | – | – | – | 0.712 |",
        "0.650–0.770",
        "| training | more.jsonl=2 |",
        "| fingerprint | 0123abcd |",
        "| train rows | 2,312 |",
        "| beta | 0.1 |",
        "| batch\\_size | 32 |",
        'AutoModelForCausalLM.from_pretrained("',
    ):
        assert wanted in body


def test_a_folder_is_no_base_model(tmp_path, monkeypatch):
    assert "base_model" not in _front_matter(model_card(_config(), RESULTS))[0]
    monkeypatch.chdir(tmp_path)
    Path("runs/base").mkdir(parents=True)
    assert "base_model" not in _front_matter(model_card(_config(model="runs/base"), RESULTS))[0]


def test_warnings_are_on_the_card():
    assert "- No held-out data" in model_card(_config(), RESULTS | {"held_out": None})


def test_hostile_text_stays_in_its_cell():
    evil = "x | y |\n\n# Heading\n<script>alert(1)</script> [link](http://e) ![i](u) `code` \x1b[2J"
    results = RESULTS | {"method": "---\nevil: 1\n", "loss": evil, "data": {"fingerprint": evil}}
    card = model_card(_config(model=evil, data=(evil,)), results)
    head, body = _front_matter(card)
    assert set(head) == {"library_name", "pipeline_tag", "tags"} and head["tags"] == ["prefopt"]
    assert "<script" not in card and "\x1b" not in card and "[link]" not in card.replace("\\[link\\]", "")
    assert [line for line in body.splitlines() if line.startswith("# ")] == ["# dpo"]
    (row,) = [line for line in body.splitlines() if line.startswith("| training | x")]
    assert row.replace("\\|", "").count("|") == 3


def test_secrets_in_paths_are_on_no_card(tmp_path):
    config = _config(data=("https://me:hunter2@host/p.jsonl",))
    write_results(tmp_path / "results.json", config, RESULTS)
    assert "hunter2" not in model_card(config, RESULTS) + (tmp_path / "results.json").read_text()


def test_results_are_sorted_stable_and_strict_json(tmp_path):
    file = tmp_path / "results.json"
    write_results(file, _config(), RESULTS | {"training": {"after": {"loss": math.nan, "kl": -math.inf}}})
    first = file.read_bytes()
    write_results(
        file, _config(), dict(reversed(RESULTS.items())) | {"training": {"after": {"kl": -math.inf, "loss": math.nan}}}
    )
    assert file.read_bytes() == first and [p.name for p in tmp_path.iterdir()] == ["results.json"]
    document = json.loads(first, parse_constant=lambda text: pytest.fail(f"bare {text}"))
    assert list(document) == sorted(document)
    assert document["training"]["after"] == {"loss": "nan", "kl": "-inf"}
    assert document["config"]["beta"] == 0.1 and document["config"]["label_smoothing"] == 0.0
    assert document["versions"] == versions() and set(versions()) == {"python", "prefopt", "torch", "transformers"}
    assert document["config"]["data"] == ["prefs.jsonl", "more.jsonl=2"]
