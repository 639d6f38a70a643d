"""Workers start at once and answer in order; a thread count is as it was afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import torch

from prefopt.demo import processes


def test_workers_start_before_they_are_asked_and_answer_in_order(monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what they would have
    with processes.workers(jobs=9) as every:
        assert len(multiprocessing.active_children()) == 2
        assert list(every(abs, [-3, 1, -2])) == [3, 1, 2]
        assert list(every(threads, [0])) == [(1, False)]
    assert not multiprocessing.active_children()
    assert not ctrl_c_is_blocked()


def threads(_: int) -> tuple[int, bool]:
    return torch.get_num_threads(), ctrl_c_is_blocked()


def ctrl_c_is_blocked() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())


@pytest.mark.parametrize("cores, jobs", [(1, 9), (9, 1), (9, 0)])
def test_one_core_or_one_job_has_no_workers(monkeypatch, cores, jobs):
    monkeypatch.setattr(processes, "_cores", lambda: cores)
    with processes.workers(jobs) as every:
        assert list(every(lambda _: os.getpid(), [0])) == [os.getpid()]


def test_one_thread_gives_the_others_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="on the way"), processes.one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError("on the way")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
