"""Batches are built in order, one ahead, in another thread; what goes wrong there is raised here."""

from __future__ import annotations

import threading
from contextlib import closing
from itertools import count

import pytest

from prefopt.ahead import ahead


def test_the_next_is_built_while_one_is_in_use():
    begun = [threading.Event() for _ in range(4)]

    def build(i: int) -> tuple[int, str]:
        begun[i].set()
        return i, threading.current_thread().name

    for n, (i, thread) in enumerate(ahead(build, range(4))):
        assert n == i and thread.startswith("ahead")
        assert i == 3 or begun[i + 1].wait(10)  # nobody has asked for it yet
        assert not any(later.is_set() for later in begun[i + 2 :]), "one ahead, and no more"
    assert n == 3


def test_an_error_comes_where_its_batch_would_have():
    with closing(ahead(lambda i: 6 // i, [3, 0, 2])) as batches:
        assert next(batches) == 2
        with pytest.raises(ZeroDivisionError):
            next(batches)


def test_closing_it_ends_the_thread_with_batches_left():
    before = threading.active_count()
    with closing(ahead(str, count())) as batches:
        assert next(batches) == "0" and threading.active_count() == before + 1
    assert threading.active_count() == before
