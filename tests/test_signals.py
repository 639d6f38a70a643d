"""A worker does not outlive the process that started it, and no import is broken off."""

import signal
import subprocess
import sys

import pytest

from prefopt.signals import deferred, stop_on_signal

SCRIPT = """
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from prefopt.signals import end_with_parent

def work():
    print("at work", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        pool.submit(work).result()
"""


@pytest.fixture(autouse=True)
def hears_all():
    """Also where these tests run under nohup, or in a shell's background."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_worker_ends_with_its_parent(tmp_path) -> None:
    file = tmp_path / "parent.py"
    file.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "at work\n"
    parent.kill()
    rest, _ = parent.communicate(timeout=60)  # which ends when nobody can write any more: the worker too has ended
    assert rest == ""


def test_a_terminal_that_is_closed_ends_it_too_but_not_what_nohup_started():
    with stop_on_signal() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert stop.reason == "SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        before_int = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell has it for what runs in its background
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGINT" and signal.signal(signal.SIGINT, before_int) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_import_is_not_broken_off(number):
    done = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(number)
        done.append("the rest of it")
    assert done and signal.getsignal(number) is before
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(number)
        signal.raise_signal(number)
        done.append("after a second one")
    assert len(done) == 1
