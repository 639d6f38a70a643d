"""Workers start at once and answer in order; a thread count is as it was afterwards."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch

from prefopt.demo import processes


def test_workers_start_before_they_are_asked_and_answer_in_order(monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: 2)
    with processes.workers() as every:
        assert len(multiprocessing.active_children()) == 2
        assert list(every(abs, [-3, 1, -2])) == [3, 1, 2]
        assert list(every(threads, [0])) == [(1, True)]
    assert not multiprocessing.active_children()


def threads(_: int) -> tuple[int, bool]:
    return torch.get_num_threads(), multiprocessing.parent_process() is not None


def test_one_core_has_no_workers(monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: 1)
    with processes.workers() as every:
        assert list(every(lambda _: os.getpid(), [0])) == [os.getpid()]


def test_one_thread_gives_the_others_back():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="on the way"), processes.one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError("on the way")
    assert torch.get_num_threads() == before
