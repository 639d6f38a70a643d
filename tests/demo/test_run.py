"""The demo, shortened: the same road, with figures too few to be good."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from io import StringIO

import pytest

from prefopt.config import Demo
from prefopt.demo import methods, world
from prefopt.demo import run as demo
from prefopt.errors import UserError


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    """(folder, what was printed) of a demo in a smaller world, with a method of each kind."""
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
        patched.setattr(methods, "_cores", lambda: 1)
        patched.setenv("COLUMNS", "160")
        world.the_world.cache_clear()
        demo.run(Demo(out=out, seeds=2))
    world.the_world.cache_clear()
    return out, printed.getvalue()


def results(out):
    return json.loads((out / "results.json").read_text())


def test_every_method_is_placed_against_the_frontier(shortened):
    out, _ = shortened
    points = results(out)["frontier"]["points"]
    steps = {}
    for p in points:
        steps.setdefault(p["name"], []).append(p.get("step"))
    trained = {name: [1, 2] for name in ("DPO, β = 0.1", "DPO, β = 1", "KTO", "Preferred-FT")}
    assert steps == trained | {"Best-of-N": [None] * len(methods.BEST_OF)}
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
    assert json.loads((out / "dpo" / "results.json").read_text())["frontier"] == found["frontier"]
    ends = {p["name"]: p for p in found["frontier"]["points"]}
    ends.pop("Best-of-N")
    measured = map(json.loads, (out / "dpo" / "metrics.jsonl").read_text().splitlines())
    assert [m["kl"] for m in measured if "kl" in m][-1] == ends[methods.FLAGSHIP.name]["kl"]
    assert "KL to the reference over the steps" in page
    for name, p in ends.items():
        shown = rf"{re.escape(name)} +{p['kl']:.3f} +{p['reward']:.3f} +{p['efficiency']:.3f} +{p['missing']:.4f}"
        assert re.search(shown, printed), name
        row = re.search(rf">{re.escape(name)}</th>(.*?)</tr>", page, re.DOTALL)
        cells = re.findall(r"<td>(.*?)</td>", row[1].replace("−", "-"))
        shares = [f"{100 * p[share]:.1f} %" for share in ("missing", "efficiency")]
        assert cells == [f"{p['kl']:.3f}", f"{p['reward']:.3f}", *shares], name
    (noisy,) = found["noise"]["methods"]
    row = re.search(rf">{noisy['name']}</th>(.*?)</tr>", page, re.DOTALL)
    assert f"{100 * noisy['missing']:.1f} ± {100 * noisy['missing_sd']:.1f} %" in row[1]
    assert noisy["seeds"] == 2 and f"{noisy['kl']:.3f} ± {noisy['kl_sd']:.3f}" in printed


def test_one_line_for_each_method(shortened):
    """And no run's closing words between them."""
    _, printed = shortened
    assert printed.count("KTO") == 2 and "Trained for" not in printed


def test_one_run_at_every_beta(shortened):
    """Realigned to its own β a run is itself, whole or token by token: both are exact there."""
    out, _ = shortened
    found = results(out)["realignment"]
    (own,) = [row for row in found["at"] if row["beta"] == found["beta"]]
    ended = [p for p in results(out)["frontier"]["points"] if p["name"] == found["run"]][-1]
    assert own["strength"] == 1
    for how in ("sequences", "tokens"):
        assert own[how]["kl"] == pytest.approx(ended["kl"], abs=1e-4)


def test_the_demo_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        demo.run(Demo(out=tmp_path))
