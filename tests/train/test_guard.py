import math
import signal
import subprocess
import sys
import threading
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.errors import RunFailed
from prefopt.signals import stop_on_signal
from prefopt.train.guard import Guard

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (0.7, NAN), (0.7, INF), (NAN, NAN)])
def test_what_is_not_finite_is_skipped_and_said(caplog, loss, norm):
    guard = Guard()
    guard.saw(12, False, loss, norm)
    assert (guard.in_a_row, guard.skipped) == (1, 1)
    assert "step 12 skipped" in caplog.text


def test_a_good_step_starts_the_count_again():
    guard = Guard(patience=2)
    for step in range(0, 10, 2):
        guard.saw(step, False, NAN, 1.0)
        guard.saw(step + 1, True, 0.7, 1.0)
    assert (guard.in_a_row, guard.skipped) == (0, 5)


def test_too_many_in_a_row_end_the_run():
    guard = Guard(patience=3)
    guard.saw(7, False, NAN, 1.0)
    guard.saw(8, False, 0.7, INF)
    with pytest.raises(
        RunFailed, match=r"step 9: loss nan, gradient norm 2, not finite 3 times in a row.*learning-rate"
    ):
        guard.saw(9, False, NAN, 2.0)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_a_resumed_guard_counts_on(finite, cut):
    def see(guard, values):
        for i, value in enumerate(values):
            guard.saw(i, value, 0.7 if value else NAN, 1.0)

    whole, first = Guard(patience=100), Guard(patience=100)
    see(whole, finite)
    see(first, finite[:cut])
    resumed = Guard(**asdict(first))
    see(resumed, finite[cut:])
    assert resumed == whole and whole.skipped == finite.count(False)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks(signum):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stop:
        assert not stop.requested and stop.reason == ""
        signal.raise_signal(signum)
        assert stop.requested and stop.reason == signum.name
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_handlers_are_put_back_after_an_error():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), stop_on_signal():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT")])
def test_the_second_signal_kills(first, second):
    script = f"""
import signal
from prefopt.signals import stop_on_signal
with stop_on_signal() as stop:
    signal.raise_signal(signal.{first})
    print("asked", stop.requested, flush=True)
    signal.raise_signal(signal.{second})
    print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("asked True\n", -signal.Signals[second])


def test_outside_the_main_thread_nothing_changes():
    handler, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_on_signal() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM) is handler))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
