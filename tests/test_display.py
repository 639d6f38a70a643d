import io
import logging
import re
import sys

import pytest
from rich.table import Table

from prefopt.display import Display, Pacing
from prefopt.terminal import console, printable

VALUES = {"loss": 0.5, "rewards/accuracies": 0.75, "rewards/margins": 0.1, "tokens_per_second": 9812.0}
HOSTILE = "[bold red]x[/bold red] [/nope] \x1b[2J\x1b]0;title\x07 \u202e \x9b31m"


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _run(steps, seconds_a_step, terminal=False, start=0, act=None):
    file, clock = io.StringIO(), Clock()
    with Display(
        steps, "train", terminal=terminal, start=start, file=file, clock=clock, memory=lambda: 2 * 10**9
    ) as display:
        for step in range(start + 1, steps + 1):
            clock.now += seconds_a_step
            display.step(step, VALUES)
            if act:
                act(display, step)
    return file.getvalue()


def test_lines_are_few_aligned_and_end_with_the_last_step():
    lines = _run(600, 0.01).splitlines()
    steps = [line for line in lines if " step " in line]
    assert len(lines) == 12 and len(steps) == 10
    assert steps[-1].startswith("train  step 600/600  loss  0.5000  accuracy 0.750  margin  +0.100  tokens/s   9,812")
    assert len({line.index("loss") for line in steps}) == 1
    assert lines[0] == "train  600 steps" and lines[-1] == "train  done: 600 steps in 0:06"


def test_a_slow_run_is_heard_from_and_a_long_one_is_no_flood():
    assert 20 <= len(_run(30, 60.0).splitlines()) <= 33  # half an hour, a step a minute
    assert 50 <= len(_run(36_000, 1.0).splitlines()) <= 130  # ten hours


def test_pacing_by_silence():
    pacing = Pacing(began=0.0, shares=None)
    assert [pacing.due(now, 0.0) for now in (29.0, 30.0, 59.0, 60.0)] == [False, True, False, True]


def test_time_left_is_at_the_pace_of_steps_not_of_what_came_before_them():
    file, clock = io.StringIO(), Clock()
    with Display(10, "train", terminal=False, file=file, clock=clock) as display:
        clock.now = 1000.0  # a long reference pass
        for step in range(1, 6):
            clock.now += 60.0
            display.step(step, VALUES)
    assert "step  5/10" in file.getvalue() and "left 5:00" in file.getvalue()
    assert "stopped at step 5: 5 steps in" in file.getvalue()


def test_a_resumed_run_counts_only_its_own_steps():
    lines = _run(100, 1.0, start=90).splitlines()
    assert lines[0] == "train  100 steps, from step 90"
    assert lines[1].startswith("train  step  91/100") and lines[2].endswith("left 0:08")
    assert lines[-1] == "train  done: 10 steps in 0:10"


def test_an_error_stops_the_display_and_passes_through():
    def fail(display, step):
        if step == 3:
            raise RuntimeError("boom")

    for terminal in (False, True):
        stderr = sys.stderr
        with pytest.raises(RuntimeError, match="boom"):
            _run(10, 1.0, terminal=terminal, act=fail)
        assert sys.stderr is stderr


@pytest.mark.parametrize("terminal", [False, True])
def test_evaluations_notes_and_warnings_stay_and_hostile_text_stays_text(terminal):
    def act(display, step):
        if step == 2:
            display.evaluation(step, {"loss": 0.25})
            display.note(HOSTILE)
            display.warn(HOSTILE)
            logging.getLogger("prefopt.train.guard").warning("step %d skipped", step)
            with display.pass_(HOSTILE, 10) as advance:
                advance(10)

    text = _run(4, 1.0, terminal=terminal, act=act)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "eval   step 2/4  loss  0.2500" in plain and "warning: step 2 skipped" in plain
    assert plain.count(r"[bold red]x[/bold red] [/nope] \x1b[2J\x1b]0;title\x07 \u202e \x9b31m") >= 2
    for steering in ("\x1b[2J", "\x1b]0", "\x07", "\u202e", "\x9b"):
        assert steering not in text
    if not terminal:
        assert "\x1b" not in text


def test_terminal_shows_a_bar_with_the_figures():
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", _run(4, 1.0, terminal=True, act=lambda d, step: d._live.refresh()))
    assert "━" in text and "loss  0.5000  accuracy 0.750" in text and "memory 2.0 GB" in text
    assert re.search(r"3/4\s+1\.0/s\s+0:01 left", text)


def test_results_on_stdout_are_not_swallowed_by_the_bar(capsys):
    with Display(2, "train", terminal=True, file=io.StringIO()) as display:
        print('{"result": 1}')
        display.step(1, VALUES)
    assert capsys.readouterr().out == '{"result": 1}\n'


def test_a_long_pass_is_told_of_and_a_broken_one_says_how_far_it_came():
    file, clock = io.StringIO(), Clock()
    with (
        pytest.raises(RuntimeError),
        Display(0, "score", terminal=False, file=file, clock=clock) as display,
        display.pass_("reference log-probs", 1000) as advance,
    ):
        for _ in range(5):
            clock.now += 20.0
            advance(100)
        raise RuntimeError
    assert file.getvalue().splitlines() == [
        "reference log-probs  200/1,000  left 2:40",
        "reference log-probs  400/1,000  left 2:00",
        "reference log-probs  500 of 1,000 done in 1:40, 5.0/s",
    ]


def test_a_pass_over_a_small_file_is_told_of_in_its_bytes():
    file, clock = io.StringIO(), Clock()
    with (
        Display(0, "score", terminal=False, file=file, clock=clock) as display,
        display.pass_("reward", 12_000, "B") as advance,
    ):
        clock.now = 40.0
        advance(6_000)
        clock.now = 60.0
        advance(6_000)
    assert file.getvalue().splitlines() == ["reward  6.0 kB/12 kB  left 0:40", "reward  12 kB done in 1:00, 200 B/s"]


def test_warnings_of_the_package_reach_the_display_only_while_it_is_open():
    handlers = list(logging.getLogger("prefopt").handlers)
    with Display(0, "x", terminal=False, file=io.StringIO()):
        assert len(logging.getLogger("prefopt").handlers) == len(handlers) + 1
    assert logging.getLogger("prefopt").handlers == handlers


def test_no_terminal_is_assumed_where_there_is_none(monkeypatch):
    class Tty(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert Display(1, "x", file=Tty()).terminal and not Display(1, "x", file=io.StringIO()).terminal
    monkeypatch.setenv("TERM", "dumb")
    assert not Display(1, "x", file=Tty()).terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_are_wrapped_on_a_terminal_alone(terminal, monkeypatch):
    """As what reads a pipe, such as grep, wants it."""
    monkeypatch.setenv("COLUMNS", "80")
    screen = console(io.StringIO(), terminal)
    table = Table()
    table.add_row("cell " * 40, "another " * 40)
    screen.print("a sentence " * 40, table, sep="\n")
    lines = screen.file.getvalue().splitlines()
    assert any("a sentence " * 30 in line for line in lines) == (not terminal)
    assert any("cell " * 30 in line and "another " * 30 in line for line in lines) == (not terminal)


def test_printable_keeps_what_people_write():
    assert printable("naïve — 日本語 🙂👩‍👩‍👧\n\tπ") == "naïve — 日本語 🙂👩‍👩‍👧\n\tπ"
    assert printable("\ud800\u2028\r") == r"\ud800\u2028\r"
