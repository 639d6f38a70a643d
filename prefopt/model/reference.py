"""The reference store: what a frozen model thinks of each response is computed once, ever.

Content-addressed: a figure is found by the weights that gave it and the tokens that it is about,
never by β, a loss, a learning rate or a path. So a β sweep costs one pass, adding 100 pairs costs
100, and a figure of another model or another truncation cannot be found by mistake.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import xxhash
from torch import Tensor

from prefopt.data.cache import folder
from prefopt.errors import RunFailed
from prefopt.types import Encoded, LogProbs

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = 60
"""seconds to wait for a file that another process has locked"""
Sums = dict[str, tuple[float, int]]
"""Response key -> (log π(y|x) in nats, number of scored tokens)."""
Row = tuple[str, float, int]
"""(response key, sum, length)."""


class Scope(NamedTuple):
    """Whose figures: the model's fingerprint, its active adapter's ("" for none), and the dtype computed in."""

    model: str
    adapter: str
    dtype: str


# --- what a figure is found by ----------------------------------------------------------------


def response_keys(example: Encoded) -> list[str]:
    """One key per response: xxh3-128 over the prompt's ids, the response's ids and which of them are scored.

    >>> ids, all_scored = np.array([5, 6], np.int32), np.array([True, True])
    >>> pair = Encoded(ids, (ids, ids), (all_scored, ~all_scored), (1.0, 0.0), "f.jsonl:1", "k", "p")
    >>> [key[:8] for key in response_keys(pair)]
    ['449ee065', 'a7eb2141']
    """
    prompt = xxhash.xxh3_128(len(example.prompt).to_bytes(8, "little") + _bytes(example.prompt, "<i4"))
    keys = []
    for response, scored in zip(example.responses, example.scored, strict=True):
        digest = prompt.copy()
        digest.update(_bytes(response, "<i4") + _bytes(scored, "u1"))
        keys.append(digest.hexdigest())
    return keys


def _bytes(array: np.ndarray, dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()


# --- where the figures are kept ---------------------------------------------------------------


def default_path() -> Path:
    """``reference.sqlite``, beside encoded data."""
    return folder() / "reference.sqlite"


class ReferenceStore:
    """Sums and lengths of one Scope, in a SQLite file that many processes and all models share.

    What ``put`` returned from is on the disk. The first figure for a key stays, so every run that
    asks later reads the same bits. A row with a flipped bit is not found; a file that is no database
    any more is set aside with a warning and begun anew. RunFailed when the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "reference.sqlite"
    >>> with ReferenceStore(path, Scope("m" * 32, "", "float32")) as store:
    ...     store.put([("0" * 32, -12.5, 7)])
    ...     store.get(["0" * 32, "1" * 32])
    {'00000000000000000000000000000000': (-12.5, 7)}
    """

    def __init__(self, path: Path, scope: Scope):
        self.path, self.scope = Path(path), scope
        self._label = "|".join(scope).encode()
        self._open()

    def __enter__(self) -> ReferenceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def get(self, keys: Sequence[str]) -> Sums:
        """What is known of ``keys``."""
        found, damaged = self._run(lambda connection: self._read(connection, keys))
        for key in damaged:
            log.warning("%s: the row of response %s is damaged; it is computed again", self.path, key)
        return found

    def put(self, rows: Sequence[Row]) -> None:
        """Commit ``rows``. RunFailed if one is not finite: a reference that gives NaN is no reference."""
        for _, total, length in rows:
            if not math.isfinite(total):
                raise RunFailed(
                    f"the log-probability of a response of {length} tokens is {total}: check the model"
                    f" and its dtype ({self.scope.dtype})"
                )
        self._run(lambda connection: self._write(connection, rows))

    def _read(self, connection: sqlite3.Connection, keys: Sequence[str]) -> tuple[Sums, list[str]]:
        """What is known, and the keys of rows that are not as they were written."""
        scope = self._scope_id(connection)
        found: Sums = {}
        damaged = []
        for start in range(0, len(keys), 900):  # SQLite before 3.32 takes 999 variables
            part = [bytes.fromhex(key) for key in keys[start : start + 900]]
            query = f"SELECT response, sum, length, seal FROM logps WHERE scope = ? AND response IN ({_marks(part)})"
            for response, total, length, seal in connection.execute(query, [scope, *part]):
                if not isinstance(response, bytes):
                    raise sqlite3.DatabaseError("a key is of the wrong type")
                if seal == self._seal(response, total, length):
                    found[response.hex()] = (total, length)
                else:
                    damaged.append(response.hex())
        return found, damaged

    def _write(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # nobody writes between the look and the insert
            connection.execute("INSERT OR IGNORE INTO scopes (model, adapter, dtype) VALUES (?, ?, ?)", self.scope)
            scope = self._scope_id(connection)
            keys = [key for key, _, _ in rows]
            found, _ = self._read(connection, keys)
            # SQLite has no negative zero: + 0.0 makes it a plain one.
            figures = [(bytes.fromhex(key), total + 0.0, n) for key, total, n in rows if key not in found]
            connection.executemany(
                "INSERT OR REPLACE INTO logps VALUES (?, ?, ?, ?, ?)",
                [(scope, *figure, self._seal(*figure)) for figure in figures],
            )
            if len(self._read(connection, keys)[0]) < len(set(keys)):
                raise sqlite3.DatabaseError("what was written is not found again")

    def _scope_id(self, connection: sqlite3.Connection) -> int | None:
        query = "SELECT id FROM scopes WHERE model = ? AND adapter = ? AND dtype = ?"
        row = connection.execute(query, self.scope).fetchone()
        return row[0] if row else None

    def _seal(self, response: bytes, total: object, length: object) -> int | None:
        """SQLite does not notice a flipped bit in a value; this sum over the row does."""
        if not isinstance(total, float) or not isinstance(length, int):
            return None
        return xxhash.xxh3_64_intdigest(self._label + response + struct.pack("<dq", total, length)) - (1 << 63)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit outside of ``with connection``: a reader must not hold a snapshot open.
            self._connection = sqlite3.connect(self.path, timeout=PATIENCE)
            self._inode = self.path.stat().st_ino
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error
        self._run(_prepare)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._connection)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # a message may quote the damage itself
            if _is_environment(error):
                raise self._failed(error) from error
            self._set_aside(error)
        return work(self._connection)

    def _set_aside(self, error: Exception) -> None:
        self._connection.close()
        aside = next(p for n in range(1, 10**6) if not (p := Path(f"{self.path}.damaged-{n}")).exists())
        # Another process may have set it aside already, and then the file of this name is a new one.
        if self.path.exists() and self.path.stat().st_ino == self._inode:
            log.warning("%s is damaged (%s): set aside as %s, a new one is begun", self.path, error, aside.name)
            # The write-ahead log goes along, or SQLite would replay it into the new file.
            try:
                for suffix in ("", "-wal", "-shm"):
                    if (file := Path(f"{self.path}{suffix}")).exists():
                        file.rename(f"{aside}{suffix}")
            except OSError as refused:
                raise self._failed(refused) from error
        self._open()

    def _failed(self, error: Exception) -> RunFailed:
        reason = getattr(error, "strerror", None) or error  # without the path, which is told already
        return RunFailed(
            f"{self.path}: the reference store cannot be used ({reason}); what it holds is safe: make room there, or "
            "point PREFOPT_CACHE to a folder on a local disk that can be written"
        )


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))


def _prepare(connection: sqlite3.Connection) -> None:
    # A write-ahead log lets others read while one writes; FULL syncs it at each commit.
    _insist(lambda: connection.execute("PRAGMA journal_mode = WAL"))
    connection.execute("PRAGMA synchronous = FULL")
    with connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS scopes (id INTEGER PRIMARY KEY, model TEXT, adapter TEXT, dtype TEXT,"
            " UNIQUE (model, adapter, dtype))"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS logps (scope INTEGER, response BLOB, sum REAL, length INTEGER, seal INTEGER,"
            " PRIMARY KEY (scope, response)) WITHOUT ROWID"
        )
        connection.execute("DELETE FROM scopes WHERE 0")  # refused where tables that are there can only be read


def _insist(work: Callable[[], object]) -> None:
    """SQLite itself does not wait where several processes switch a new file to a write-ahead log at once."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _is_environment(error: Exception) -> bool:
    """Is the disk, a lock or a permission to blame, and not what the file holds?"""
    signs = ("locked", "busy", "full", "readonly", "disk I/O", "unable to open", "locking protocol")
    return any(sign in str(error) for sign in signs)


def fill(store: ReferenceStore, scorer: Callable[[list[str]], Iterable[Row]], wanted: Iterable[str]) -> Sums:
    """The figures of all ``wanted``, computing those that the store lacks.

    ``scorer`` is called once, with the keys that are missing, and not at all when there are none; what
    it yields, in any order, is committed every 256 figures and every 2 seconds, and also when it
    raises.
    """
    wanted = list(dict.fromkeys(wanted))
    known = store.get(wanted)
    missing = [key for key in wanted if key not in known]
    if missing:
        pending, committed = [], time.monotonic()
        scored: Sums = {}  # a store that is found damaged on the way is begun anew
        try:
            for row in scorer(missing):
                pending.append(row)
                scored[row[0]] = row[1:]
                if len(pending) >= 256 or time.monotonic() - committed > 2:
                    batch, pending = pending, []
                    store.put(batch)
                    committed = time.monotonic()
        finally:
            store.put(pending)
        held = store.get(wanted)
        known = {**known, **scored, **held}
        store.put([(key, *known[key]) for key in wanted if key in known and key not in held])
    assert len(known) == len(wanted), f"the scorer left out {len(wanted) - len(known)} responses"
    return known


# --- step 0 -----------------------------------------------------------------------------------

# Nats of a response of up to 256 tokens: sums of log-probs that are rounded, each by itself, in another packing.
_TOLERANCE = {torch.float32: 0.01, torch.float16: 0.5, torch.bfloat16: 2.5}


def check_step_zero(
    policy: LogProbs, reference: LogProbs, dtype: torch.dtype, sources: Sequence[str], expected: Tensor
) -> None:
    """Before the first update policy = reference: the same log π(y|x) of every response [R], each from its source.

    Then a reward β (log π − log π_ref) is 0 and DPO's loss ln 2, whatever β is. ``expected`` [P] is the loss there,
    which must be a number. RunFailed otherwise, with the response that is furthest off.

    >>> there = LogProbs(sum=torch.tensor([-10.0]), length=torch.tensor([4.0]))
    >>> check_step_zero(there, there, torch.float32, ["f.jsonl:1"], torch.tensor([0.6931]))
    """
    if not expected.isfinite().all():
        raise RunFailed(
            f"step 0: the loss is {expected[~expected.isfinite()][0]:g} where policy and reference agree, as they do "
            "before the first step: it cannot be trained with from there; check what it does with margins of 0"
        )
    tolerance = _TOLERANCE[dtype] * (reference.length / 256).clamp(min=1).sqrt()
    off = ((policy.sum - reference.sum).abs() / tolerance).nan_to_num(nan=math.inf)
    if count := int((off > 1).sum()):
        worst = int(off.argmax())
        raise RunFailed(
            f"step 0: policy and reference should agree, but {count} of {len(off)} responses are off by more than "
            f"{tolerance[worst]:.2g} nats, most of all one of {sources[worst]} with log-probability "
            f"{policy.sum[worst]:.4f} instead of {reference.sum[worst]:.4f}. Likely causes: the reference is another "
            "model than the one that training starts from, or its figures are stale; dropout is on; an adapter is "
            "active in one of the two only; the two compute in different dtypes"
        )
