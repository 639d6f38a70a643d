"""Whole runs, as a person types them: every loss and setting trains, and what is written is what happened."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt import config
from prefopt import train as api
from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.errors import UserError
from prefopt.losses import LOSSES, make_loss
from prefopt.model import language_model, load, scoring
from prefopt.model.fingerprint import model_fingerprint
from prefopt.model.language_model import LanguageModel
from prefopt.train import reference, run, session
from tests.train import tiny

ALWAYS = {"step", "split", "loss", "grad_norm", "learning_rate"}
OF_PAIRS = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")} | {
    "logps/chosen", "logps/rejected",
}  # fmt: skip
OF_UNIT = {
    "pair": OF_PAIRS,
    "ranking": OF_PAIRS,
    "response": OF_PAIRS - {"rewards/margins", "rewards/accuracies"},
    "demonstration": {"logps/chosen"},
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_and_reports_under_the_contracts_names(given, tmp_path, name):
    unit = make_loss(name).unit
    data = {"ranking": given.rankings, "response": given.unpaired}.get(unit, given.pairs)
    assert tiny.cli("train", given.model, data, tmp_path / "run", loss=name, max_steps=3, batch_size=8) == 0
    lines = [line for line in tiny.metrics(tmp_path / "run") if line["split"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        unknown = set() if line["step"] > 1 else {"rewards/accuracies"}  # of the step that begins at the reference
        assert line.keys() | unknown >= ALWAYS | OF_UNIT[unit]
        assert all(math.isfinite(value) for key, value in line.items() if key != "split")
    assert tiny.apart(tiny.weights(tmp_path / "run"), tiny.weights_of(given.model)) > 1e-4


@pytest.mark.parametrize("loss", ["dpo", "kto", "sft"])
def test_rankings_are_pairs_labels_or_demonstrations_to_other_losses(given, tmp_path, loss):
    assert tiny.cli("train", given.model, given.rankings, tmp_path / "run", loss=loss, max_steps=2) == 0


def test_training_learns(given, tmp_path):
    """Chosen responses begin with thanks: forty steps are enough to see that, on held-out prompts too."""
    settings = dict(max_steps=40, batch_size=8, eval_fraction=0.25, learning_rate=3e-3)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 0
    results = tiny.results(tmp_path / "run")
    assert results["training"]["after"]["rewards/accuracies"] == 1.0
    assert results["held_out"]["after"]["rewards/accuracies"] >= 5 / 6


# --- what is written -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(given, tmp_path_factory):
    """Twelve prompts with three pairs each, a quarter of them held out, evaluated every 2 of 5 steps."""
    folder = tmp_path_factory.mktemp("evaluated")
    data = tiny.pairs(folder / "pairs.jsonl", count=36, prompts=12)
    settings = dict(max_steps=5, eval_fraction=0.25, eval_every=2)
    assert tiny.cli("train", given.model, data, folder / "run", **settings) == 0
    return folder


def test_the_files_of_a_run(evaluated):
    out = evaluated / "run"
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "checkpoints", "model", "results.json",
        "pairs.jsonl", "samples.jsonl", "report.html",
    }  # fmt: skip
    assert tiny.steps_saved(out) == [4, 5]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in (out / "model").iterdir()
    }


def test_evaluations_stand_where_they_were_asked_for(evaluated):
    lines = tiny.metrics(evaluated / "run")
    order = [(line["step"], line["split"]) for line in lines]
    assert order == [
        (0, "eval"), (0, "training"), (1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train"),
        (4, "eval"), (5, "train"), (5, "eval"), (5, "training"),
    ]  # fmt: skip


def test_results_are_what_metrics_say(evaluated):
    lines, results = tiny.metrics(evaluated / "run"), tiny.results(evaluated / "run")
    for split, name in (("training", "training"), ("eval", "held_out")):
        for when, step in (("before", 0), ("after", 5)):
            (line,) = [line for line in lines if (line["step"], line["split"]) == (step, split)]
            assert results[name][when] == {k: v for k, v in line.items() if k not in ("step", "split")}
            told = any(name.startswith("rewards/accuracies") for name in results[name][when])
            assert told == (when == "after")  # before, policy and reference are one: there is no accuracy
    assert results["training"]["before"]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (results["steps"], results["skipped_steps"], results["read_as"]) == (5, 0, "tree")


def test_held_out_by_prompt(evaluated):
    after = tiny.results(evaluated / "run")
    assert (after["held_out"]["after"]["prompts"], after["held_out"]["after"]["pairs"]) == (3, 9)
    assert (after["training"]["after"]["prompts"], after["training"]["after"]["pairs"]) == (9, 27)


def test_who_may_read_one_file_of_a_model_may_read_all(evaluated):
    assert len({file.stat().st_mode for file in (evaluated / "run" / "model").iterdir()}) == 1


def test_the_model_written_is_the_model_trained(evaluated):
    """AutoModelForCausalLM gives the log-probs that the run ended with, one sequence at a time."""
    out = evaluated / "run"
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    data = encoded([str(evaluated / "pairs.jsonl")], None, Encoder(tokenizer, 128, "drop", "last-assistant"))
    assert "prefopt" not in (out / "model" / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    total = 0.0
    for example in data.examples:
        ids = torch.tensor([[*example.prompt, *example.responses[0]]])
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        total += logps[len(example.prompt) - 1 :].sum().item()
    held_out, training = (tiny.results(out)[name]["after"] for name in ("held_out", "training"))
    assert total == pytest.approx(sum(s["logps/chosen"] * s["pairs"] for s in (held_out, training)), abs=1e-2)


def test_held_out_data_of_its_own(given, tmp_path, capsys):
    other = tiny.pairs(tmp_path / "other.jsonl", count=6, seed=5)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", eval_data=other) == 0
    assert tiny.results(tmp_path / "run")["held_out"]["after"]["pairs"] == 6
    assert "trained on too" not in capsys.readouterr().err
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "again", eval_data=given.pairs) == 0
    said = capsys.readouterr()
    assert "24 of 24 held-out examples have a prompt that is trained on too" in said.err
    assert "24 held-out examples have a prompt that was trained on too, so the held-out figures flatter" in " ".join(
        said.out.split()
    )


def test_config_yaml_repeats_the_run(given, tmp_path):
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "a", loss="ipo", tau=0.2) == 0
    from prefopt.cli import main

    assert main(["train", "--config", str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "b")]) == 0
    assert tiny.same(tiny.weights(tmp_path / "a"), tiny.weights(tmp_path / "b"))


def test_config_yaml_hands_on_what_was_set_and_not_what_was_chosen(given, tmp_path, capsys):
    from prefopt.cli import main

    nobodys = dict(learning_rate=None, warmup_steps=None)
    assert tiny.cli("sft", given.model, given.pairs, tmp_path / "sft", **nobodys) == 0
    file = tmp_path / "sft" / "config.yaml"
    known = config.recorded(file)
    assert (known["learning_rate"], known["warmup_steps"], known["max_length"]) == (3e-3, 0, 128)
    assert not {"learning_rate", "warmup_steps", "max_length", "tokens_per_microbatch"} & config.read(file).keys()
    again = ["--data", given.pairs, "--config", str(file)]
    assert main(["train", *again, "--loss", "dpo", "--out", str(tmp_path / "dpo")]) == 0
    dpo = tmp_path / "dpo" / "config.yaml"
    assert config.recorded(dpo)["learning_rate"] == 1e-3 and config.recorded(dpo)["beta"] == 0.1
    assert main(["train", "--config", str(dpo), "--loss", "ipo", "--out", str(tmp_path / "ipo")]) == 0, "beta is no tau"
    assert main(["train", "--config", str(dpo), "--resume"]) == 0
    capsys.readouterr()
    assert main(["train", "--config", str(dpo), "--beta", "0.3", "--resume"]) == 2
    assert "--beta is 0.3 and was 0.1 when the run in" in capsys.readouterr().err
    dpo.write_text(dpo.read_text().replace("# learning_rate: 0.001", "learning_rate: 0.002"))
    assert main(["train", "--config", str(dpo), "--out", str(tmp_path / "mine")]) == 0
    assert config.recorded(tmp_path / "mine" / "config.yaml")["learning_rate"] == 2e-3


def test_dry_run_tells_and_writes_nothing(given, tmp_path, capsys):
    settings = dict(max_steps=None, epochs=2, batch_size=8, warmup_steps=None)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings, dry_run=True) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    parameters = sum(w.numel() for w in tiny.weights_of(given.model).values())
    assert "24 examples to train on" in said and "6 of 8 examples (2 epochs)" in said and "dpo" in said
    assert (
        tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings | dict(max_steps=3), dry_run=True) == 0
    )
    assert "3 of 8 examples (1 epoch)" in capsys.readouterr().out
    assert f"{parameters / 1000:.0f}" in said and str(tmp_path / "run") in said


# --- the reference -------------------------------------------------------------------------------


@pytest.fixture
def asking(asked):
    """Runs a training and tells how many responses the reference was asked about."""

    def run(*arguments, **settings) -> int:
        asked.clear()
        settings = dict(max_steps=None, epochs=1) | settings
        assert tiny.cli("train", *arguments, **settings) == 0
        return sum(asked)

    return run


def test_the_reference_is_asked_once_ever(given, tmp_path, asking):
    """PEERS: where β or lr changes, one pass, ever; and adding examples costs only theirs."""
    data = tiny.pairs(tmp_path / "p.jsonl", count=24)
    assert asking(given.model, data, tmp_path / "a") == 48
    assert asking(given.model, data, tmp_path / "b", beta=0.5) == 0
    assert asking(given.model, data, tmp_path / "c", learning_rate=1e-3, seed=9, batch_size=3) == 0
    assert asking(given.model, data, tmp_path / "d", loss="ipo") == 0
    more = tmp_path / "more.jsonl"
    more.write_text(Path(data).read_text() + Path(tiny.pairs(tmp_path / "q.jsonl", count=5, seed=8)).read_text())
    assert asking(given.model, str(more), tmp_path / "e") == 10
    assert asking(tiny.model(tmp_path / "other", seed=1), data, tmp_path / "f") == 48


def test_a_short_run_asks_for_what_it_reads(given, tmp_path, asking):
    """And for the sample at the end, which is all of so few."""
    assert asking(given.model, given.pairs, tmp_path / "a", max_steps=2) == 48


def test_another_truncation_is_another_question(given, tmp_path, asking, capsys):
    """PEERS: a cached reference after max_length or truncation changed: never stale, step 0 at ln 2."""
    assert asking(given.model, given.pairs, tmp_path / "a") == 48
    cut = dict(max_length=24, overlong="cut-response")
    again = asking(given.model, given.pairs, tmp_path / "b", **cut)
    assert 0 < again < 48, "only those that were cut"
    assert asking(given.model, given.pairs, tmp_path / "c", **cut | dict(overlong="cut-prompt")) > 0
    for out in ("a", "b", "c"):
        (first,) = [m for m in tiny.metrics(tmp_path / out) if (m["step"], m["split"]) == (1, "train")]
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_losses_without_a_reference_load_none_and_touch_no_store(given, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))

    def never(*_, **__):
        raise AssertionError("no reference is wanted")

    for module, name in ((scoring, "ReferenceStore"), (reference, "load_model"), (run, "reference_sums")):
        monkeypatch.setattr(module, name, never)
    for loss in (name for name, made in LOSSES.items() if not made.needs_reference):
        assert tiny.cli("train", given.model, given.pairs, tmp_path / loss, loss=loss, max_steps=2) == 0
    assert not (tmp_path / "cache" / "reference.sqlite").exists()


def test_a_reference_of_its_own(given, tmp_path):
    """The policy starts elsewhere, so rewards do not start at 0, and step 0 asks for no agreement."""
    other = tiny.model(tmp_path / "other", seed=1)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", reference=other) == 0
    before = tiny.results(tmp_path / "run")["training"]["before"]
    assert abs(before["rewards/chosen"]) > 0.01
    assert (
        model_fingerprint(load.load_model(other).module)
        in (tmp_path / "run/checkpoints/step-00000004/state.json").read_text()
    )


def test_a_reference_with_another_vocabulary_is_refused(given, tmp_path, capsys):
    other = tiny.model(tmp_path / "other")
    tiny.train_tokenizer(["other words and yet others"] * 3, 290).save_pretrained(other)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", reference=other) == 2
    assert f"--reference {other} has another vocabulary than {given.model}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_kto_cuts_what_only_its_baseline_puts_together(given, tmp_path):
    """GPT-2 takes 128 tokens: a long prompt with its short answer, but not with another's long one."""
    long, short = "the cat sat on the mat and then the dog ran " * 2, "the cat"
    rows = [
        {"prompt": f"{long if i % 2 else short} {i}", "completion": f" {short if i % 2 else long}", "label": i % 3 > 0}
        for i in range(8)
    ]
    data, model = tiny.write(tmp_path / "kto.jsonl", rows), tiny.model(tmp_path / "gpt2", "gpt2")
    assert tiny.cli("train", model, data, tmp_path / "run", loss="kto", max_steps=2) == 0


# --- what the data and the settings leave over ---------------------------------------------------


@pytest.mark.parametrize(
    ("command", "loss", "other", "said"),
    [
        ("train", "dpo", "unpaired", "24 unpaired (dropped)"),
        ("train", "kto", "demonstrations", "6 unlabelled (dropped)"),
        ("sft", None, "unpaired", "8 undesirable (dropped)"),
    ],
)
def test_what_a_loss_cannot_use_is_counted(given, tmp_path, capsys, command, loss, other, said):
    rows = [{"prompt": f"the cat {i}?", "completion": " thanks"} for i in range(6)]
    data = {"unpaired": given.unpaired, "demonstrations": tiny.write(tmp_path / "sft.jsonl", rows)}[other]
    line = tiny.words(command, given.model, given.pairs, tmp_path / "run", loss=loss, dry_run=True)
    assert tiny.main([*line, "--data", data]) == 0
    assert said in capsys.readouterr().err
    assert tiny.main([*line, "--data", data, "--strict"]) == 2


def test_what_kto_leaves_of_a_ranking_is_said(given, tmp_path, capsys):
    assert tiny.cli("train", given.model, given.rankings, tmp_path / "run", loss="kto", dry_run=True) == 0
    assert "of 8 rankings only the best and the worst response are learned from" in capsys.readouterr().err


def test_lost_end_tokens_are_counted(given, tmp_path, capsys):
    settings = dict(max_length=12, overlong="cut-response", dry_run=True)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 0
    assert " responses cut, and so without an end token" in capsys.readouterr().err


def test_a_warm_up_as_long_as_the_run_is_refused(given, tmp_path, capsys):
    settings = dict(max_steps=None, epochs=1, warmup_steps=6)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 2
    assert "--warmup-steps must be below the steps of the run, which are 6" in capsys.readouterr().err


# --- losses of one's own -------------------------------------------------------------------------

MINE = '''
from dataclasses import dataclass
from prefopt.losses import log_ratio, log_sigmoid, pair, pair_output

@dataclass(frozen=True)
class MyLoss:
    anything: float = 0.1
    """the strength"""

    def __call__(self, policy, reference, preferences):
        s_w, s_l = pair(self.anything * log_ratio(policy, reference), preferences)
        return pair_output(-log_sigmoid(s_w - s_l), policy, preferences, (s_w, s_l))
'''


def test_a_loss_from_a_file(given, tmp_path):
    """As --loss my_file.py:MyLoss --anything 3, and it is DPO with β = 3."""
    file = tmp_path / "my_file.py"
    file.write_text(MINE)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "a", loss=f"{file}:MyLoss", anything=3) == 0
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "b", beta=3) == 0
    assert tiny.same(tiny.weights(tmp_path / "a"), tiny.weights(tmp_path / "b"))
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "c", loss=f"{file}:MyLoss", anythin=3) == 2


def test_that_the_file_of_a_loss_has_changed_is_said(given, tmp_path, capsys):
    """A person who mends it goes on; who changes it should know."""
    file, settings = tmp_path / "mine.py", dict(loss=f"{tmp_path}/mine.py:mine", save_every=2)
    source = "from prefopt.losses import DPO\ndef mine(*given):\n    return DPO(beta=BETA)(*given)\n"
    file.write_text(source.replace("BETA", "0.1"))
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 0
    file.write_text(source.replace("BETA", "0.5"))
    said = "since step 4 something else stands in the file of the loss: the run goes on with that"
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings, resume=True) == 0
    assert said in " ".join(capsys.readouterr().err.split())
    file.write_text(source.replace("BETA", "0.1"))
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings, resume=True) == 0
    assert said not in " ".join(capsys.readouterr().err.split())


def test_the_file_of_a_loss_is_known_as_it_was_loaded(given, tmp_path, capsys, monkeypatch):
    """Who edits it while the run goes on has not changed that run."""
    file, settings = tmp_path / "mine.py", dict(loss=f"{tmp_path}/mine.py:mine", save_every=2)
    source = "from prefopt.losses import DPO\ndef mine(*given):\n    return DPO(beta=0.1)(*given)\n"
    file.write_text(source)
    with monkeypatch.context() as patched:
        patched.setattr(run, "verify_step_zero", lambda *_: file.write_text(source.replace("0.1", "0.5")))
        assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 0
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings, resume=True) == 0
    assert "something else stands in the file of the loss" in " ".join(capsys.readouterr().err.split())


def test_what_ends_first_is_said(given, tmp_path, capsys):
    settings = dict(epochs=0.5, max_steps=9, batch_size=4)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 0
    assert "--epochs 0.5 ends at step 3, before --max-steps 9: raise --epochs to go on" in capsys.readouterr().err
    with pytest.raises(UserError, match="--epochs must be a number, not 'x'"):
        api.train(model=given.model, data=given.pairs, out=tmp_path / "typed", epochs="x")


def test_columns_that_are_not_read_are_named(given, tmp_path, capsys):
    rows = [json.loads(line) for line in Path(given.pairs).read_text().splitlines()]
    data = tiny.write(tmp_path / "more.jsonl", [row | {"system": "Be kind.", "tools": []} for row in rows])
    assert tiny.cli("train", given.model, data, tmp_path / "run") == 0
    assert f"{data}: these columns are not read: system, tools" in capsys.readouterr().err


def test_an_option_may_not_have_the_name_of_a_setting(given, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom prefopt.losses import DPO\n"
        "@dataclass(frozen=True)\nclass Mine(DPO):\n    epochs: int = 7\n"
    )
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", loss=f"{tmp_path}/mine.py:Mine") == 2
    assert "mine.py:Mine has a field epochs, which is a setting of the run" in capsys.readouterr().err


def test_an_option_that_only_python_can_say(given, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom prefopt.losses import DPO\n"
        "@dataclass(frozen=True)\nclass Mine:\n    inner: DPO = DPO()\n    scale: float = 1.0\n"
        "    def __call__(self, *given): return self.inner(*given)\n"
    )
    loss = f"{tmp_path}/mine.py:Mine"
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", loss=loss, max_steps=2) == 0
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert "scale: 1.0" in written and "inner" not in written


def test_a_run_that_came_and_went_meanwhile_is_not_overwritten(given, tmp_path, monkeypatch):
    out, alone = tmp_path / "run", session.alone

    def another_first(folder):
        monkeypatch.setattr(session, "alone", alone)
        assert tiny.cli("train", given.model, given.pairs, out, max_steps=2) == 0
        return alone(folder)

    monkeypatch.setattr(session, "alone", another_first)
    assert tiny.cli("train", given.model, given.pairs, out, max_steps=3) == 2
    assert tiny.results(out)["steps"] == 2


def test_all_held_out_is_told_as_such(given, tmp_path, capsys):
    one = tiny.pairs(tmp_path / "one.jsonl", count=4, prompts=1)
    assert tiny.cli("train", given.model, one, tmp_path / "run", eval_fraction=0.6) == 2
    assert "--eval-fraction 0.6 holds out every prompt: lower it" in capsys.readouterr().err


# --- settings and architectures ------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sft", "train", "reward"])
def test_what_is_recomputed_changes_memory_only(given, tmp_path, monkeypatch, command):
    """The same micro-batches, with all layers recomputed, or none: the same bits."""
    asked = []
    for name, chosen in (("a", 0), ("b", None)):

        def how_many(tokens, room, layers, chosen=chosen):
            asked.append(room)
            return layers if chosen is None else chosen

        monkeypatch.setattr(language_model, "how_many", how_many)
        assert tiny.cli(command, given.model, given.pairs, tmp_path / name, tokens_per_microbatch=64) == 0
    assert asked and set(asked) == {64}
    assert tiny.same(tiny.weights(tmp_path / "a"), tiny.weights(tmp_path / "b"))


def test_the_papers_optimizer(given, tmp_path):
    settings = dict(optimizer="rmsprop", schedule="constant", clip=10)
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 0
    rates = [m["learning_rate"] for m in tiny.metrics(tmp_path / "run") if m["split"] == "train"]
    assert rates == [1e-2] * 4


def test_bfloat16_loses_no_small_update(given, tmp_path):
    """At the paper's rate an update is far below bfloat16's last digit: the weights stay float32."""
    settings = dict(dtype="bfloat16", learning_rate=1e-6, schedule="constant")
    assert tiny.cli("train", given.model, given.pairs, tmp_path / "run", **settings) == 0
    after, before = tiny.weights(tmp_path / "run"), tiny.weights_of(given.model)
    assert {w.dtype for w in after.values()} == {torch.float32}
    assert 1e-6 < tiny.apart(after, before) < 1e-5


def test_weight_decay_shrinks(given, tmp_path):
    for decay in (0, 1):
        assert tiny.cli("sft", given.model, given.pairs, tmp_path / str(decay), weight_decay=decay) == 0
    norms = [sum(float(w.norm()) for w in tiny.weights(tmp_path / d).values()) for d in ("0", "1")]
    assert norms[1] < norms[0]


@pytest.mark.parametrize(("architecture", "way"), [("gpt2", "tree"), ("gptj", "rows"), ("mamba", "rows")])
@pytest.mark.parametrize("tokens", [None, 16])
def test_architectures(tmp_path, given, architecture, way, tokens):
    model = tiny.model(tmp_path / "model", architecture)
    assert tiny.cli("train", model, given.pairs, tmp_path / "run", tokens_per_microbatch=tokens) == 0
    assert tiny.results(tmp_path / "run")["read_as"] == way
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


def test_rows_and_tree_train_the_same_gpt2(tmp_path, given, monkeypatch):
    model = tiny.model(tmp_path / "model", "gpt2")
    assert tiny.cli("train", model, given.pairs, tmp_path / "tree", learning_rate=1e-4) == 0
    monkeypatch.setattr(load, "probe", lambda lm, *_: LanguageModel.read_as(lm, "rows"))
    assert tiny.cli("train", model, given.pairs, tmp_path / "rows", learning_rate=1e-4) == 0
    assert [tiny.results(tmp_path / out)["read_as"] for out in ("tree", "rows")] == ["tree", "rows"]
    tree, rows = (tiny.weights(tmp_path / out) for out in ("tree", "rows"))
    for name in tree:
        if name.endswith("c_attn.bias"):  # a key's bias has no gradient but rounding, which Adam blows up
            tree[name][16:32] = rows[name][16:32] = 0
    assert tiny.apart(tree, rows) < 1e-6


def test_a_plan_knows_a_model_that_does_not_write(given, tmp_path, capsys):
    assert tiny.cli("reward", given.model, given.pairs, tmp_path / "reward", max_steps=2) == 0
    assert tiny.cli("train", str(tmp_path / "reward" / "model"), given.pairs, tmp_path / "run", dry_run=True) == 2
    assert "has no head that writes text" in capsys.readouterr().err
