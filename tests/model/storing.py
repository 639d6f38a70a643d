"""Processes that share a reference store, some of which are killed; a script, so that forks are cheap and clean.

    python -m tests.model.storing FOLDER

First many open, begin and fill one new store at once, over and over; then one is killed while it writes, and what
it reported as written must be there.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from prefopt.model.reference import ReferenceStore, Row, Scope
from tests.train.saving import in_child

SCOPE = Scope("a" * 32, "", "float32")
WRITERS, ROWS = 4, 60


def row(i: int) -> Row:
    return f"{i:032x}", -i / 7, i


def together(path: Path) -> None:
    def write(writer: int) -> None:
        with ReferenceStore(path, SCOPE) as store:
            for i in range(writer * ROWS, (writer + 1) * ROWS, 5):
                store.put([row(j) for j in range(i, i + 5)])
                store.get([row(0)[0], row(i)[0]])

    children = [in_child(lambda writer=writer: write(writer)) for writer in range(WRITERS)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * WRITERS
    with ReferenceStore(path, SCOPE) as store:
        found = store.get([row(i)[0] for i in range(WRITERS * ROWS)])
    assert found == {key: (total, n) for key, total, n in map(row, range(WRITERS * ROWS))}


def at_the_same_moment(path: Path) -> None:
    """SQLite refuses some of those that switch a new file to a write-ahead log at once: about one in a hundred."""
    at = time.time() + 0.02

    def begin(writer: int) -> None:
        while time.time() < at:
            pass
        with ReferenceStore(path, SCOPE) as store:
            store.put([row(writer)])

    children = [in_child(lambda writer=writer: begin(writer)) for writer in range(WRITERS)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * WRITERS


def killed(path: Path) -> None:
    rng, begin = random.Random(0), 0
    for _ in range(15):
        reader, writer = os.pipe()

        def write(i: int = begin, writer: int = writer) -> None:
            with ReferenceStore(path, SCOPE) as store:
                while True:
                    store.put([row(i)])
                    i += 1
                    os.write(writer, i.to_bytes(4, "little"))

        child = in_child(write)
        reported = os.read(reader, 4)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(writer)
        while more := os.read(reader, 1 << 16):
            reported += more
        os.close(reader)
        begin = int.from_bytes(reported[-4:], "little")
        with ReferenceStore(path, SCOPE) as store:
            found = store.get([row(i)[0] for i in range(begin)])
        assert found == {key: (total, n) for key, total, n in map(row, range(begin))}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for repeat in range(5):
        together(folder / str(repeat) / "reference.sqlite")
    for repeat in range(40):
        at_the_same_moment(folder / f"new-{repeat}" / "reference.sqlite")
    killed(folder / "reference.sqlite")
