import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from prefopt.losses import Unlikelihood, WithNLL
from prefopt.rl.reward_model import RewardLoss
from prefopt.terminal import console
from prefopt.train.outcome import length_correlation, with_interval
from prefopt.train.summary import Summary, render, summarize
from prefopt.train.table import table_rows

START = {"loss": 0.6931, "rewards/accuracies": 0.0, "rewards/margins": 0.0, "logps/chosen": -100.0} | {
    "logps/rejected": -110.0,
    "kl": 0.0,
}
GOOD = {"loss": 0.45, "rewards/accuracies": 0.8, "rewards/margins": 1.1, "logps/chosen": -98.0} | {
    "logps/rejected": -121.0,
    "kl": 4.0,
    "pairs": 900,
    "prompts": 700,
    "rewards/accuracies_low": 0.76,
    "rewards/accuracies_high": 0.84,
}


def _results(training=None, held_out=None, **more):
    return {
        "training": {"before": START, "after": GOOD | (training or {})},
        "held_out": {"before": START, "after": GOOD | (held_out or {})},
        "skipped_steps": 0,
    } | more


NO_HELD_OUT = _results() | {"held_out": None}


def _warnings(*changes, history=(), **more):
    return summarize(history, _results(*changes, **more)).warnings


def test_a_good_run_is_told_plainly_and_without_a_warning():
    history = [{"step": s, "split": "train", "tokens_per_second": 100.0 * s} for s in (1, 2, 3)]
    summary = summarize(history, _results())
    assert summary.warnings == []
    assert summary.lines == [
        "Trained for 3 steps, 200 tokens/s.",
        "Training: loss 0.6931 → 0.4500; reward accuracy 80.0 % (95 % interval 76.0 to 84.0) on 900 pairs of 700 "
        "prompts; mean margin +1.100.",
        "Held-out: loss 0.6931 → 0.4500; reward accuracy 80.0 % (95 % interval 76.0 to 84.0) on 900 pairs of 700 "
        "prompts; mean margin +1.100.",
        "On held-out data the chosen responses became more likely by 2.0 nats (-100.0 → -98.0); "
        "the rejected responses became less likely by 11.0 nats (-110.0 → -121.0).",
    ]


# Each threshold from both sides: the change to the held-out figures, what the warning names, and whether it comes.
@pytest.mark.parametrize(
    "training, held_out, figure, warned",
    [
        ({}, {"logps/chosen": -110.1}, "-100.0 → -110.1", True),
        ({}, {"logps/chosen": -109.9}, "-100.0 → -109.9", False),
        ({"rewards/margins": 5.1}, {}, "+5.1", True),
        ({"rewards/margins": 4.9}, {}, "saturated", False),
        ({}, {"length_correlation": 0.51}, "+0.51", True),
        ({}, {"length_correlation": -0.51}, "expect shorter answers", True),
        ({}, {"length_correlation": 0.49}, "length", False),
        ({}, {"length_correlation": 0.76, "pairs": 16}, "length", True),  # 3/√16 = 0.75
        ({}, {"length_correlation": 0.74, "pairs": 16}, "length", False),
        ({"rewards/accuracies": 0.95}, {}, "Held-out accuracy 80.0 %", True),
        ({"rewards/accuracies": 0.89}, {}, "Held-out accuracy", False),  # a gap under a tenth
        ({"rewards/accuracies": 0.95}, {"rewards/accuracies_high": 0.96}, "far below", False),  # within the interval
        ({"rewards/accuracies": 0.54}, {"rewards/accuracies": 0.46}, "0.540 and 0.460", True),
        ({"rewards/accuracies": 0.56}, {"rewards/accuracies": 0.46}, "coin", False),
        ({"rewards/accuracies": 0.54}, {"rewards/accuracies": 0.44}, "coin", False),
        (START, START, "Nothing was learned", True),  # the policy is still the reference
        ({}, {"kl": 25.1}, "KL 25.1 nats", True),
        ({}, {"kl": 24.9}, "KL", False),
        ({}, {"rewards/accuracies": 0.4, "rewards/accuracies_high": 0.49}, "swapped", True),
        ({}, {"rewards/accuracies": 0.4, "rewards/accuracies_high": 0.51}, "swapped", False),
        ({}, {"rewards/accuracies_low": 0.69, "rewards/accuracies_high": 0.9}, "69.0 to 90.0", True),
        ({}, {"rewards/accuracies_low": 0.71, "rewards/accuracies_high": 0.9}, "only known", False),
        ({"loss": math.nan}, {}, "Not finite at the end: loss", True),
    ],
)
def test_thresholds(training, held_out, figure, warned):
    assert any(figure in text for text in _warnings(training, held_out)) == warned


def test_a_short_answers_small_fall_is_no_displacement():
    before, after = {"logps/chosen": -2.0}, {"logps/chosen": -2.9}  # 45 %, but under a nat
    results = {"training": None, "held_out": {"before": before, "after": after}}
    assert summarize([], results).warnings == []
    after["logps/chosen"] = -3.1
    assert "less likely" in summarize([], results).warnings[0]


@pytest.mark.parametrize("skipped, text", [(0, None), (1, "1 step was skipped"), (7, "7 steps were skipped")])
def test_skipped_steps(skipped, text):
    found = [warning for warning in _warnings(skipped_steps=skipped) if "skipped" in warning]
    assert found == [] if text is None else found[0].startswith(text)


def test_no_held_out_data():
    (warning,) = summarize([], NO_HELD_OUT).warnings
    assert "--eval-fraction" in warning


@pytest.mark.parametrize("last, warned", [(0.64, True), (0.63, False)])  # lowest 0.60, a twentieth of 0.7 is 0.035
def test_held_out_loss_that_rose_names_the_step_of_its_lowest(last, warned):
    losses = [(0, 0.7), (100, math.nan), (200, 0.6), (300, last)]
    history = [{"step": step, "split": "eval", "loss": loss} for step, loss in losses]
    assert any("try --max-steps 200" in text for text in _warnings(history=history)) == warned


def test_held_out_loss_that_rose_from_the_start_asks_for_smaller_steps():
    history = [{"step": step, "split": "eval", "loss": loss} for step, loss in [(0, 0.6), (100, 0.7)]]
    assert any("try a lower --learning-rate" in text for text in _warnings(history=history))


def test_every_warning_is_tried_and_every_one_names_a_figure_or_a_flag():
    results = _results(
        {"rewards/margins": 9.0, "rewards/accuracies": 0.99, "loss": math.inf},
        {"length_correlation": 0.9, "logps/chosen": -200.0, "kl": 99.0, "rewards/accuracies_low": 0.5},
        skipped_steps=2,
    )
    warnings = summarize([], results).warnings
    assert len(warnings) == 8
    for text in warnings:
        assert any(c.isdigit() for c in text) or "loss" in text
        assert ";" in text or ":" in text


def test_supervised_runs_have_no_rewards():
    results = {"training": {"before": {"loss": 5.0}, "after": {"loss": 3.0}}, "held_out": None, "skipped_steps": 0}
    assert summarize([], results).lines == ["Training: loss 5.0000 → 3.0000."]
    assert summarize([], {}).lines == []


def test_table_shows_what_there_is_and_no_accuracy_where_there_was_no_preference():
    header, rows = table_rows(_results())
    assert header == ["", "training before", "training after", "held-out before", "held-out after"]
    table = {row[0]: row[1:] for row in rows}
    assert table["reward accuracy"] == ["–", "0.800", "–", "0.800"]
    assert table["  95 % interval"] == ["–", "0.760–0.840"] * 2
    assert table["log p(chosen)"] == ["-100.0", "-98.0"] * 2
    assert table_rows({"training": {"before": {"loss": 1.0}, "after": {"loss": 0.5}}}) == (
        ["", "training before", "training after"],
        [["loss", "1.0000", "0.5000"]],
    )


def _rendered(results, **options):
    file = io.StringIO()
    render(summarize([], results), results, Console(file=file, **options) if options else console(file))
    return file.getvalue()


def test_a_run_that_stayed_at_its_reference_learned_nothing():
    (said,) = [text for text in _warnings(START, START) if "Nothing was learned" in text]
    assert "the margins are still 0" in said and "coin" not in said


def test_responses_without_pairs_are_desirable_or_not():
    before = {"loss": 0.5, "rewards/chosen": 0.0, "rewards/rejected": 0.0, "logps/chosen": -20.0, "examples": 8}
    after = before | {"rewards/chosen": 1.25, "rewards/rejected": -0.5, "logps/chosen": -40.0}
    found = {"unit": "response", "training": {"before": before, "after": after}}
    table = {row[0]: row[1:] for row in table_rows(found)[1]}
    assert table["reward(desirable)"] == ["+0.000", "+1.250"] and table["reward(undesirable)"] == ["+0.000", "-0.500"]
    assert table["log p(desirable)"] == ["-20.0", "-40.0"]
    summary = summarize([], found)
    said = " ".join([*summary.lines, *summary.warnings])
    assert "mean reward of desirable responses +1.250, of undesirable ones -0.500" in said
    assert "the desirable responses became less likely" in said and "Desirable responses became less likely" in said
    assert "chosen" not in said and "rejected" not in said


def test_rendered_for_a_pipe_one_sentence_is_one_line():
    text = _rendered(NO_HELD_OUT)
    assert "\x1b" not in text and "  95 % interval" in text
    assert [line for line in text.splitlines() if line.startswith("warning: ")] == [
        f"warning: {summarize([], NO_HELD_OUT).warnings[0]}"
    ]


def test_rendered_on_a_narrow_terminal():
    text = _rendered(_results({"rewards/margins": 9.0}), width=80, force_terminal=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, text.splitlines())) <= 80 and "log p(rejected)" in text and "warning: Margins" in text


def test_with_interval_counts_prompts():
    accuracies = [1.0, 0.0] * 50
    figures = with_interval({"rewards/accuracies": 0.5}, accuracies, [f"p{i // 2}" for i in range(100)])
    assert (figures["pairs"], figures["prompts"]) == (100, 50)
    # Every prompt has one won and one lost: resampling prompts moves nothing.
    assert figures["rewards/accuracies_low"] == figures["rewards/accuracies_high"] == 0.5
    assert "rewards/accuracies_low" not in with_interval({}, [], [])


def test_length_correlation():
    random = np.random.default_rng(0)
    margins, lengths = random.normal(size=50), random.normal(size=50)
    assert length_correlation(margins, lengths) == pytest.approx(np.corrcoef(margins, lengths)[0, 1])
    assert length_correlation([1.0, 1.0], [3, 4]) == length_correlation([], []) == 0.0


def test_a_warning_does_not_say_the_contrary_of_another():
    """A loss that rose from the first step on: nothing learned, and a lower rate, not a higher one, is the remedy."""
    before, after = {"loss": 0.7}, {"loss": 25.0, "rewards/accuracies": 0.5, "rewards/margins": 3.0, "pairs": 40}
    history = [{"split": "eval", "step": 0, "loss": 0.7}, {"split": "eval", "step": 9, "loss": 25.0}]
    split = {"before": before, "after": after}
    said = " ".join(summarize(history, {"training": split, "held_out": split}).warnings)
    assert "lower --learning-rate" in said and "raise --learning-rate" not in said


def test_rankings_are_called_rankings_and_a_reward_model_is_told_of_no_loss():
    after = {"loss": 0.4, "rewards/accuracies": 0.9, "rewards/margins": 3.0, "pairs": 400, "length_correlation": 0.9}
    split = {"before": {"loss": 0.7}, "after": after}
    summary = summarize([], {"training": split, "held_out": split, "unit": "ranking"})
    assert "on 400 rankings" in summary.lines[0]
    assert ["rankings", "–", "400"] in table_rows({"training": split, "unit": "ranking"})[1]
    assert "Rewards follow length" in " ".join(summary.warnings) and "--loss" not in " ".join(summary.warnings)


@pytest.mark.parametrize(
    ("loss", "unit", "advice"),
    [
        ("DPO(beta=0.1)", "pair", "add --nll-weight 0.1, raise --beta or lower --learning-rate"),
        ("WithNLL(loss=DPO(beta=0.1), nll_weight=0.1)", "pair", "raise --nll-weight, raise --beta or lower --learning"),
        ("IPO(tau=0.02)", "pair", "add --nll-weight 0.1 or lower --learning-rate"),
        ("KTO(beta=0.1)", "response", "other answers; raise --beta or lower --learning-rate"),
        ("DPO(beta=0.1)", "pair", "fewer --epochs, or a larger --beta."),
        (repr(RewardLoss()), "pair", "fewer --epochs."),
    ],
)
def test_only_what_the_loss_takes_is_advised(loss, unit, advice):
    split = {"before": {"logps/chosen": -50.0}, "after": {"logps/chosen": -90.0, "rewards/margins": 6.0}}
    results = {"training": split, "held_out": None, "loss": loss, "unit": unit}
    assert any(advice in text for text in summarize([], results).warnings)


@pytest.mark.parametrize(("after", "warned"), [(-0.408, True), (-0.31, False), (0.2, False)])
def test_a_reward_that_fell(after, warned):
    splits = {"before": {"reward": -0.305, "kl": 0.0}, "after": {"reward": after, "kl": 1.6}}
    found = summarize([], {"training": splits, "held_out": splits}).warnings
    assert any("The reward fell: -0.305 → -0.408 on held-out prompts" in text for text in found) == warned


def test_a_reward_has_its_interval():
    before = {"reward": 0.5, "reward_low": 0.25, "reward_high": 0.75, "kl": 0.0, "ended": 0.9}
    after = {"reward": 1.5, "reward_low": -1.25, "reward_high": 2.0, "kl": 3.0, "ended": 0.25}
    steps = {"before": {"reward": 0.4, "kl": 0.0}, "after": {"reward": 1.4, "kl": 3.0}}
    results = {"unit": "prompt", "training": steps, "held_out": {"before": before, "after": after}}
    rows = table_rows(results)[1]
    assert ["mean reward", "+0.400", "+1.400", "+0.500", "+1.500"] in rows
    assert ["  95 % interval", "–", "–", "+0.250 to +0.750", "-1.250 to +2.000"] in rows
    assert ["ended by themselves", "–", "–", "0.900", "0.250"] in rows
    said = summarize([], results).lines
    assert "Held-out: mean reward 0.500 → 1.500 (95 % interval -1.250 to 2.000) at KL 3.00 nats." in said


@pytest.mark.parametrize(("shares", "warned"), [((0.1, 0.35, 0.4), True), ((0.9, 0.2, 0.29), False), ((), False)])
def test_updates_that_are_clipped(shares, warned):
    history = [{"step": i, "split": "train", "clipfrac": share} for i, share in enumerate(shares)]
    found = _warnings(history=history)
    assert any("clipfrac 0.35 in the median step, above 0.3" in text for text in found) == warned


def test_margins_that_never_saturate():
    """Unlikelihood pulls at every pair alike, however far apart it is."""
    for loss in (Unlikelihood(), WithNLL(Unlikelihood(), 0.1)):
        assert not any("saturated" in text for text in _warnings({"rewards/margins": 9.0}, loss=repr(loss)))


def test_a_loss_that_rose_is_said_first_and_its_margins_are_not_called_saturated():
    first, *others = _warnings({"loss": 130.7, "rewards/margins": 197.7, "rewards/accuracies": 0.589})
    assert first == "Training loss rose: 0.6931 → 130.7000 on what was trained on; lower --learning-rate."
    assert not any("saturated" in text for text in others)
    assert not any("rose" in text for text in _warnings({"loss": 130.7, "reward": 1.0}))  # PPO's tells nothing


def test_many_that_were_left_out_are_told_of():
    few, many = ({"given": 200, "overlong": 150, "too long": count} for count in (8, 62))
    assert not any("left out" in text for text in _warnings(data=few))
    assert any("31 % of the examples were left out" in text for text in _warnings(data=many))


@pytest.mark.parametrize("width", [44, 60, 66, 80, 120])
def test_no_figure_is_cut_however_narrow_the_window(width):
    figures = {"loss": 0.6931, "rewards/margins": 1.284, "logps/chosen": -1234.5, "pairs": 1e6}
    figures |= {"rewards/accuracies": 0.713, "rewards/accuracies_low": 0.652, "rewards/accuracies_high": 0.774}
    found = {split: {"before": figures, "after": figures} for split in ("training", "held_out")}
    screen = Console(width=width, file=io.StringIO(), highlight=False)
    render(Summary([], []), found, screen)
    lines = screen.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for whole in ("0.652–0.774", "-1234.5", "1,000,000", "+1.284"):
        assert sum(line.count(whole) for line in lines) == 4
