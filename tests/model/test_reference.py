import math
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.errors import RunFailed
from prefopt.model.reference import (
    ReferenceStore,
    Scope,
    check_step_zero,
    default_path,
    fill,
    response_keys,
)
from prefopt.types import Encoded, LogProbs

SCOPE = Scope("a" * 32, "", "float32")
KEYS = [f"{i:032x}" for i in range(50)]
ROWS = [(key, -i / 3, i) for i, key in enumerate(KEYS)]
KNOWN = {key: (total, length) for key, total, length in ROWS}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "reference.sqlite"


@pytest.fixture
def store(path):
    with ReferenceStore(path, SCOPE) as store:
        yield store


# --- keys -------------------------------------------------------------------------------------


def encoded(prompt: list[int], responses: list[list[int]], scored: list[list[bool]] | None = None) -> Encoded:
    scored = scored or [[True] * len(response) for response in responses]
    return Encoded(
        np.array(prompt, np.int32),
        tuple(np.array(response, np.int32) for response in responses),
        tuple(np.array(mask, bool) for mask in scored),
        (None,) * len(responses),
        source="f.jsonl:1",
        key="",
        prompt_key="",
    )


def test_a_key_is_about_tokens_and_nothing_else():
    pair = encoded([1, 2], [[3, 4], [5]])
    elsewhere = replace(pair, source="g.jsonl:9", key="x", scores=(1.0, 0.0), prompt=pair.prompt.astype(np.int64))
    assert response_keys(pair) == response_keys(elsewhere)
    # Each response has its own: in whichever pair it stands, its figure is found.
    assert response_keys(encoded([1, 2], [[5]])) == response_keys(pair)[1:]


def test_another_token_boundary_or_mask_is_another_key():
    variants = [
        encoded([1, 2], [[3, 4]]),
        encoded([1, 2, 3], [[4]]),
        encoded([1], [[2, 3, 4]]),
        encoded([1, 2], [[3]]),
        encoded([1, 2], [[3, 5]]),
        encoded([0, 1, 2], [[3, 4]]),
        encoded([1, 2], [[3, 4]], [[False, True]]),
        encoded([1, 2], [[3, 4]], [[True, False]]),
    ]
    assert len({key for variant in variants for key in response_keys(variant)}) == len(variants)


# --- the store --------------------------------------------------------------------------------


@given(
    figures=st.dictionaries(
        st.binary(min_size=16, max_size=16).map(bytes.hex),
        st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**31)),
    )
)
@settings(max_examples=50, deadline=None)
def test_every_figure_comes_back_to_the_bit(tmp_path_factory, figures):
    path = tmp_path_factory.mktemp("store") / "reference.sqlite"
    with ReferenceStore(path, SCOPE) as store:
        store.put([(key, total, length) for key, (total, length) in figures.items()])
    with ReferenceStore(path, SCOPE) as store:
        assert store.get(list(figures)) == figures


def test_it_knows_only_what_was_put(store):
    store.put(ROWS[:10])
    assert store.get(KEYS) == {key: KNOWN[key] for key in KEYS[:10]}
    assert store.get([]) == {}


def test_more_keys_than_one_query_takes(store):
    keys = [f"{i:032x}" for i in range(2500)]
    store.put([(key, -1.5, 3) for key in keys])
    assert store.get(keys) == dict.fromkeys(keys, (-1.5, 3))


@pytest.mark.parametrize("change", [{"model": "b" * 32}, {"adapter": "c" * 32}, {"dtype": "bfloat16"}])
def test_another_model_adapter_or_dtype_finds_nothing(store, path, change):
    store.put(ROWS)
    with ReferenceStore(path, SCOPE._replace(**change)) as other:
        assert other.get(KEYS) == {}
        other.put([(KEYS[0], -99.0, 1)])
        assert other.get(KEYS) == {KEYS[0]: (-99.0, 1)}
    assert store.get(KEYS) == KNOWN


def test_the_first_figure_stays(store, path):
    store.put(ROWS)
    with ReferenceStore(path, SCOPE) as other:
        other.put([(key, total + 1e-6, length) for key, total, length in ROWS])
    assert store.get(KEYS) == KNOWN


@pytest.mark.parametrize("total", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_is_refused(store, total):
    with pytest.raises(RunFailed, match="5 tokens"):
        store.put([ROWS[0], (KEYS[1], total, 5)])
    assert store.get(KEYS) == {}


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    assert default_path() == tmp_path / "reference.sqlite"
    monkeypatch.delenv("PREFOPT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "prefopt" / "reference.sqlite"


# --- damage -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "reference.sqlite"
    with ReferenceStore(path, SCOPE) as store:
        store.put(ROWS)
    return path


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_flipped_bit_is_never_believed(whole, tmp_path_factory, data):
    """Whichever bit it is: what is found is true, and what was lost can be put again.

    Twice, if need be: the damage may show only when something is put, and then a new file is begun.
    """
    path = tmp_path_factory.mktemp("flip") / "reference.sqlite"
    content = bytearray(whole.read_bytes())
    # Most of a page is free space: aim at bytes that are used, and now and then at any.
    used = [i for i, byte in enumerate(content) if byte]
    position = data.draw(st.sampled_from(used) | st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with ReferenceStore(path, SCOPE) as store:
        found = store.get(KEYS)
        assert found.items() <= KNOWN.items()
        for _ in range(2):
            store.put([row for row in ROWS if row[0] not in store.get(KEYS)])
        assert store.get(KEYS) == KNOWN


def test_damage_that_shows_in_the_middle_of_a_pass_costs_nothing_of_it(store, monkeypatch):
    keys = [f"{i:032x}" for i in range(600)]
    rows = {key: (-1.0, i) for i, key in enumerate(keys)}
    write, written = ReferenceStore._write, []

    def damaged_once(self, connection, batch):
        written.append(len(batch))
        if len(written) == 2:
            raise sqlite3.DatabaseError("database disk image is malformed")
        write(self, connection, batch)

    monkeypatch.setattr(ReferenceStore, "_write", damaged_once)
    assert fill(store, lambda missing: [(key, *rows[key]) for key in missing], keys) == rows
    assert store.get(keys) == rows and sum(written) == 600 + 2 * 256, "what was in the file set aside is put again"


@pytest.mark.parametrize("size", [0, 1, 100, 4095, 4096, 5000])
def test_a_truncated_file_is_begun_anew(whole, path, size):
    path.parent.mkdir()
    path.write_bytes(whole.read_bytes()[:size])
    with ReferenceStore(path, SCOPE) as store:
        assert store.get(KEYS) == {}
        store.put(ROWS)
        assert store.get(KEYS) == KNOWN


def test_a_file_that_is_no_database_is_set_aside_with_a_warning(path, caplog):
    path.parent.mkdir()
    for n in (1, 2):
        path.write_bytes(b"this is not a database " * 300)
        with ReferenceStore(path, SCOPE) as store:
            store.put(ROWS)
            assert store.get(KEYS) == KNOWN
        assert Path(f"{path}.damaged-{n}").read_bytes().startswith(b"this is")
        assert str(path) in caplog.messages[-1] and f"reference.sqlite.damaged-{n}" in caplog.messages[-1]


def test_a_row_that_was_changed_is_computed_again(path, caplog):
    with ReferenceStore(path, SCOPE) as store:
        store.put(ROWS)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE logps SET sum = sum + 1 WHERE response = ?", [bytes.fromhex(KEYS[3])])
    with ReferenceStore(path, SCOPE) as store:
        asked = []
        found = fill(store, lambda missing: asked.extend(missing) or [(key, *KNOWN[key]) for key in missing], KEYS)
        assert asked == [KEYS[3]] and found == store.get(KEYS) == KNOWN
    assert KEYS[3] in caplog.text


def test_damage_that_shows_while_it_is_in_use(path, caplog):
    with ReferenceStore(path, SCOPE) as store:
        store.put(ROWS)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DROP TABLE logps")
        assert store.get(KEYS) == {}
        store.put(ROWS)
        assert store.get(KEYS) == KNOWN
    assert "set aside" in caplog.text


@pytest.mark.parametrize(
    ("pragma", "reason"), [("query_only = 1", "readonly"), ("max_page_count = 5", "database or disk is full")]
)
def test_a_file_that_cannot_be_written_is_one_clear_error(store, path, pragma, reason):
    store.put(ROWS)
    store._connection.execute(f"PRAGMA {pragma}")
    with pytest.raises(RunFailed, match=f"(?s){path}.*{reason}.*PREFOPT_CACHE"):
        store.put([(os.urandom(16).hex(), -1.0, 1) for _ in range(5000)])
    assert store.get(KEYS) == KNOWN


def test_a_file_that_can_only_be_read_is_told_of_when_it_is_opened(store, path, monkeypatch):
    """As another user's is, before a model has computed what cannot be kept."""
    store.put(ROWS)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda file, **more: connect(f"file:{file}?mode=ro", uri=True, **more))
    with pytest.raises(RunFailed, match=f"{path}.*readonly.*PREFOPT_CACHE"):
        ReferenceStore(path, SCOPE)


def test_a_place_that_cannot_be_opened_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "reference.sqlite", tmp_path / "folder"):
        with pytest.raises(RunFailed, match="PREFOPT_CACHE"):
            ReferenceStore(place, SCOPE)


def test_processes_that_share_it_or_die_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.model.storing", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


# --- the bulk pass ----------------------------------------------------------------------------


class Scorer:
    """Counts what it is asked, and may die after some."""

    def __init__(self, dies_after: int | None = None):
        self.asked: list[str] = []
        self.dies_after = dies_after

    def __call__(self, missing):
        for i, key in enumerate(missing):
            if i == self.dies_after:
                raise ZeroDivisionError
            self.asked.append(key)
            yield key, -len(self.asked) / 3, 2


def test_only_what_is_missing_is_computed(store):
    first, second, third = Scorer(), Scorer(), Scorer()
    before = fill(store, first, KEYS[:30])
    assert first.asked == KEYS[:30]
    after = fill(store, second, KEYS + KEYS[:5])
    assert second.asked == KEYS[30:]
    assert after == store.get(KEYS) and before.items() <= after.items()
    assert fill(store, third, KEYS) == after and not third.asked


def test_a_crash_costs_nothing(store, path):
    with pytest.raises(ZeroDivisionError):
        fill(store, Scorer(dies_after=20), KEYS)
    again = Scorer()
    with ReferenceStore(path, SCOPE) as reopened:
        fill(reopened, again, KEYS)
    assert again.asked == KEYS[20:]


def test_it_commits_as_it_goes(store, path):
    keys = [f"{i:032x}" for i in range(1000)]
    seen = []

    def scored(missing):
        for row in Scorer()(missing):
            seen.append(len(other.get(keys)))
            yield row

    with ReferenceStore(path, SCOPE) as other:
        fill(store, scored, keys)
        assert len(other.get(keys)) == 1000
    assert all(0 <= i - there < 256 for i, there in enumerate(seen))


def test_a_scorer_that_leaves_some_out_is_our_mistake(store):
    with pytest.raises(AssertionError, match="left out 1 "):
        fill(store, lambda missing: Scorer()(missing[:-1]), KEYS)


def test_copies_of_the_file_can_be_handed_on(store, path, tmp_path):
    store.put(ROWS)
    store.close()
    copied = shutil.copy(path, tmp_path / "elsewhere.sqlite")
    with ReferenceStore(copied, SCOPE) as other:
        assert other.get(KEYS) == KNOWN


# --- step 0 -----------------------------------------------------------------------------------

SOURCES = ["a.jsonl:1", "a.jsonl:1", "a.jsonl:2", "a.jsonl:2"]
THERE = [-10.0, -12.0, -200.0, -4.0]
LN2 = torch.full((2,), math.log(2))
F32, BF16 = torch.float32, torch.bfloat16


def off_by(*nats: float, dtype: torch.dtype = F32, expected: torch.Tensor = LN2, length: float = 5.0) -> None:
    reference = LogProbs(torch.tensor(THERE), torch.full((4,), length))
    check_step_zero(replace(reference, sum=reference.sum + torch.tensor(nats)), reference, dtype, SOURCES, expected)


def test_policy_equal_to_reference_passes():
    off_by(0.0, 0.0, 0.0, 0.0)
    off_by(1e-4, -1e-4, 5e-3, 0.0)
    nothing = LogProbs(torch.zeros(0), torch.zeros(0))
    check_step_zero(nothing, nothing, F32, [], LN2[:0])


def test_what_is_furthest_off_is_named_with_likely_causes():
    with pytest.raises(RunFailed) as error:
        off_by(0.0, 0.1, -2.5, 0.0)
    said = str(error.value)
    for part in ("2 of 4", "one of a.jsonl:2", "-202.5000 instead of -200.0000", "dropout", "stale", "adapter"):
        assert part in said


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_furthest_off(bad):
    with pytest.raises(RunFailed, match=r"one of a\.jsonl:2"):
        off_by(0.0, 9.0, bad, 0.0)


def test_bfloat16_is_given_more_room_whatever_beta_is():
    """At β = 5 half a nat, which is rounding there, is 2.5 of a reward."""
    off_by(0.5, -0.5, 1.0, 0.0, dtype=BF16)
    for dtype, nats in ((F32, 0.5), (BF16, 5.0)):
        with pytest.raises(RunFailed):
            off_by(nats, 0.0, 0.0, 0.0, dtype=dtype)


def test_rounding_grows_with_the_root_of_the_length():
    off_by(0.035, 0.0, 0.0, 0.0, length=4096.0)
    for nats, length in ((0.035, 256.0), (0.045, 4096.0)):
        with pytest.raises(RunFailed):
            off_by(nats, 0.0, 0.0, 0.0, length=length)


def test_a_loss_that_is_no_number_there_cannot_be_trained_with():
    with pytest.raises(RunFailed, match="the loss is nan where policy and reference agree"):
        off_by(0.0, 0.0, 0.0, 0.0, expected=torch.tensor([0.7, math.nan]))
