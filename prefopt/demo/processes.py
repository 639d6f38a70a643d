"""Processes and threads for the demo's many small runs: one of each on a core."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch

from prefopt.signals import end_with_parent


@contextmanager
def workers(jobs: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A ``map`` over processes, whose results come in the order of what they were made of.

    A model as small as this gains nothing from a second core, so each core gets a process, but no more than there are
    ``jobs``: twice as fast on two, and the figures do not depend on how many there are. With one it is the ordinary
    ``map``. They start at once, for whoever has something else to do first.
    """
    processes = min(_cores(), jobs)
    if processes <= 1:
        yield map
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _alone) as pool:
        with _no_ctrl_c():
            for _ in range(processes):
                pool.submit(os.getpid)  # a process starts when there is more to do than there are processes
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """For work beside a worker: threads that wait for one another on a core that is taken are slower than none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone() -> None:
    """A worker has one thread, and Ctrl-C ends it without a traceback, and so does the end of who started it."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """A process that starts here hears of Ctrl-C once it unblocks it: one that is still importing would print where."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
