"""Runs from Python, with losses that are objects and settings that no command line has looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt import train as api
from prefopt.errors import UserError
from prefopt.losses import DPO
from tests.train import tiny


def test_from_python(given, tmp_path, capsys):
    """A loss by name, as an object, as a class of one's own and as a function; and what comes back is results.json."""
    settings = dict(max_steps=4, batch_size=4, learning_rate=1e-2, warmup_steps=1, seed=3)

    def mine(policy, reference, preferences):
        return DPO(beta=0.3)(policy, reference, preferences)

    class Mine:
        def __call__(self, policy, reference, preferences):
            return mine(policy, reference, preferences)

    got = {}
    for name, loss in {
        "name": "dpo",
        "object": DPO(beta=0.3),
        "class": Mine,
        "instance": Mine(),
        "function": mine,
    }.items():
        options = dict(loss_options={"beta": 0.3}) if name == "name" else {}
        out = tmp_path / name
        returned = api.train(model=given.model, data=given.pairs, loss=loss, out=out, **settings, **options)
        assert returned.items() <= tiny.results(out).items()
        got[name] = returned["method"]
        assert tiny.same(tiny.weights(out), tiny.weights(tmp_path / "name"))
    by_option = api.train(model=given.model, data=given.pairs, beta=0.3, out=tmp_path / "option", **settings)
    assert by_option["loss"] == "DPO(beta=0.3, label_smoothing=0.0)"
    with pytest.raises(UserError, match="unknown key betta; did you mean beta"):
        api.train(model=given.model, data=given.pairs, betta=0.3, out=tmp_path / "typo", **settings)
    assert got == {"name": "dpo", "object": "dpo", "class": "Mine", "instance": "Mine", "function": "mine"}


def test_a_loss_of_ones_own_is_known_again_by_another_process(given, tmp_path):
    """Objects, and so their addresses, are new ones there."""

    def fresh(kind: str):
        def mine(policy, reference, preferences):
            return DPO(beta=0.3)(policy, reference, preferences)

        class Mine:
            def __call__(self, policy, reference, preferences):
                return mine(policy, reference, preferences)

        return mine if kind == "function" else Mine()

    for kind in ("function", "instance"):
        settings = dict(model=given.model, data=given.pairs, out=tmp_path / kind, batch_size=4, max_steps=4)
        api.train(loss=fresh(kind), **settings)
        assert " at 0x" not in tiny.results(tmp_path / kind)["loss"]
        assert api.train(loss=fresh(kind), resume=True, **settings)["steps"] == 4


def test_sft_from_python_is_the_command(given, tmp_path):
    api.sft(
        model=given.model,
        data=[given.pairs],
        out=tmp_path / "a",
        max_steps=4,
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=1,
        seed=3,
    )
    assert tiny.cli("sft", given.model, given.pairs, tmp_path / "b") == 0
    assert tiny.same(tiny.weights(tmp_path / "a"), tiny.weights(tmp_path / "b"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(overlong="cut_prompt"), "--overlong must be one of drop, cut-prompt, cut-response, not 'cut_prompt'"),
        (dict(optimizer="sgd"), "--optimizer must be one of adamw, rmsprop, not 'sgd'"),
        (dict(strict="false"), "--strict must be True or False, not 'false'"),
        (dict(max_steps=1.5), "--max-steps must be a whole number, not 1.5"),
    ],
)
def test_from_python_a_setting_is_held_against_its_kind(given, tmp_path, settings, said):
    with pytest.raises(UserError) as error:
        api.train(model=given.model, data=given.pairs, out=tmp_path / "run", **settings)
    assert said in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("function", "settings", "said"),
    [
        (api.train, dict(learning_rat=1e-5), "train(): unknown key learning_rat; did you mean learning_rate?"),
        (api.train, dict(lr=1e-5, loss=DPO(beta=0.2)), "train(): unknown key lr; did you mean learning_rate?"),
        (api.train, dict(tau=0.1), "train(): tau has no effect on dpo, whose options are beta, label_smoothing"),
        (api.train, dict(tau=0.1, loss=lambda *_: None), "train(): unknown key tau"),
        (api.sft, dict(learning_rat=1e-5), "sft(): unknown key learning_rat; did you mean learning_rate?"),
        (api.sft, dict(loss="dpo"), "sft() takes no loss: it imitates the chosen responses; train() tunes with one"),
    ],
)
def test_from_python_an_unknown_setting_is_named(given, tmp_path, function, settings, said):
    with pytest.raises(UserError) as error:
        function(model=given.model, data=given.pairs, out=tmp_path / "run", **settings)
    assert said in str(error.value) and not (tmp_path / "run").exists()


def test_from_python_paths_are_names(given, tmp_path):
    paths = dict(model=Path(given.model), data=Path(given.pairs), eval_data=[Path(given.rankings)])
    assert api.train(**paths, out=tmp_path / "run", max_steps=1, reference=Path(given.model))["steps"] == 1
