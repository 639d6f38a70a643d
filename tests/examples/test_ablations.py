"""The ablations, each at a size too small to say anything: they run, and their figures are what they are called."""

from __future__ import annotations

import doctest
from functools import partial
from importlib import import_module
from xml.etree import ElementTree

import numpy as np
import pytest

from examples.ablations import __main__ as command
from examples.ablations import beta, common, compute, noise, reference, temperature
from prefopt.demo import methods, processes, rl, world
from prefopt.demo.run import Size


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A smaller world, with SFT on a few of its reviews."""
    with pytest.MonkeyPatch.context() as patched:
        names = ("OPENINGS", "ADVERBS", "ADJECTIVES", "NOUNS", "DETAILS", "ASPECTS")
        words = {name: dict(list(getattr(world, name).items())[::2]) for name in names}
        for name in names:
            patched.setattr(world, name, words[name])
        patched.setattr(world, "SLOTS", tuple(map(tuple, words.values())))
        patched.setattr(processes, "_cores", lambda: 1)
        world.the_world.cache_clear()
        size = Size(corpus=640, corpus_epochs=1, pairs=256)
        yield common.Setting(tmp_path_factory.mktemp("ablations"), size, seeds=2)
    world.the_world.cache_clear()


def rows(found: common.Finding) -> list[list[str]]:
    """Of all its tables, without their heads."""
    ElementTree.fromstring(found.picture)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.table.splitlines()]
    heads = {i - 1 for i, line in enumerate(lines) if set("".join(line)) == {"-"}}
    return [line for i, line in enumerate(lines) if len(line) > 1 and i not in heads and i - 1 not in heads]


def test_beta(setting):
    first, second = rows(beta.ablation(setting, (0.1, 1.0)))
    assert (first[0], second[0]) == ("0.1", "1")
    assert float(first[2]) > float(second[2]) and "±" in first[1]


def test_reference(setting):
    found = rows(reference.ablation(setting, (0.5, 1.0)))
    assert [row[0] for row in found] == ["0.5", "0.5", "1", "1"]
    assert found[2][4:] == found[3][4:]  # with the whole of SFT, both write the same pairs


def test_temperature(setting):
    found = rows(temperature.ablation(setting, [methods.dpo(0.1)]))
    assert [row[0] for row in found] == ["SFT", "DPO, β = 0.1"] * 2
    assert all(0 <= float(cell.split()[0]) <= 1 for row in found[:2] for cell in row[1:])


def test_the_reward_of_all_counts_what_is_no_review():
    corpus, worst = world.the_world().corpus_logps, world.the_world().reward.min()
    whole = common.reward_of_all(corpus)
    assert common.reward_of_all(corpus - np.log(2)) == pytest.approx((whole + worst - 1) / 2)


def test_at_temperature_0_a_policy_is_its_likeliest_words(setting):
    """Sampled at 1, a model's E[r] of all is that of its enumeration."""
    start = setting.start()
    _, rewards = temperature.rates(start.model)
    assert rewards[temperature.TEMPERATURES.index(1.0)] == pytest.approx(common.reward_of_all(start.reference))
    cold = temperature.at(0.0, np.log([[0.2, 0.5, 0.3]]))
    np.testing.assert_array_equal(np.exp(cold), [[0, 1, 0]])
    np.testing.assert_allclose(temperature.at(1e-3, np.log([[0.2, 0.5, 0.3]])).argmax(), 1)


def test_noise(setting):
    found = rows(noise.ablation(setting, (0.0, 0.3)))
    assert [row[:2] for row in found] == [
        ["0%", "DPO"], ["0%", "IPO"], ["30%", "DPO"], ["30%", "cDPO"], ["30%", "robust DPO"], ["30%", "IPO"],
    ]  # fmt: skip


def test_compute(setting, monkeypatch):
    """FLOPs are counted, not timed; PPO is left out, which takes longer."""
    monkeypatch.setattr(compute, "_ppo", lambda *_: iter(()))
    short, long, *reached = rows(compute.ablation(setting, (0.5, 1.0), ()))
    assert float(long[-1]) > 1.5 * float(short[-1]) > 1e6
    assert [row[0] for row in reached] == [f"{reward:g}" for reward in compute.REWARDS]


def test_a_step_of_ppo_is_counted(setting, monkeypatch):
    monkeypatch.setattr(rl, "PPO", partial(rl.PPO, samples=2, passes=1, minibatches=1))
    start = setting.start()
    assert compute.per_step(lambda n: rl.ppo_to(3, n, False).policies(start), 1, 2)[1] > 1e6


def test_the_command_writes_table_and_picture(setting, monkeypatch, capsys):
    monkeypatch.setattr(beta, "ablation", lambda _: common.Finding("| β |", "<svg/>"))
    command.run("beta", setting)
    assert (setting.out / "beta.md").read_text() == "| β |\n" and (setting.out / "beta.svg").read_text() == "<svg/>"
    assert "| β |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["common", *command.NAMES])
def test_the_examples_in_their_docstrings(name):
    assert doctest.testmod(import_module(f"examples.ablations.{name}")).failed == 0
