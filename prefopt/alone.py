"""One process to a run's folder: two that train into one would mix their lines and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefopt.errors import UserError
from prefopt.whole import writable

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """``folder``, made where it is not there, for this process alone; the system ends that with the process.

    UserError where another has it, or it cannot be made.
    """
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, "training into it; choose another folder"):
        yield


@contextmanager
def alone_with(file: Path) -> Iterator[None]:
    """The same of a file. One that was made here and stays empty is gone again afterwards."""
    with writable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        made = not file.exists()
        if not made and not file.is_file():
            raise UserError(f"--out {file} is no file: what is written has to be read again, to go on with it")
        file.touch()
    with _locked(file, "writing it; wait for it, or choose another file"):
        try:
            yield
        finally:  # while it is still ours: who waits for it has not begun
            with suppress(OSError):
                if made and not file.stat().st_size:
                    file.unlink()


@contextmanager
def _locked(path: Path, doing: str) -> Iterator[None]:
    with writable(path):
        handle = os.open(path, os.O_RDONLY) if fcntl else None
    if handle is None:
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {path}: another process is {doing}") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
