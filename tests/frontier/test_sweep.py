"""A sweep: which runs a grid means, that they are ordinary runs with one reference pass, and that none is lost."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given as on
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from rich.console import Console

from prefopt import config
from prefopt.cli import main
from prefopt.config import Setting
from prefopt.data.encode import Encoder
from prefopt.errors import RunFailed, UserError
from prefopt.frontier import show, sweep
from prefopt.losses import DPO, options_of
from prefopt.model.load import load_tokenizer
from prefopt.model.reference import ReferenceStore
from prefopt.report.frontier import of_sweep
from prefopt.train.session import execute
from prefopt.types import Example, Message, Response
from tests.train import tiny

COMMON = {"model": Setting("base"), "data": Setting("prefs.jsonl"), "out": Setting("runs/s")}
REWARD = "def kind(prompts, responses):\n    return [float('thanks' in r) + 0.01 * len(r) for r in responses]\n"


def names(common: dict[str, Setting], **axes: list[str]) -> list[str]:
    given = {key: [Setting(value) for value in values] for key, values in axes.items()}
    return [one.name for one in sweep.configurations(common, sweep.combinations(common, given))]


# --- the grid -----------------------------------------------------------------------------------

VALUES = {
    "loss": st.sampled_from(["dpo", "ipo", "simpo", "orpo", "sft"]),
    "beta": st.sampled_from(["0.1", "0.10", "1", "5"]),
    "tau": st.sampled_from(["0.1", "0.5"]),
    "gamma": st.sampled_from(["0.5", "1"]),
    "seed": st.sampled_from(["0", "1", "2"]),
    "learning_rate": st.sampled_from(["1e-6", "3e-5"]),
    "reference": st.sampled_from(["a/b", "c"]),
}


@hypothesis(max_examples=25, deadline=None)
@on(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True), st.data())
def test_a_grid_is_every_combination_once(keys: list[str], data: Any) -> None:
    axes = {key: data.draw(st.lists(VALUES[key], min_size=1, max_size=3)) for key in keys}
    losses = axes.get("loss", ["dpo"])
    has = {loss: {*options_of(loss), "seed", "learning_rate", "loss"} for loss in losses}
    for loss in losses:
        has[loss] |= {"reference"} if loss in ("dpo", "ipo") else set()
    given = {key: [Setting(value) for value in values] for key, values in axes.items()}
    if any(not any(key in has[loss] for loss in losses) for key in keys):
        with pytest.raises(UserError, match="has no effect"):
            sweep.combinations(COMMON, given)
        return
    chosen = sweep.configurations(COMMON, sweep.combinations(COMMON, given))

    def typed(key: str, value: str) -> Any:
        return value if key in ("loss", "reference") else float(value)

    expected = set()
    for loss in losses:
        rows: list[dict[str, Any]] = [{"loss": loss}]
        for key in set(keys) & has[loss] - {"loss"}:
            rows = [row | {key: typed(key, value)} for row in rows for value in axes[key]]
        expected |= {frozenset(row.items()) for row in rows}
    found = {
        frozenset({"loss": one.config.loss, **{k: float(v) if k == "seed" else v for k, v in one.own.items()}}.items())
        for one in chosen
    }
    assert found == expected and len(chosen) == len(expected)
    assert len({one.config.out for one in chosen}) == len(chosen)
    assert all(re.fullmatch(r"[\w.+-]+", one.name) and one.config.out == Path("runs/s") / one.name for one in chosen)


def test_names_can_be_read() -> None:
    assert names(COMMON, beta=["0.05", "5"]) == ["beta-0.05", "beta-5"]
    assert names(COMMON, loss=["dpo", "ipo"], tau=["0.1"]) == ["loss-dpo", "loss-ipo_tau-0.1"]
    assert names(COMMON, learning_rate=["1e-6"], reference=["runs/a model"]) == [
        "learning-rate-1e-06_reference-runs-a-model"
    ]


def test_common_options_go_where_they_belong() -> None:
    chosen = sweep.configurations(
        COMMON | {"tau": Setting("0.3"), "reference": Setting("r")},
        [{"loss": Setting("dpo"), "beta": Setting("0.2")}, {"loss": Setting("ipo")}, {"loss": Setting("orpo")}],
    )
    assert [(one.config.loss_options, one.config.reference) for one in chosen] == [
        ({"beta": 0.2}, "r"),
        ({"tau": 0.3}, "r"),
        (None, None),
    ]


def test_runs_from_python_may_hold_losses_and_names() -> None:
    own = [
        sweep._given({"name": "noisy labels", "loss": DPO(beta=0.2, label_smoothing=0.2), "seed": 3}, "runs[0]"),
        sweep._given({"loss": lambda policy, reference, preferences: None, "learning_rate": 1e-3}, "runs[1]"),
    ]
    first, second = sweep.configurations(COMMON, own)
    assert (first.name, first.config.loss_options) == ("noisy-labels", {"beta": 0.2, "label_smoothing": 0.2})
    assert (second.config.learning_rate, second.name) == (1e-3, "loss-lambda_learning-rate-0.001")
    assert callable(second.config.loss)


def test_a_loss_that_cannot_be_hashed_is_a_loss() -> None:
    @dataclass
    class Mine:
        scale: float = 1.0

        def __call__(self, policy, reference, preferences):
            return None

    (one,) = sweep.configurations(COMMON, [sweep._given({"loss": Mine(), "seed": 3}, "runs[0]")])
    assert one.config.loss == Mine() and one.config.seed == 3


def test_a_loss_without_a_name_gives_a_folder_of_one_name() -> None:
    class Mine:
        def __call__(self, policy, reference, preferences):
            return None

    first, second = (sweep.configurations(COMMON, [sweep._given({"loss": Mine()}, "")])[0].name for _ in range(2))
    assert first == second and "0x" not in first


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ([{"betta": 1}], r"runs\[0\]: unknown key betta; did you mean beta?"),
        ([{}, {"tau": 1}], r"runs\[1\]: tau has no effect on dpo, whose options are beta"),
        ([{"beta": 0}], r"runs\[0\]: beta must be a number above 0"),
        ([{"max_steps": 1.5}], r"runs\[0\]: max_steps must be a whole number, not 1.5"),
        ([{"name": "a", "beta": 1}, {"name": "a"}], "two different runs would be called a"),
    ],
)
def test_mistakes_in_runs(own: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        sweep.configurations(COMMON, [sweep._given(one, f"runs[{i}]") for i, one in enumerate(own)])


WORDS = ["sweep", "--model", "base", "--data", "prefs.jsonl", "--out", "runs/s"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "prefopt sweep needs --grid"),
        (["--grid", "beta"], "--grid must be KEY=VALUE,VALUE such as beta=0.1,1, not 'beta'"),
        (["--grid", "beta=0.1,"], "--grid must be KEY=VALUE,VALUE"),
        (["--grid", "beta=1", "--grid", "beta=2"], "--grid has beta twice"),
        (["--grid", "out=a,b"], "--grid cannot vary out"),
        (["--grid", "betta=1,2"], "--grid: unknown key betta; did you mean beta?"),
        (["--grid", "bata=1,2"], "--grid: unknown key bata; did you mean beta?"),  # no grid has data
        (["--grid", "beta=1,x"], "--grid: beta must be a number, not 'x'"),
        (["--grid", "tau=1,2"], "--grid: tau has no effect on dpo, whose options are beta, label_smoothing, "),
        (["--grid", "loss=dpo,ipo", "--gamma", "1"], "--gamma has no effect on dpo, ipo, whose options are beta, "),
        (["--grid", "loss=dpo,ippo"], "there is no loss ippo; did you mean ipo?"),
        (["--grid", "loss=orpo", "--reference", "r"], "--reference has no effect: orpo compare"),
        (["--grid", "beta=0,1"], "--grid: beta must be a number above 0"),
        (["--grid", "beta=1,2", "--beta", "1"], "--beta is set, and --grid sets it too: drop one"),
        (["--grid", "seed=1,2", "--seed", "4"], "--seed is set, and --grid sets it too: drop one"),
        (["--grid", "beta=1", "--samples", "0", "--reward", "r.py:f"], "--reward is about samples"),
        (["--grid", "samples=1,2"], "--grid cannot vary samples, which is the same for all runs"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_grid_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("model: base\ndata: d\nout: s\ntau: 0.2\ngrid: {beta: [0.05, 1], loss: [dpo, ipo]}\n")
    got = config.load(file, config.Sweep)
    assert got.grid == ("beta=0.05,1", "loss=dpo,ipo") and got.loss_options == {"tau": 0.2}
    file.write_text(config.dump(got))
    assert config.load(file, config.Sweep) == got
    file.write_text("model: base\ndata: d\nout: s\ngrid: {}\n")
    with pytest.raises(UserError, match=f"{file}:4: grid is empty"):
        config.load(file, config.Sweep)


# --- whole sweeps -------------------------------------------------------------------------------

SAMPLED = dict(max_new_tokens=6, samples=6, eval_fraction=0.25, batch_size=4, max_steps=3)


def swept(out: Path, given: Any, *grid: str, **more: object) -> list[str]:
    words = tiny.words("sweep", given.model, given.pairs, out, **(SAMPLED | more))
    return [*words, *(word for text in grid for word in ("--grid", text))]


@pytest.fixture
def reward(tmp_path: Path) -> str:
    (tmp_path / "kind.py").write_text(REWARD)
    return f"{tmp_path / 'kind.py'}:kind"


def test_a_reward_reads_the_prompt_that_the_policy_answers(given):
    """With --train-on all-assistant it ends before the first answer; where a template rewrites history, the last."""
    say = [Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?")]
    example = Example(tuple(say), (Response("Thus", 1.0), Response("No", 0.0)), "a.jsonl:1")
    tokenizer = load_tokenizer(given.model)
    for train_on, expected in (("all-assistant", say[:1]), ("last-assistant", say)):
        encoder = Encoder(tokenizer, 128, "drop", train_on)
        (unit,) = encoder.encode([example]).examples
        assert list(sweep._answered([unit.prompt], [example.prompt], encoder)) == [tuple(expected)]
    ids, encoder = encoder.prompts([example.prompt, "a text"]), Encoder(tokenizer, 128, "drop", "all-assistant")
    assert list(sweep._answered(ids, [example.prompt, "a text"], encoder)) == [tuple(say), "a text"]


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_a_sweep_asks_the_reference_once(given, tmp_path, reward, monkeypatch, capsys):
    """Three runs and the same figures as `prefopt train`; extended, the first three are not trained again."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    put, trained = ReferenceStore.put, []
    asked: list[str] = []

    def counting(store: ReferenceStore, rows: Any) -> None:
        asked.extend(key for key, _, _ in rows)
        put(store, rows)

    def executing(job: Any, start: Any) -> Any:
        trained.append(job.out.name)
        return execute(job, start)

    monkeypatch.setattr(ReferenceStore, "put", counting)
    monkeypatch.setattr(sweep, "execute", executing)
    out = tmp_path / "s"
    assert main(swept(out, given, "loss=dpo,ipo", "beta=0.1,2", reward=reward)) == 0
    said = capsys.readouterr()
    assert trained == ["loss-dpo_beta-0.1", "loss-dpo_beta-2", "loss-ipo"]
    assert asked and len(asked) == len(set(asked))
    assert "run 2 of 3: loss-dpo_beta-2" in said.err
    assert all(name in said.out for name in [*trained, "reference", "frontier.svg", "report.html"])
    assert "Report on a sweep of 3 runs" in (out / "report.html").read_text()

    found = results(out)
    assert [one["status"] for one in found["runs"]] == ["done"] * 3
    points = found["frontier"]["points"]
    assert [point["name"] for point in points] == ["reference", *trained] and "curve" not in found["frontier"]
    assert points[0]["kl_interval"] == [0, 0] and points[1]["kl"] > 0
    for one, point in zip(found["runs"], points[1:], strict=True):
        own = tiny.results(out / one["name"])
        assert one["held_out"] == own["held_out"] and one["steps"] == 3
        assert (point["kl"], point["reward"]) == tuple(one["estimate"][axis]["value"] for axis in ("kl", "reward"))
        assert f"{point['reward']:.3f} (" in said.out

    alone = tmp_path / "alone"
    assert tiny.cli("train", given.model, given.pairs, alone, eval_fraction=0.25, max_steps=3, loss="ipo") == 0
    assert tiny.same(tiny.weights(alone), tiny.weights(out / "loss-ipo"))

    before, count = (out / "results.json").read_bytes(), len(asked)
    assert main(swept(out, given, "loss=dpo,ipo", "beta=0.1,2", reward=reward)) == 2
    assert "continue its sweep with --resume" in capsys.readouterr().err
    monkeypatch.setattr(sweep, "measure", None)  # what was estimated is known
    assert main(swept(out, given, "loss=dpo,ipo", "beta=0.1,2", reward=reward, resume=True)) == 0
    assert len(trained) == 3 and (out / "results.json").read_bytes() == before.replace(
        b'"resume": false', b'"resume": true'
    )
    monkeypatch.undo()
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ReferenceStore, "put", counting)
    assert main(swept(out, given, "loss=dpo,ipo", "beta=0.1,2,5", reward=reward, resume=True)) == 0
    assert [one["name"] for one in results(out)["runs"]][2] == "loss-dpo_beta-5" and len(asked) == count
    assert main(swept(out, given, "loss=dpo,ipo", "beta=0.1,2", reward=reward, resume=True, batch_size=8)) == 2
    assert f"--batch-size is 8 and was 4 when the run in {out}/" in capsys.readouterr().err


def test_prompts_that_are_cut_are_rewarded_too(given, tmp_path, reward):
    """The reward reads all of a prompt of which the policy reads the end."""
    rows = [
        {"prompt": f"{'the cat sat ' * 8}{i}?", "chosen": " thanks", "rejected": " no " * (i + 1)} for i in range(8)
    ]
    data = tiny.write(tmp_path / "long.jsonl", rows)
    options = SAMPLED | dict(reward=reward, max_length=40, overlong="cut-prompt")
    words = [*tiny.words("sweep", given.model, data, tmp_path / "s", **options), "--grid", "beta=1"]
    assert main(words) == 0
    assert results(tmp_path / "s")["runs"][0]["estimate"]["reward"]


def test_a_dry_run_writes_nothing(given, tmp_path, capsys):
    assert main([*swept(tmp_path / "s", given, "beta=0.1,1"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 runs in" in said and "beta-0.1  DPO(beta=0.1" in said and "3 steps" in said and "memory" in said
    assert not (tmp_path / "s").exists()


def test_a_run_that_fails_does_not_end_the_sweep(given, tmp_path, monkeypatch, capsys):
    def failing(job: Any, start: Any) -> Any:
        if job.config.loss_options == {"beta": 1.0}:
            raise RunFailed("step 2: loss nan")
        return execute(job, start)

    monkeypatch.setattr(sweep, "execute", failing)
    words = swept(tmp_path / "s", given, "beta=1,2", samples=0, max_new_tokens=None)
    assert main(words) == 1
    said = capsys.readouterr()
    assert [one["status"] for one in results(tmp_path / "s")["runs"]] == ["failed", "done"]
    assert "beta-1 failed: step 2: loss nan" in said.out and "1 of 2 runs failed (beta-1)" in said.err
    assert not (tmp_path / "s" / "frontier.svg").exists()
    monkeypatch.undo()
    assert main([*words, "--resume"]) == 0
    assert [one["status"] for one in results(tmp_path / "s")["runs"]] == ["done"] * 2


def test_a_signal_between_runs(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "measure", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert main(swept(tmp_path / "s", given, "beta=0.1")) == 75
    assert "stopped at run 1 of 1: beta-0.1; all is saved: continue" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    assert main([*swept(tmp_path / "s", given, "beta=0.1"), "--resume"]) == 0


def test_killed_and_stopped_it_ends_as_if_it_had_not_been(given, tmp_path):
    def line(out: str, *more: str, grid: str = "beta=0.1,1") -> list[str]:
        words = swept(tmp_path / out, given, grid, save_every=1, samples=0, max_new_tokens=None)
        return [*words, *more]

    script = [["kill", 2, line("a")], ["term", 3, line("a", "--resume")], ["", 0, line("a", "--resume")]]
    script.append(["", 0, line("b", grid="beta=0.1")])
    words = [sys.executable, "-m", "tests.train.tiny", json.dumps(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=550)
    assert json.loads(done.stdout.splitlines()[-1]) == [-signal.SIGKILL, 75, 0, 0], done.stderr
    a, b = results(tmp_path / "a"), results(tmp_path / "b")
    one, other = a["runs"][0], b["runs"][0]
    assert {**one, "seconds": 0, "peak_memory": 0} == {**other, "seconds": 0, "peak_memory": 0}
    assert tiny.same(tiny.weights(tmp_path / "a" / one["name"]), tiny.weights(tmp_path / "b" / one["name"]))
    assert a["runs"][1]["status"] == "done"


def test_from_python(given, tmp_path):
    settings = dict(model=given.model, data=given.pairs, batch_size=4, max_steps=2, max_new_tokens=4, samples=4)
    found = sweep.sweep(
        **settings,
        out=tmp_path / "s",
        reward=lambda prompts, responses: [len(r) for r in responses],
        runs=[
            {"loss": "dpo", "beta": 0.1, "learning_rate": 1e-2},
            {"name": "noisy", "loss": DPO(beta=0.1, label_smoothing=0.2), "learning_rate": 1e-3},
        ],
    )
    assert [point["name"] for point in found["frontier"]["points"]][1:] == [
        "loss-dpo_beta-0.1_learning-rate-0.01", "noisy",
    ]  # fmt: skip
    assert found["runs"][1]["settings"] == {"beta": 0.1, "label_smoothing": 0.2, "loss": "dpo", "learning_rate": 1e-3}
    with pytest.raises(UserError, match="either grid"):
        sweep.sweep(**settings, out=tmp_path / "t")


# --- the picture --------------------------------------------------------------------------------


def test_the_picture_stands_alone():
    """Well-formed, in colours that all have a value in light and dark, every point labelled, names as text only."""
    points = [
        {"name": "<script>&$x$", "kl": 1.0, "reward": 0.5, "reward_interval": [0.4, 0.6]},
        {"name": "beta-1", "kl": 2.0, "reward": 0.7},
    ]
    svg = of_sweep({"runs": [], "frontier": {"points": points}})
    assert svg is not None
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]
    assert {"<script>&$x$", "beta-1", "expected reward", "KL to the reference, nats"} <= set(texts)
    light, dark = svg[: svg.index("@media")], svg[svg.index("@media") : svg.index("</style>")]
    for role in set(re.findall(r"var\((--[\w-]+)\)", svg)):
        assert f"{role}:" in light and f"{role}:" in dark


def test_without_a_reward_the_picture_shows_accuracies():
    after = {"rewards/accuracies": 0.6, "rewards/accuracies_low": 0.5, "rewards/accuracies_high": 0.7}
    kl = {"value": 1.0, "low": 0.9, "high": 1.2}
    one = {"name": "a", "status": "done", "held_out": {"after": after}, "estimate": {"kl": kl}}
    assert "held-out accuracy" in (of_sweep({"runs": [one]}) or "")
    assert of_sweep({"runs": [{**one, "held_out": None}, {"name": "b", "status": "failed"}]}) is None


LONG = "group-by-prompt-true_learning-rate-0.0005_loss-ipo"


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 45])
@pytest.mark.parametrize("name", ["a", LONG])
def test_a_narrow_window_goes_without_columns_but_cuts_no_figure(width, name) -> None:
    accuracy = "rewards/accuracies"
    after = {accuracy: 0.6, f"{accuracy}_low": 0.5, f"{accuracy}_high": 0.7, "rewards/margins": 1.0, "loss": 0.5}
    kl, reward = dict(value=10.25, low=9.5, high=11.5), dict(value=-3.5, low=-4.5, high=-2.5)
    one = {"name": name, "status": "done", "steps": 3, "seconds": 4.0, "estimate": {"kl": kl, "reward": reward}}
    out = io.StringIO()
    console = Console(width=width, file=out, force_terminal=True, no_color=True)
    show.table({"runs": [one | {"training": {"after": after}, "held_out": {"after": after}}]}, console)
    lines = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()
    said = "".join(lines)
    assert max(map(len, lines)) <= width
    assert all(column in said for column in ("run", "held out", "KL, nats", "reward"))
    assert all(re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", said) for figure in ("0.600", "10.250", "-3.500"))
    start = next(i for i, line in enumerate(lines) if "──" in line) + 1
    below = itertools.takewhile(str.strip, lines[start:])
    assert "".join(re.split(r"\s{2,}", line.strip())[0] for line in below) == name
    assert ("More columns in a wider window" in said) == (width < 200)
    assert ("9.500 to 11.500" in said) == (width >= (120 if name == LONG else 100))
    assert ("time" in said) == (width >= 200)


def test_a_policy_that_went_astray_costs_its_own_figures_only(given, tmp_path, monkeypatch, capsys):
    measure, out = sweep.measure, tmp_path / "s"

    def measured(policy: str, *rest: Any) -> Any:
        if "beta-2" in policy:
            raise UserError("its log-probs are not finite")
        return measure(policy, *rest)

    monkeypatch.setattr(sweep, "measure", measured)
    assert main(swept(out, given, "beta=1,2")) == 1
    said = capsys.readouterr()
    assert "beta-2 failed: its log-probs are not finite" in said.out
    one, other = results(out)["runs"]
    assert one["status"] == "done" and one["estimate"]["kl"] and other["status"] == "failed"
    assert "beta-2 failed: its log-probs are not finite" in (out / "report.html").read_text()
