"""``prefopt ppo`` as a person types it, and what its numbers are held against."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt import config, report
from prefopt.data.decode import decoded
from prefopt.data.encode import Encoder
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model, load_tokenizer
from prefopt.rl import loop, run
from prefopt.rl.loop import PPO, PPOState
from prefopt.rl.rewards import Function, load_reward, rewarded
from prefopt.rl.rollout import Cast
from prefopt.rl.value import ValueModel
from prefopt.train import evidence, optimizer
from prefopt.train.guard import Guard
from prefopt.train.loop import Schedule
from prefopt.types import Encoded
from tests.train import tiny

REWARD = "def count(pairs):\n    return [float(response.count('a')) for _, response in pairs]\n"
SHORT = dict(
    max_steps=5, batch_size=4, samples=2, max_new_tokens=5, passes=2, minibatches=2, target_kl=1.0,
    save_every=2, eval_every=2, eval_fraction=0.25,
)  # fmt: skip
UPDATES = 5 * 2 * 2


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report and short samples, which take longer than these runs."""
    monkeypatch.setattr(report, "write", lambda *_: None)
    monkeypatch.setattr(evidence, "SAMPLE_TOKENS", 2)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    torch.set_num_threads(1)
    (folder / "reward.py").write_text(REWARD)
    return tiny.model(folder / "model"), tiny.pairs(folder / "pairs.jsonl"), f"{folder / 'reward.py'}:count"


def cli(given, out: Path, **settings: object) -> int:
    model, data, reward = given
    return tiny.cli("ppo", model, data, out, **SHORT | dict(reward=reward) | settings)


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "write", lambda *_: None)
        assert cli(given, out) == 0
    return out


def assert_the_same(out: Path, whole: Path) -> None:
    assert tiny.same(tiny.weights(out), tiny.weights(whole))
    assert tiny.metrics(out) == tiny.metrics(whole)
    differ = {"seconds", "peak_memory", "config"}

    def figures(run: Path) -> dict:
        found = {key: value for key, value in tiny.results(run).items() if key not in differ}
        found["training"]["before"].pop("tokens_per_second")
        found["training"]["after"].pop("tokens_per_second")
        return found

    assert figures(out) == figures(whole)


# --- the folder ----------------------------------------------------------------------------------


def test_the_folder_is_that_of_every_run(given, whole):
    for name in ("config.yaml", "metrics.jsonl", "results.json", "samples.jsonl", "model/README.md"):
        assert (whole / name).is_file(), name
    AutoModelForCausalLM.from_pretrained(whole / "model")
    load_tokenizer(str(whole / "model"))
    again = config.load(whole / "config.yaml", config.PPO)
    assert again.target_kl == 1.0 and again.samples == 2
    assert tiny.steps_saved(whole) == [4, 5]
    assert not tiny.same(tiny.weights(whole), tiny.weights_of(given[0])), "it moved"


def test_the_metrics_have_the_fields_names(whole):
    lines = tiny.metrics(whole)
    trained = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5]
    names = "kl reward clipfrac approx_kl explained_variance entropy response_length kl_coef grad_norm learning_rate"
    for name in names.split():
        assert all(np.isfinite(line[name]) for line in trained if line[name] is not None), name
    assert [line["step"] for line in lines if line["split"] == "eval"] == [0, 2, 4, 5]
    assert trained[0]["kl"] == pytest.approx(0, abs=1e-5), "the first responses are the reference's own"
    assert trained[0]["kl_coef"] == 0.05 > trained[1]["kl_coef"], "too near to the reference: the penalty sinks"
    results = tiny.results(whole)
    for line in lines:
        assert (line["split"] == "eval") == ("reward_low" in line)
        assert line.get("reward_low", -1.0) <= line["reward"] <= line.get("reward_high", 99.0)
    assert results["method"] == "ppo" and results["held_out"]["before"]["kl"] == pytest.approx(0, abs=1e-5)


def test_dry_run_and_print_config_write_nothing(given, tmp_path, capsys):
    assert cli(given, tmp_path / "run", dry_run=True) == 0
    said = capsys.readouterr().out
    assert "18 prompts to train on, 6 held out" in said and "5 of 4 prompts with 2 responses each" in said
    assert cli(given, tmp_path / "run", print_config=True) == 0
    assert "target_kl: 1.0" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_prompts_alone_are_data_too(given, tmp_path):
    data = tiny.write(tmp_path / "prompts.jsonl", [{"prompt": f"the cat {i}"} for i in range(5)])
    few = dict(max_steps=2, eval_fraction=None, eval_every=None)
    assert cli((given[0], data, given[2]), tmp_path / "run", **few) == 0
    assert tiny.results(tmp_path / "run")["data"]["prompts"] == 5


def test_what_is_recomputed_changes_memory_only(given, tmp_path, monkeypatch):
    short = dict(max_steps=2, eval_fraction=None, eval_every=None)
    assert cli(given, tmp_path / "a", **short) == 0
    lms = []

    def all_of_them(self, batch, room):
        lms.extend([id(self)] if room and torch.is_grad_enabled() else [])
        return len(self.layers) if torch.is_grad_enabled() else 0

    monkeypatch.setattr(LanguageModel, "_recomputed", all_of_them)
    assert cli(given, tmp_path / "b", **short) == 0
    assert len(set(lms)) == 2  # policy and value model
    assert tiny.same(tiny.weights(tmp_path / "a"), tiny.weights(tmp_path / "b"))


# --- killed, stopped, resumed --------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_failure_at_any_step(given, whole, tmp_path, monkeypatch, at):
    take = run.ppo_step

    def failing(state, *rest, **more):
        if state.step + 1 == at:
            raise RuntimeError("the power went")
        return take(state, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(run, "ppo_step", failing)
        assert cli(given, tmp_path / "run") == 1
    assert cli(given, tmp_path / "run", resume=True) == 0
    assert_the_same(tmp_path / "run", whole)


def test_killed_and_stopped_at_a_random_moment(given, whole, tmp_path):
    """In the middle of a step, whose updates are half done: kill -9 twice and SIGTERM once."""
    rng = random.Random(5)
    deaths = [(name, rng.randint(1, UPDATES)) for name in ("KILL", "KILL", "TERM")]
    model, data, reward = given
    jobs = [
        [name, at, tiny.words("ppo", model, data, tmp_path / f"{i}", **SHORT | dict(reward=reward))]
        for i, (name, at) in enumerate(deaths)
    ]
    command = [sys.executable, "-m", "tests.rl.dying", json.dumps(jobs)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=300)
    statuses = json.loads(done.stdout.splitlines()[-1])
    for i, ((name, at), status) in enumerate(zip(deaths, statuses, strict=True)):
        out = tmp_path / f"{i}"
        assert status == (-signal.SIGKILL if name == "KILL" else 75), done.stderr
        if name == "TERM":
            assert tiny.steps_saved(out)[-1] == -(-at // 4), "saved at the end of its step"
        assert cli(given, out, resume=True) == 0
        assert_the_same(out, whole)


def test_what_decides_where_it_goes_may_not_change(given, whole, capsys):
    assert cli(given, whole, resume=True, kl_coef=0.1) == 2
    assert "--kl-coef is 0.1 and was 0.05" in capsys.readouterr().err
    assert cli(given, whole) == 2
    assert "holds a run already" in capsys.readouterr().err


# --- what it computes ----------------------------------------------------------------------------


class Fixture:
    """A state with all that a step needs, without a folder."""

    def __init__(self, folder: str, budget: int = 4096):
        policy, reference = (load_model(folder, device="cpu") for _ in range(2))
        encoder = Encoder(load_tokenizer(folder))
        reward = Function(lambda pairs: [response.count("a") for _, response in pairs], "count")
        texts = ["the cat", "a dog ran", "no", "the mat sat under"]
        ids = encoder.prompts(texts)
        self.asked = [Encoded(p, (), (), (), t, t, t) for p, t in zip(ids, texts, strict=True)]
        cast = Cast(policy, reference, ValueModel.of_policy(policy), reward, {t: t for t in texts}, budget)
        modules = policy.module, cast.value.lm.module
        ours, its = (optimizer.build("adamw", module.named_parameters()) for module in modules)
        self.state = PPOState(cast, encoder, ours, its, 0.05, Guard())
        self.method = PPO(samples=3, max_new_tokens=6, passes=2, minibatches=2, missing_eos_penalty=0.5)
        self.schedule = Schedule(20, 4, 5e-3, 0, "constant", 1.0, 0, 0, 20)

    def step(self, **more) -> dict[str, float]:
        values = loop.ppo_step(self.state, self.asked, self.schedule, replace(self.method, **more)).read()
        self.state.step += 1
        return values


@torch.no_grad()
def test_rollouts_are_scored_as_one_at_a_time(given):
    """Policy and value model in one tree, against each response alone in a plain forward; π_ref is π."""
    made = Fixture(given[0])
    cast = made.state.cast
    torch.nn.init.normal_(cast.value.lm.module.score.weight)
    rollouts = cast.roll_out(made.asked, 3, made.method.generator(cast, made.state.encoder, 0))
    logps, values = [], []
    for example in rollouts.examples:
        for response in example.responses:
            ids = torch.tensor(np.concatenate([example.prompt, response]).astype(np.int64))[None]
            at = torch.arange(len(example.prompt) - 1, ids.shape[1] - 1)
            log_p = cast.reference.bare(ids).logits[0].log_softmax(-1)
            logps.append(log_p[at, ids[0, at + 1]])
            hidden = cast.reference.bare.base_model(ids).last_hidden_state[0, at]
            values.append(cast.value.lm.module.score(hidden)[:, 0])
    assert cast.policy.way == "tree"
    torch.testing.assert_close(rollouts.logps, torch.cat(logps), rtol=0, atol=1e-4)
    torch.testing.assert_close(rollouts.reference, rollouts.logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(rollouts.values, torch.cat(values), rtol=0, atol=1e-3)
    text = made.state.encoder.tokenizer.decode
    counted = [text(r, skip_special_tokens=True).count("a") for e in rollouts.examples for r in e.responses]
    assert rollouts.scores.tolist() == counted


def test_the_implicit_reward_is_of_what_was_drawn(given, tmp_path):
    """Of responses that were cut off, without an end token."""
    made = Fixture(given[0])
    reward = load_reward(f"implicit:{given[0]}@{tiny.model(tmp_path / 'other', seed=1)}:1")
    cast = replace(made.state.cast, reward=reward)
    rollouts = cast.roll_out(made.asked, 3, made.method.generator(cast, made.state.encoder, 0))
    texts = [example.prompt_key for example in made.asked]
    said = decoded(made.state.encoder, texts, [example.responses for example in rollouts.examples])
    pairs = [(text, one) for text, of_text in zip(texts, said, strict=True) for one in of_text]
    assert not rollouts.ended.all() and rollouts.scores.tolist() != pytest.approx(reward(pairs), abs=1e-2)
    assert rollouts.scores.tolist() == pytest.approx(rewarded(reward, pairs, rollouts.ended.tolist()), abs=1e-4)


def test_a_step_does_not_depend_on_how_it_is_packed(given):
    """One response at a time, or all at once."""
    after = []
    for budget in (8, 4096):
        made = Fixture(given[0], budget=budget)
        made.step()
        after.append({name: w.clone() for name, w in made.state.cast.policy.weights().items()})
    start = load_model(given[0], device="cpu").weights()
    assert tiny.apart(*after) < 0.02 * tiny.apart(after[0], start)


def test_one_pass_over_one_minibatch_is_the_policy_gradient(given):
    """Nothing has moved when it is computed: ρ = 1 everywhere, nothing is clipped, and the mean of whitened Â is 0."""
    values = Fixture(given[0]).step(passes=1, minibatches=1)
    assert values["approx_kl"] == pytest.approx(0, abs=1e-8) and values["clipfrac"] == 0
    assert values["loss"] == pytest.approx(0, abs=1e-5)


def test_it_learns(given):
    """Twice the rate of "a" that it began with, and the value model tells good answers from bad ones."""
    made = Fixture(given[0])
    history = [made.step(samples=16, max_new_tokens=4, missing_eos_penalty=0.0) for _ in range(16)]
    assert history[-1]["reward"] > 2 * history[0]["reward"] + 0.5
    assert history[-1]["kl"] > 0.5 and history[0]["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert max(values["explained_variance"] for values in history) > 0.1


def test_a_large_penalty_holds_it_where_it_was(given):
    """β = 20: what it gains is not worth a nat."""
    free, held = Fixture(given[0]), Fixture(given[0])
    free.state.kl_coef, held.state.kl_coef = 0.0, 20.0
    for _ in range(10):
        moved, stayed = (made.step(samples=8, max_new_tokens=4) for made in (free, held))
    assert stayed["kl"] < 0.5 * moved["kl"]


@torch.no_grad()
def test_a_value_model_starts_as_the_reward_model(given):
    """At each token it forecasts what the reward model would give, were this the end."""
    torch.manual_seed(1)
    policy = load_model(given[0], device="cpu")
    classifier = AutoModelForSequenceClassification.from_pretrained(given[0], num_labels=1).eval()
    value = ValueModel.of_reward_model(classifier, policy)
    assert value is not None
    prompt, response = np.arange(5, 9, dtype=np.int32), np.arange(9, 12, dtype=np.int32)
    example = Encoded(prompt, (response,), (np.ones(3, bool),), (None,), "", "", "")
    found = value.score(value.lm.pack([example]))
    ids = torch.arange(5, 11)[None]
    expected = classifier.score(classifier.model(ids).last_hidden_state)[0, 3:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert value.lm.module.score.weight is not classifier.score.weight, "a copy"


def test_of_another_architecture_it_does_not(given, tmp_path):
    other = tiny.model(tmp_path / "gpt2", "gpt2")
    classifier = AutoModelForSequenceClassification.from_pretrained(other, num_labels=1)
    assert ValueModel.of_reward_model(classifier, load_model(given[0], device="cpu")) is None


# --- users' mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(reward=None), "needs --reward"),
        (dict(reward="nowhere.py:f"), "nowhere.py: no such file"),
        (dict(max_new_tokens=127), "no prompt leaves room for --max-new-tokens 127"),
        (dict(target_kl=None, horizon=50), "--horizon is about adapting β: add --target-kl"),
        (dict(kl_coef=0), "--kl-coef must be above 0 with --target-kl"),
        (dict(minibatches=5), "--minibatches must be at most --batch-size, which is 4"),
        (dict(gae_lambda=1.5), "--gae-lambda must be between 0 and 1"),
        (dict(overlong="cut-response"), "--overlong cut-response has no effect"),
        (dict(group_by_prompt=True), "--group-by-prompt has no effect"),
        (dict(clip_ratio=0), "--clip-ratio must be above 0"),
        (dict(seed=2**32), "--seed must be from 0 to 4294967295, not 4294967296"),
    ],
)
def test_mistakes_are_named(given, tmp_path, capsys, change, said):
    assert cli(given, tmp_path / "run", **change) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_strict_refuses_what_cannot_be_asked_and_what_is_trained_on_is_told(given, tmp_path, capsys):
    model, _, reward = given
    data = tiny.write(tmp_path / "odd.jsonl", [{"prompt": "the cat"}, {"prompt": 3}, {"prompt": "a dog"}])
    odd = (model, data, reward)
    settings = dict(eval_fraction=None, max_steps=2)
    assert cli(odd, tmp_path / "run", strict=True, eval_every=None, **settings) == 2
    assert "odd.jsonl:2" in (said := capsys.readouterr().err) and "--strict refuses such data" in said
    held_out = tiny.write(tmp_path / "held.jsonl", [{"prompt": "the cat"}, {"prompt": "no"}])
    assert cli(odd, tmp_path / "run", eval_data=held_out, **settings) == 0
    assert "1 of 2 held-out prompts are trained on too" in capsys.readouterr().err
    assert tiny.results(tmp_path / "run")["data"]["held out and trained on"] == 1


def test_a_reward_that_fails_is_named_by_its_line(given, tmp_path, capsys):
    (tmp_path / "bad.py").write_text("def f(pairs):\n    return [1 / 0]\n")
    assert cli(given, tmp_path / "run", reward=f"{tmp_path / 'bad.py'}:f") == 2
    assert "bad.py:2: ZeroDivisionError" in capsys.readouterr().err
