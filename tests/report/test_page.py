"""The page: what stands on it, for every kind of run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from prefopt.cli import main
from prefopt.errors import UserError
from prefopt.report import write
from prefopt.train.table import table_rows
from tests.report import made
from tests.report.made import Page


def page(tmp_path: Path, *runs: Path) -> Page:
    write(runs, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_a_run_is_told_from_the_verdict_to_the_versions(tmp_path):
    found = page(tmp_path, made.run(tmp_path / "polite"))
    assert "polite" in found.text
    assert "On 20 held-out pairs the tuned model gives the better answer the higher reward in 90.0 %" in found.text
    for heading in (
        "Before and after", "Over the steps", "Loss", "Accuracy", "Margin", "Log-probability", "Rewards",
        "Weight in the gradient", "Where the model disagrees", "What it answers", "How it was made",
    ):  # fmt: skip
        assert heading in found.text, heading
    assert found.names.count("svg") == 6
    assert "chosen 0 plain" in found.text and "prefopt" in found.text


def test_the_table_holds_the_figures_of_the_terminal(quick, tmp_path):
    run = made.run(tmp_path / "run")
    _, rows = table_rows(json.loads((run / "results.json").read_text()))
    text = page(tmp_path, run).text
    for _, *cells in rows:
        for cell in cells:
            assert cell.replace("-", "−") in text


def test_the_worst_pairs_come_first_with_what_the_model_thinks_of_them(quick, tmp_path):
    text = page(tmp_path, made.run(tmp_path / "run")).text
    order = [int(n) for n in re.findall(r"chosen (\d) plain", text)]
    assert order == [0, 1, 2]  # margins −0.75, −0.5, −0.25; the pair with 0 is not the wrong way round
    assert "margin −0.75: it gives this label a chance of 32.1 %" in text  # σ(−0.75) = 0.3208


def test_a_loss_that_tells_margins_alone_shows_no_pairs(quick, tmp_path):
    run = made.run(tmp_path / "run")
    rows = [made.pair(i, "eval", "plain") for i in range(4)]
    made.lines(
        run / "pairs.jsonl", [{k: v for k, v in row.items() if not k.endswith(("chosen", "rejected"))} for row in rows]
    )
    assert "Where the model disagrees" not in page(tmp_path, run).text


def test_the_weights_are_summed_up(quick, tmp_path):
    """Ten pairs with margins −0.75, −0.5, ..., 1.5: four are at most 0, and weigh 2.303 of 4.186."""
    weights = [1 / (1 + math.exp(0.25 * (i - 3))) for i in range(10)]
    share = sum(weights[:4]) / sum(weights)
    text = page(tmp_path, made.run(tmp_path / "run")).text
    assert f"the 40 % of the training pairs that the model gets wrong make {100 * share:.0f} % of the pull" in text


def test_an_unfinished_run_says_so_and_shows_what_there_is(quick, tmp_path):
    found = page(tmp_path, made.run(tmp_path / "run", finished=False))
    assert "This run has not finished: it has no results.json, and what follows is as of step 30." in found.text
    assert "Loss" in found.text and "Before and after" in found.text


def test_what_was_evaluated_before_the_first_step_only_is_not_what_came_out(quick, tmp_path):
    run = made.run(tmp_path / "run", finished=False)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    made.lines(run / "metrics.jsonl", [r for r in records if r["split"] == "train" or r["step"] == 0])
    text = page(tmp_path, run).text
    assert "This run has not finished" in text and "Accuracy" in text
    assert "Nothing was learned" not in text and "went from" not in text


def test_figures_keep_the_digits_of_their_axes(tmp_path):
    run = made.run(tmp_path / "run")
    made.lines(run / "metrics.jsonl", [made.step(i, "train", 0, loss=0.69 + i / 1e4) for i in range(1, 9)])
    page(tmp_path, run)
    ticks = re.findall(r"<text[^>]*>(0\.6\d+)<", (tmp_path / "report.html").read_text())
    assert len(ticks) == len(set(ticks)) > 2


def test_a_run_without_any_line_yet(quick, tmp_path):
    run = made.run(tmp_path / "run", finished=False)
    (run / "metrics.jsonl").write_text("")
    assert "as of step 0" in page(tmp_path, run).text


def test_units_of_different_losses_are_not_different_data(quick, tmp_path):
    runs = [
        made.run(tmp_path / name, unit=unit, data={"fingerprint": unit + data})
        for name, unit, data in (("a", "pair", "1"), ("b", "response", "1"), ("c", "pair", "2"))
    ]
    said = "did not have the same data"
    assert said not in page(tmp_path, *runs[:2]).text and said in page(tmp_path, *runs).text


def test_a_report_is_written_over_a_report_only(quick, tmp_path, capsys):
    run, data = made.run(tmp_path / "run"), tmp_path / "prefs.jsonl"
    data.write_text("{}")
    assert main(["report", str(run), "--out", str(data)]) == 2
    assert "exists and is no page" in capsys.readouterr().err and data.read_text() == "{}"
    for _ in range(2):
        assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0


def test_ppo_is_told_by_its_reward_and_not_by_its_loss(tmp_path):
    run = tmp_path / "ppo"
    run.mkdir()
    (run / "config.yaml").write_text("model: base\n")
    steps = [{"step": i, "split": "train", "loss": 0.01, "reward": i / 10, "kl": i / 5} for i in range(1, 11)]
    made.lines(run / "metrics.jsonl", steps)
    around = {"before": {"loss": 0.01, "reward": 0.1, "kl": 0.0}, "after": {"loss": 0.02, "reward": 1.0, "kl": 2.0}}
    (run / "results.json").write_text(json.dumps({"steps": 10, "training": around, "held_out": None}))
    text = page(tmp_path, run).text
    said = "the mean reward of what the model answers went from 0.100 to 1.000, 2.00 nats from the reference"
    assert f"On training prompts {said}." in text
    assert "Mean reward of what the model answers" in text and "Lower is better" not in text


def test_of_held_out_data_is_spoken_where_there_are_some(tmp_path):
    run = made.run(tmp_path / "run")
    said = ["shaded is the 95 % interval", "held-out rising while training falls"]
    assert all(words in page(tmp_path, run).text for words in said)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    made.lines(run / "metrics.jsonl", [record for record in records if record["split"] != "eval"])
    assert not any(words in page(tmp_path, run).text for words in said)


def test_demonstrations_have_a_loss_and_no_pairs(tmp_path):
    run = tmp_path / "sft"
    run.mkdir()
    (run / "config.yaml").write_text("model: base\n")
    made.lines(run / "metrics.jsonl", [{"step": i, "split": "train", "loss": 2.0 / (i + 1)} for i in range(3)])
    figures = {"before": {"loss": 2.0}, "after": {"loss": 0.5}}
    (run / "results.json").write_text(json.dumps({"steps": 3, "training": figures, "held_out": None}))
    found = page(tmp_path, run)
    assert "The loss on training data went from 2.000 to 0.500 in 3 steps." in found.text
    assert "Where the model disagrees" not in found.text and found.names.count("svg") == 1
    made.lines(run / "metrics.jsonl", [{"step": i, "split": "train", "logps/chosen": -9.0} for i in range(3)])
    assert "How likely the model finds the responses, in nats." in page(tmp_path, run).text


def labelled(folder: Path, finished: bool = True) -> Path:
    """A run on responses that were labelled one by one."""
    made.run(folder, finished=finished, unit="response")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    of_pairs = ("rewards/margins", "rewards/accuracies")
    rows = [{name: value for name, value in record.items() if not name.startswith(of_pairs)} for record in records]
    made.lines(folder / "metrics.jsonl", rows)
    (folder / "pairs.jsonl").unlink(missing_ok=True)
    if finished:
        results = json.loads((folder / "results.json").read_text())
        results["held_out"], results["training"] = ({"before": rows[0], "after": rows[-1]} for _ in range(2))
        for around in (*results["held_out"].values(), *results["training"].values()):
            around.pop("split", None)
        (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize("finished", [True, False])
def test_responses_that_are_labelled_one_by_one_are_desirable_or_not(tmp_path, finished):
    found = page(tmp_path, labelled(tmp_path / "kto", finished))
    assert "reward(desirable)" in found.text and "undesirable, held-out" in found.text
    assert not re.search("chosen|rejected", found.text)
    drawn = [attributes["aria-label"] for tag, attributes in found.tags if tag == "svg"]
    assert drawn[1:] == [
        f"{what} of the desirable and the undesirable responses over the steps"
        for what in ("Rewards", "Log-probability")
    ]


def test_runs_on_pairs_and_on_labels_have_their_words_on_one_page(tmp_path):
    text = page(tmp_path, labelled(tmp_path / "kto"), made.run(tmp_path / "dpo")).text
    assert "Of responses that were labelled one by one, chosen means desirable, and rejected undesirable." in text
    assert "Mean rewards; the further apart, the better told apart. Dashed: undesirable. Held-out data." in text
    assert "Dashed: undesirable or rejected. Held-out data." in text


def test_losses_of_two_methods_have_no_axis_in_common(tmp_path):
    runs = [made.run(tmp_path / name, text) for name, text in (("a", "dpo"), ("b", "ipo"), ("c", "dpo"))]
    page(tmp_path, *runs)
    html = (tmp_path / "report.html").read_text()
    keys = {
        title: re.findall(r"</i>(\w)</span>", figure)
        for title, figure in re.findall(r"<h3>(Loss[^<]*)</h3>(.*?)</figure>", html, flags=re.S)
    }
    assert keys == {"Loss, dpo": ["a", "c"], "Loss, ipo": ["b"]}
    assert "run-2" in html[html.index("Loss, dpo") : html.index("Loss, ipo")], "a run has one colour on all of a page"


@pytest.mark.parametrize(
    ("settings", "method"),
    [({}, "sft"), ({"rankings": False}, "reward"), ({"reward": "r.py:r"}, "ppo"), ({"loss": "ipo"}, "ipo")],
)
def test_the_method_of_a_run_that_has_not_finished_is_told_by_its_settings(tmp_path, settings, method):
    run = made.run(tmp_path / "a", finished=False)
    (run / "config.yaml").write_text(yaml.safe_dump({"model": "base"} | settings))
    assert f"method{method}dpo" in page(tmp_path, run, made.run(tmp_path / "b", "dpo")).text


def test_the_data_of_a_run_that_has_not_finished_are_not_known(quick, tmp_path):
    text = page(tmp_path, made.run(tmp_path / "a"), made.run(tmp_path / "b", finished=False)).text
    assert "did not have the same data" not in text


def test_several_runs_share_their_axes_and_one_table(tmp_path):
    found = page(tmp_path, made.run(tmp_path / "a"), made.run(tmp_path / "b", text="other"))
    assert "The runs side by side" in found.text and "Settings that differ" in found.text
    assert "a and b have the same held-out accuracy: 90.0 % (95 % interval 60.0 to 95.0)." in found.text
    assert "Rewards of a" in found.text and "Rewards of b" in found.text
    assert "did not have the same data" in found.text
    assert found.names.count("table") == 2


def with_accuracy(folder: Path, accuracy: float, split: str = "held_out", **more: object) -> Path:
    after = {"loss": 0.5, "rewards/accuracies": accuracy, "rewards/margins": 0.2, "pairs": 9} | {
        f"rewards/accuracies_{end}": accuracy + width for end, width in (("low", -0.1), ("high", 0.1))
    }
    return made.run(folder, **{"held_out": None, split: {"before": {"loss": 0.7}, "after": after}, **more})


def test_the_best_is_named_among_those_that_can_be_compared(tmp_path):
    names = {"a": 0.75, "b": 0.9, "c": 0.9, "d": 0.85}
    runs = [with_accuracy(tmp_path / name, accuracy) for name, accuracy in names.items()]
    trained = with_accuracy(tmp_path / "trained", 1.0, "training")
    said = "Of a, b, c and d, b and c have the highest held-out accuracy: 90.0 % (95 % interval 80.0 to 100.0)"
    of_rewards = [with_accuracy(tmp_path / f"r{i}", 0.9 + i / 100, method="reward") for i in range(2)]
    said += "; the intervals of a and d overlap with it, so their order may be chance."
    assert said in page(tmp_path, *runs, trained, of_rewards[0]).text
    assert "highest" not in page(tmp_path, runs[0], trained, of_rewards[0]).text
    assert "Of r0 and r1, r1 has the highest" in page(tmp_path, *of_rewards).text


def test_the_least_sure_of_equals_speaks_for_them(tmp_path):
    runs = [with_accuracy(tmp_path / name, accuracy) for name, accuracy in (("a", 0.75), ("b", 0.75), ("c", 0.7))]
    results = json.loads((runs[1] / "results.json").read_text())
    results["held_out"]["after"] |= {"rewards/accuracies_low": 0.74, "rewards/accuracies_high": 0.76}
    (runs[1] / "results.json").write_text(json.dumps(results))
    for order in (runs, [runs[1], runs[0], runs[2]]):
        text = page(tmp_path, *order).text
        assert "75.0 % (95 % interval 65.0 to 85.0); the interval of c overlaps with it" in text


def test_chosen_and_rejected_are_compared_on_the_same_data(tmp_path):
    sft = tmp_path / "sft"
    sft.mkdir()
    made.lines(sft / "metrics.jsonl", [{"step": i, "split": "train", "logps/chosen": -9.0} for i in range(3)])
    text = page(tmp_path, sft, made.run(tmp_path / "dpo")).text
    assert "Dashed: rejected. Training data." in text
    assert "Dashed: rejected. Held-out data." in page(tmp_path, made.run(tmp_path / "a"), tmp_path / "dpo").text


def test_every_run_of_a_large_sweep_is_in_the_legend(tmp_path):
    names = [f"beta-{i}" for i in range(12)]
    for name in names:
        made.run(tmp_path / "sweep" / name)
    points = [{"name": name, "kl": i, "reward": i} for i, name in enumerate(["reference", *names])]
    results = {"runs": [{"name": name} for name in names], "frontier": {"points": points}}
    (tmp_path / "sweep" / "results.json").write_text(json.dumps(results))
    page(tmp_path, tmp_path / "sweep")
    html = (tmp_path / "report.html").read_text()
    keys = re.findall(r"--c: var\(--([\w-]+)\)\"></i>([\w-]+)</span>", html[: html.index("</figure>")])
    assert keys == [("reference", "reference"), *((f"run-{i % 10}", name) for i, name in enumerate(names))]
    html = page(tmp_path, tmp_path / "sweep", made.run(tmp_path / "dpo")).text
    assert "sweep/beta-0" in html and "sweep: reference" in html and "sweep: beta-0" not in html


def test_runs_of_different_kinds_each_show_what_they_know(tmp_path):
    ppo = tmp_path / "ppo"
    ppo.mkdir()
    made.lines(
        ppo / "metrics.jsonl", [{"step": i, "split": "train", "loss": 0.01, "reward": i / 10} for i in range(1, 5)]
    )
    around = {when: {"loss": 0.01, "reward": reward, "kl": 1.0} for when, reward in (("before", 0.1), ("after", 0.7))}
    (ppo / "results.json").write_text(json.dumps({"steps": 4, "training": around, "held_out": None, "method": "ppo"}))
    text = page(tmp_path, made.run(tmp_path / "dpo"), ppo).text
    assert re.search(r"data\s*held-out\s*training", text) and "+0.700" in text
    assert "Mean reward of what the model answers; higher is better. Training data." in text
    assert "Lower is better, but only between runs with the same loss and its options. Held-out data." in text


def test_a_sweep_is_its_runs(tmp_path):
    sweep = tmp_path / "sweep"
    kl = {end: value for end, value in (("value", 1.5), ("low", 1.2), ("high", 1.8))}
    for name, accuracy in (("beta-1", 0.6), ("beta-2", 0.8)):
        with_accuracy(sweep / name, accuracy)
    made.run(sweep / "beta-3", finished=False)
    text = page(tmp_path, sweep).text
    assert "Report on 3 runs" in text and "beta-3: This run has not finished" in text

    records = [{"name": name, "status": "done", "estimate": {"kl": kl}} for name in ("beta-1", "beta-2")]
    records += [{"name": "beta-3", "status": "failed", "error": "it diverged"}, {"name": "../sweep"}]
    (sweep / "results.json").write_text(json.dumps({"runs": records}))
    text = page(tmp_path, sweep).text
    assert (
        "Report on a sweep of 2 runs" in text
        and "beta-3 failed: it diverged" in text
        and "Of beta-1 and beta-2, beta-2 has the highest" in text
    )
    assert "Accuracy against KL" in text and re.search(r"KL, of samples\s*1.500\s*1.500", text)
    assert "sweep/beta-1" in page(tmp_path, sweep, made.run(tmp_path / "dpo")).text
    point = {"name": "beta-1", "kl": 1.5, "reward": 0.3}
    (sweep / "results.json").write_text(json.dumps({"runs": records, "frontier": {"points": [point]}}))
    text = page(tmp_path, sweep).text
    assert "Reward against KL" in text and "efficiency" not in text
    records[0]["estimate"] = {"kl": 3}
    (sweep / "results.json").write_text(json.dumps({"runs": records}))
    with pytest.raises(UserError, match=r'results.json: the "kl" of beta-1 must hold "value", "low" and "high"'):
        page(tmp_path, sweep)
    (sweep / "results.json").write_text(json.dumps({"runs": [{"name": "a", "status": "failed", "error": "no"}]}))
    assert "Report on a sweep of 0 runs" in page(tmp_path, sweep).text
    (sweep / "results.json").write_text('{"runs": 3}')
    assert "Report on a run" in page(tmp_path, sweep).text


def test_runs_of_one_name_are_told_apart(quick, tmp_path):
    text = page(tmp_path, made.run(tmp_path / "x" / "run"), made.run(tmp_path / "y" / "run")).text
    assert str(tmp_path / "x" / "run") in text and str(tmp_path / "y" / "run") in text


def test_the_frontier_is_drawn_with_its_table(tmp_path):
    points = [{"name": "dpo", "kl": k, "reward": k / 2, "step": k} for k in (1, 2)]
    points.append(
        {
            "name": "ipo",
            "kl": 1,
            "reward": 0.4,
            "reward_interval": [0.3, 0.5],
            "kl_interval": [0.9, 1.1],
            "efficiency": 0.975,
        }
    )
    found = page(
        tmp_path, made.run(tmp_path / "run", frontier={"curve": [[0, 0], [1, 0.6], [4, 2.2]], "points": points})
    )
    assert "Reward against KL" in found.text
    assert "0.400 (0.300–\u20600.500)" in found.text and "97.5\N{NO-BREAK SPACE}%" in found.text


def test_values_that_are_no_numbers_are_left_out_of_the_figures(tmp_path):
    run = made.run(tmp_path / "run", training={"before": {"loss": 0.7}, "after": {"loss": "nan"}}, held_out=None)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "split": "train", "loss": null, "nonfinite": {"loss": "inf"}}\n')
    made.lines(run / "pairs.jsonl", [{"split": "eval", "rewards/margins": None}, {"split": "eval"}, {}])
    found = page(tmp_path, run)
    assert not re.search(r"\bnan\b|\binf\b", " ".join(str(a.get("d")) for t, a in found.tags if t == "path"))
    assert "Not finite at the end: loss" in found.text


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("results.json", "{", "not readable as JSON"),
        ("results.json", "[]", "not a JSON object"),
        ("results.json", '{"training": {"after": 3}}', '"training" must hold figures'),
        ("results.json", '{"steps": "many"}', '"steps" is not what a run writes'),
        ("results.json", '{"frontier": {"points": [1]}}', '"frontier" must hold'),
        ("metrics.jsonl", "nonsense\n", "metrics.jsonl:1"),
        ("pairs.jsonl", '{}\n"text"\n', "pairs.jsonl:2"),
        ("samples.jsonl", "{\n", "samples.jsonl:1"),
        ("config.yaml", "a: [", "config.yaml:1"),
    ],
)
def test_a_broken_file_is_one_sentence_that_names_it(quick, tmp_path, capsys, file, content, says):
    run = made.run(tmp_path / "run")
    (run / file).write_text(content)
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert says in error and file in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_what_is_no_run_is_said(quick, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        write([tmp_path], tmp_path / "report.html")
    with pytest.raises(UserError, match="is no folder"):
        write([tmp_path / "nowhere"], tmp_path / "report.html")


def test_the_command_writes_where_it_is_told(quick, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(made.run(tmp_path / "run")), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out and out.read_text().startswith("<!doctype html>")
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path)]) == 2
    assert main(["report"]) == 2
    assert main(["report", "a", "a"]) == 2


def test_equal_runs_give_equal_pages(quick, tmp_path):
    run = made.run(tmp_path / "run")
    write([run], tmp_path / "a.html")
    write([run], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
