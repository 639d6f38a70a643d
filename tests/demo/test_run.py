"""The demo, shortened: the same road, with figures too few to be good."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO

import numpy as np
import pytest

from prefopt.config import Demo
from prefopt.demo import best_of, methods, processes, world
from prefopt.demo import run as demo
from prefopt.errors import UserError


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    """(folder, what was printed) of a demo in a smaller world, with a method of each kind and two seeds."""
    out, printed = tmp_path_factory.mktemp("demo"), StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(printed):
        names = ("OPENINGS", "ADVERBS", "ADJECTIVES", "NOUNS", "DETAILS", "ASPECTS")
        words = {name: dict(list(getattr(world, name).items())[::2]) for name in names}
        for name in names:
            patched.setattr(world, name, words[name])
        patched.setattr(world, "SLOTS", tuple(map(tuple, words.values())))
        patched.setattr(demo, "SMALL", demo.Size(corpus=640, corpus_epochs=1, pairs=256, looks=2))
        patched.setattr(demo, "BESIDE", [m for m in methods.BESIDE if m.name in ("DPO, β = 1", "KTO", "Preferred-FT")])
        patched.setattr(demo, "UNDER_NOISE", methods.UNDER_NOISE[1:2])
        reduced = [demo.rl.ppo_to(3, 2, learned) for learned in (True, False)]
        reduced = [replace(method, policies=partial(method.policies, prompts=8)) for method in reduced]
        patched.setattr(demo.rl, "REDUCED", reduced)
        patched.setattr(processes, "_cores", lambda: 1)
        patched.setenv("COLUMNS", "160")
        world.the_world.cache_clear()
        patched.setattr(demo, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.run(Demo(out=out, seeds=2))
        printed.truncate(0)
        for module, work in ((demo, "sft"), (demo, "train"), (methods, "_keep")):
            patched.setattr(module, work, interrupted)  # what was done before is not done again
        # a model that has learned so little writes hardly a review
        patched.setattr(
            demo, "draw", lambda world, *_: np.random.default_rng(0).integers(len(world.texts), size=(4, 512))
        )
        demo.run(Demo(out=out, seeds=2, resume=True))
    world.the_world.cache_clear()
    return out, printed.getvalue()


def interrupted(*_, **__):
    raise KeyboardInterrupt


def results(out):
    return json.loads((out / "results.json").read_text())


def test_every_method_is_placed_against_the_frontier(shortened):
    out, _ = shortened
    points = results(out)["frontier"]["points"]
    steps = {}
    for p in points:
        steps.setdefault(p["name"], []).append(p.get("step"))
    names = ("DPO, β = 0.1", "DPO, β = 1", "KTO", "Preferred-FT", "PPO, KL 3", "PPO-GT, KL 3")
    best = {f"Best-of-N, {by} reward": [None] * len(best_of.BEST_OF) for by in ("true", "learned")}
    assert steps == {name: [1, 2] for name in names} | best
    assert all(len(p["each"]) == 2 for p in points if p["name"] in names)
    curve = results(out)["frontier"]["curve"]
    assert curve == sorted(curve) and all(p["efficiency"] <= 1 for p in points)
    assert (out / "methods" / "kto" / "seed-0" / "model.safetensors").exists()


def test_the_table_ends_with_the_optimum_of_each_beta(shortened):
    _, printed = shortened
    assert re.findall(r"optimum at β = (\S+)", printed) == ["5", "1", "0.5", "0.1", "0.05"]


def test_the_same_figures_everywhere(shortened):
    """Terminal, results.json, the report and the run that the report is about."""
    out, printed = shortened
    page, found = (out / "report.html").read_text(), results(out)
    assert "The demo: DPO and its rivals" in page
    assert json.loads((out / "dpo" / "results.json").read_text())["frontier"] == found["frontier"]
    ends = {p["name"]: p for p in found["frontier"]["points"] if not p["name"].startswith("Best-of-N")}
    measured = map(json.loads, (out / "dpo" / "metrics.jsonl").read_text().splitlines())
    assert [m["kl"] for m in measured if "kl" in m][-1] == ends[methods.FLAGSHIP.name]["each"][0][0]
    assert "KL to the reference over the steps" in page
    for name, p in ends.items():

        def spread(figure, digits, unit=1, p=p):
            return f"{unit * p[figure]:.{digits}f} ± {unit * p[f'{figure}_sd']:.{digits}f}"

        shown = [name, *(spread(figure, 3) for figure in ("kl", "reward", "efficiency")), spread("missing", 4)]
        assert re.search(" +".join(map(re.escape, shown)), printed), name
        row = re.search(rf">{re.escape(name)}</th>(.*?)</tr>", page, re.DOTALL)
        cells = re.findall(r"<td>(.*?)</td>", row[1].replace("−", "-"))
        shares = [f"{spread(share, 1, 100)}\N{NO-BREAK SPACE}%" for share in ("missing", "efficiency")]
        assert cells == [spread("kl", 3), spread("reward", 3), *shares], name
    assert all(f">{family}</text>" in (out / "frontier.svg").read_text() for family in ("DPO", "KTO", "PPO", "PPO-GT"))
    kl, low, high = found["best_of_n"]["learned"][0]["drawn"]["kl"]
    assert f"{kl:.3f} ({low:.3f}–{high:.3f})" in page and f"{kl:.3f} ({low:.3f} to {high:.3f})" in printed
    (noisy,) = found["noise"]["methods"]
    row = re.search(rf">{noisy['name']}</th>(.*?)</tr>", page, re.DOTALL)
    assert f"{100 * noisy['missing']:.1f} ± {100 * noisy['missing_sd']:.1f} %" in row[1]
    assert noisy["seeds"] == 2 and f"{noisy['kl']:.3f} ± {noisy['kl_sd']:.3f}" in printed


def test_one_line_for_each_method(shortened):
    """And no run's closing words between them."""
    _, printed = shortened
    assert printed.count("KTO") == 3 and "Trained for" not in printed


def test_one_run_at_every_beta(shortened):
    """Realigned to its own β a run is itself, whole or token by token: both are exact there."""
    out, _ = shortened
    found = results(out)["realignment"]
    (own,) = [row for row in found["at"] if row["beta"] == found["beta"]]
    ended = [p for p in results(out)["frontier"]["points"] if p["name"] == found["run"]][-1]
    assert own["strength"] == 1
    for how in ("sequences", "tokens"):
        assert own[how]["kl"] == pytest.approx(ended["each"][0][0], abs=1e-4)


def test_the_demo_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        demo.run(Demo(out=tmp_path))
    with pytest.raises(UserError, match=r"mine.txt: cannot be written \(File exists\)"):
        demo.run(Demo(out=tmp_path / "mine.txt"))


def test_what_cannot_be_resumed(shortened, tmp_path):
    out, _ = shortened
    with pytest.raises(UserError, match="other settings"):
        demo.run(Demo(out=out, seeds=3, resume=True))
    (tmp_path / "settings.json").write_text((out / "settings.json").read_text())
    with pytest.raises(UserError, match="not empty"):
        demo.run(Demo(out=tmp_path))
