"""From files to encoded examples, which are read once and held nowhere."""

import json
import tracemalloc

import pytest

from prefopt.data import plan
from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.errors import UserError
from tests.data.made import byte_level


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(n, begin=0):
    return [
        {"prompt": f"What is {i}+{i}? ", "chosen": f"{2 * i}", "rejected": "5, yes"} for i in range(begin, begin + n)
    ]


def test_what_is_left_out_shifts_no_weight(tmp_path):
    a = write(tmp_path / "a.jsonl", [*pairs(2), {"prompt": "x", "chosen": "", "rejected": "b"}, *pairs(1, 2)])
    b = write(tmp_path / "b.jsonl", [{"prompt": "x", "chosen": "a"}, {"prompt": "y" * 99, **pairs(1)[0]}, *pairs(2, 9)])
    data = encoded([a, f"{b}=3"], None, Encoder(byte_level(), max_length=30))
    kept = [
        (example.source.rpartition("/")[2], weight) for example, weight in zip(data.examples, data.weights, strict=True)
    ]
    assert kept == [
        ("a.jsonl:1", 1),
        ("a.jsonl:2", 1),
        ("a.jsonl:4", 1),
        ("b.jsonl:2", 3),
        ("b.jsonl:3", 3),
        ("b.jsonl:4", 3),
    ]
    assert data.counts["rows"] == 8 and data.counts["given"] == 6 and data.counts["kept"] == 6
    again = encoded([a, f"{b}=3"], None, Encoder(byte_level(), max_length=30))
    assert again.weights.tolist() == data.weights.tolist() and again.counts == data.counts


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", pairs(3))
    write(tmp_path / "b.jsonl", pairs(3, 5))
    encoder = Encoder(byte_level())
    prepare = encoder.prepare
    for change in (lambda: write(tmp_path / "a.jsonl", pairs(4)), (tmp_path / "b.jsonl").unlink):

        def meanwhile(survey, change=change):
            if (tmp_path / "b.jsonl").exists():
                change()
            return prepare(survey)

        monkeypatch.setattr(encoder, "prepare", meanwhile)
        with pytest.raises(UserError, match="the data changed while they were read"):
            encoded([str(tmp_path / "*.jsonl")], None, encoder)
    assert not [kept for kept in (tmp_path / "cache").iterdir() if kept.name.startswith("encoded-")]


def test_what_is_held_hardly_grows_with_the_data(tmp_path):
    """Of a pair with some hundred characters less than 300 bytes stay, and no more than 800 are needed on the way."""
    encoder, used = Encoder(byte_level()), {}
    for n in (2000, 5000):
        rows = [{"prompt": f"{i} " + "x" * 300, "chosen": "a" * 200, "rejected": "b" * 200} for i in range(n)]
        file = write(tmp_path / f"{n}.jsonl", rows)
        tracemalloc.start()
        units = plan.units(encoded([file], None, encoder).examples, "pair")
        kept = plan.split(units, 0.1, 0)
        used[n] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sum(map(len, kept)) == n
    held, peak = ((b - a) / 3000 for a, b in zip(used[2000], used[5000], strict=True))
    assert held < 300 and peak < 800, (held, peak)
