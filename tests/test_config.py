"""Settings: what is wrong is refused, with its place; what is right survives the way to YAML and back."""

from pathlib import Path

import pytest

from prefopt import config
from prefopt.config import SFT, Check, Demo, NewModel, Score, Train, dump, load
from prefopt.errors import UserError

BASE = "model: base\ndata: prefs.jsonl\nout: runs/a\n"


def yaml(tmp_path: Path, text: str) -> Path:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "run.yaml"


def settings(**more: object) -> dict[str, object]:
    return {"model": "base", "data": ("prefs.jsonl",), "out": Path("runs/a"), **more}


def test_load_reads_types(tmp_path: Path) -> None:
    text = BASE + "epochs: 2\nlearning_rate: 1e-6\nmax_steps: null\nresume: true\ntrack: [wandb, trackio]\nseed: 7\n"
    got = load(yaml(tmp_path, text), Train)
    assert got == Train(**settings(epochs=2, learning_rate=1e-6, resume=True, track=("wandb", "trackio"), seed=7))  # type: ignore[arg-type]
    assert isinstance(got.learning_rate, float) and isinstance(got.out, Path)


def test_options_of_the_loss_are_keys_like_any_other(tmp_path: Path) -> None:
    got = load(yaml(tmp_path, BASE + "loss: simpo\ngamma: 0.5\n"), Train)
    assert (got.loss, got.loss_options) == ("simpo", {"gamma": 0.5})


@pytest.mark.parametrize(
    "given",
    [
        Train(**settings(loss="ipo", loss_options={"tau": 0.3}, eval_data=("a", "b=2"), track=("wandb",))),  # type: ignore[arg-type]
        SFT(**settings(learning_rate=3e-7, epochs=0.5)),  # type: ignore[arg-type]
        Check(data=("ünïcode.jsonl", "true", "1")),
        NewModel(size="3M", tokenizer_from="a b: c", out=Path("x")),
        Score(policy="p", reference="r", data=("d",), beta=0.2),
        Demo(),
    ],
)
def test_dump_and_load_are_inverse(given: object, tmp_path: Path) -> None:
    again = load(yaml(tmp_path, dump(given)), type(given))
    assert dump(again) == dump(given)
    assert {**vars(again), "loss_options": 0} == {**vars(given), "loss_options": 0}


def test_dump_fills_in_the_defaults_of_the_loss() -> None:
    lines = dump(Train(**settings(loss_options={"beta": 0.5}))).splitlines()  # type: ignore[arg-type]
    assert "beta: 0.5" in lines and "label_smoothing: 0.0" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1\n", ":4: unknown key lerning_rate; did you mean learning_rate?"),
        ("learning-rate: 1\n", ":4: unknown key learning-rate; did you mean learning_rate?"),
        ("xyzzy: 1\n", ":4: unknown key xyzzy"),
        ("labl_smoothing: 0.1\n", ":4: unknown key labl_smoothing; did you mean label_smoothing?"),
        ("tau: 0.1\n", ":4: tau has no effect on dpo, whose options are beta, label_smoothing, nll_weight"),
        ("loss_options: {beta: 1}\n", ":4: unknown key loss_options"),
        ("# why\n\nlearning_rate: fast\n", ":6: learning_rate must be a number, not 'fast'"),
        ("learning_rate: true\n", ":4: learning_rate must be a number, not true"),
        ("batch_size: 2.5\n", ":4: batch_size must be a whole number, not 2.5"),
        ("batch_size: '8'\n", ":4: batch_size must be a whole number, not '8'"),
        ("batch_size: null\n", ":4: batch_size must be a whole number, not null"),
        ("resume: 1\n", ":4: resume must be true or false, not 1"),
        ("reference: 3\n", ":4: reference must be text, not 3"),
        ("schedule: cosin\n", ":4: schedule must be constant, linear or cosine, not 'cosin'"),
        ("eval_data: [a, 3]\n", ":4: eval_data must be text, not ['a', 3]"),
        ("beta: high\n", ":4: beta must be a number, not 'high'"),
        ("beta: -1\n", ":4: beta must be a number above 0, not -1"),
        ("keep: 1\n", ":4: keep must be at least 2"),
        ("seed: 1\nseed: 2\n", ":5: seed is set twice, first at "),
        ("eval_every: 10\n", ":4: eval_every has nothing to evaluate on: add --eval-data or --eval-fraction"),
        ("data: [a\n", ": not valid YAML: "),
        ("nothing\n", ": not valid YAML: "),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = yaml(tmp_path, BASE + text)
    with pytest.raises(UserError) as error:
        load(file, Train)
    assert str(error.value).startswith(f"{file}:")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.yaml needs --model: folder or hub name"):
        load(yaml(tmp_path, ""), Train)
    with pytest.raises(UserError, match=r"run.yaml:1: expected lines of the form key: value"):
        load(yaml(tmp_path, "- a\n- b\n"), Train)
    with pytest.raises(UserError, match=r"none.yaml: cannot read the configuration: No such file"):
        load(tmp_path / "none.yaml", Train)
    (tmp_path / "run.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(UserError, match=r"run.yaml: not UTF-8 text, at byte 7"):
        load(tmp_path / "run.yaml", Train)
    with pytest.raises(UserError, match=r"run.yaml:1.*not valid YAML: could not determine a constructor"):
        load(yaml(tmp_path, "model: !!python/object:os.system x\n"), Train)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"epochs": 0}, "--epochs must be above 0, not 0"),
        ({"epochs": float("nan")}, "--epochs must be above 0, not nan"),
        ({"learning_rate": -1e-6}, "--learning-rate must be above 0"),
        ({"clip": float("inf")}, "--clip must be above 0, not inf"),
        ({"warmup_steps": -1}, "--warmup-steps must be at least 0"),
        ({"warmup_steps": 10, "max_steps": 10}, "--warmup-steps must be below --max-steps, which is 10"),
        ({"eval_fraction": 1.0}, "--eval-fraction must be at least 0 and below 1"),
        ({"eval_fraction": 0.1, "eval_data": ("a",)}, "--eval-fraction holds prompts of --data out"),
        ({"optimizer": "rmsprop", "weight_decay": 0.1}, "--weight-decay is AdamW's and has no effect on rmsprop"),
        ({"data": ()}, "--data is empty"),
        ({"seed": 20261103123000}, "--seed must be from 0 to 4294967295"),
        ({"loss": "orpo", "reference": "base"}, "--reference has no effect: orpo compares with no reference"),
        ({"loss": "dpoo"}, "did you mean dpo?"),
        ({"loss_options": {"label_smoothing": 0.7}}, "label_smoothing must be at least 0 and below 0.5"),
    ],
)
def test_settings_that_do_not_go_together(more: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        Train(**settings(**more))  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_home_is_a_home_in_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(yaml(tmp_path, "model: m\ndata: d\nout: ~/runs/a\n"), Train).out == tmp_path / "runs" / "a"


def test_other_commands() -> None:
    with pytest.raises(UserError, match="--max-length is about tokens: add --model"):
        Check(data=("a",), max_length=5)
    with pytest.raises(UserError, match="--beta scales the log-ratio to a reference: add --reference"):
        Score(policy="p", data=("a",), beta=0.2)
    for size in ("3", "M", "3X", "-1M", "1e6"):
        with pytest.raises(UserError, match="--size must be a number and K, M or B"):
            NewModel(size=size, tokenizer_from="x", out=Path("y"))


def test_every_field_has_a_help() -> None:
    for cls in (Check, NewModel, SFT, Train, Score, Demo):
        assert set(config.helps(cls)) >= set(cls.__dataclass_fields__)
        assert all(config.helps(cls).values()) and cls.__doc__
