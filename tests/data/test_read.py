"""Rows come back as they were written, with their place; what is broken is said in one sentence."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.data import hub, read
from prefopt.data.read import Row, fingerprint, read_rows, size
from prefopt.errors import UserError

ROWS = [
    {"prompt": 'Ünï\ncode, "quoted"', "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": "", "rejected": "d"},
]


def write(path, rows, indent=None):
    """Rows in the format that the file's name asks for."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        data = sink.getvalue()
    elif kind in ("csv", "tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    elif kind == "json":
        data = json.dumps(rows, ensure_ascii=False, indent=indent).encode()
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def fields(spec):
    return [row.fields for row in read_rows(str(spec))]


def message(spec):
    with pytest.raises(UserError) as caught:
        list(read_rows(str(spec)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_back_its_rows(tmp_path, kind, zipped):
    assert fields(write(tmp_path / f"prefs.{kind}{zipped}", ROWS)) == ROWS


def test_a_row_knows_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefs.jsonl").write_text('{"a": 1}\n\n  \n{"a": 2}\n')
    assert list(read_rows("prefs.jsonl")) == [Row({"a": 1}, "prefs.jsonl:1"), Row({"a": 2}, "prefs.jsonl:4")]
    (tmp_path / "prefs.csv").write_text('a,b\n"two\nlines",1\n\nx,2\n')
    assert [row.source for row in read_rows("prefs.csv")] == ["prefs.csv:2", "prefs.csv:5"]
    write(tmp_path / "prefs.json", [{"a": 1}, {"a": 2}])
    assert [row.source for row in read_rows("prefs.json")] == ["prefs.json:row 1", "prefs.json:row 2"]
    write(tmp_path / "prefs.parquet", [{"a": 1}] * 100)
    assert list(read_rows("prefs.parquet"))[-1].source == "prefs.parquet:row 100"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wrapped.json", '{"version": 1, "data": [{"a": 1}, {"a": 2}]}'),
        ("pretty.json", '{\n "data": [\n  {"a": 1},\n  {"a": 2}\n ]\n}\n'),
        ("lines.json", '{"a": 1}\n{"a": 2}\n'),
        ("array.jsonl", ' [{"a": 1},\n{"a": 2}]\n'),
        ("bom.jsonl", '\ufeff{"a": 1}\n{"a": 2}'),
        ("bom.json", '\ufeff[{"a": 1}, {"a": 2}]'),
        ("bom.csv", "\ufeffa\n1\n2\n"),
    ],
)
def test_the_forms_that_json_comes_in(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [int(row["a"]) for row in fields(tmp_path / name)] == [1, 2]


def test_a_table_of_a_spreadsheet_may_have_semicolons(tmp_path):
    (tmp_path / "a.csv").write_text('prompt;chosen;rejected\n"1,5;";a;b\n')
    assert fields(tmp_path / "a.csv") == [{"prompt": "1,5;", "chosen": "a", "rejected": "b"}]
    (tmp_path / "c.csv").write_text('"a, b";c\n1;2\n')
    assert fields(tmp_path / "c.csv") == [{"a, b": "1", "c": "2"}]
    (tmp_path / "b.csv").write_text('a,"b;c"\n1;2,3\n')
    assert fields(tmp_path / "b.csv") == [{"a": "1;2", "b;c": "3"}]


def test_an_object_with_several_lists_is_one_row(tmp_path):
    row = {"chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}
    (tmp_path / "one.json").write_text(json.dumps(row, indent=1))
    assert fields(tmp_path / "one.json") == [row]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', "a.jsonl:2:7: bad JSON: Expecting value"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl:2: a row must be a JSON object, not [1]"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl:2: this is not UTF-8 (byte 0xff)"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "a.jsonl:1: bad JSON"),
        ("a.jsonl", b'{"a": ' + b"[" * 200_000, "a.jsonl:1"),
        ("a.json", b'[{"a": 1},\n {"a": 2}\n {"a": 3}]', "a.json:3:2: bad JSON: expected ']'"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "a.json:2:7: bad JSON: Expecting ':' delimiter"),
        ("a.json", b'[{"a": 1},\n {"a": "open]', "a.json:2:8: bad JSON: Unterminated string"),
        ("a.json", b'[{"a": 1}] {}', "a.json:1:12: bad JSON: something follows the end"),
        ("a.json", b'[{"a": 1}, 2]', "a.json:row 2: a row must be a JSON object, not 2"),
        ("a.json", b'[{"a": 1},\n{"a": "\xff"}]', "a.json:2: this is not UTF-8 (byte 0xff)"),
        ("a.json", b'{"data": [{"a": 1}\n]', "a.json:2:2: bad JSON"),
        ("a.json", b"hello", "a.json:1:1: bad JSON: Expecting value"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "a.csv:3: 3 cells, but the header has 2"),
        ("a.csv", b"a,b\n1\n", "a.csv:2: 1 cells, but the header has 2"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: two columns have the same name"),
        ("a.csv", b'a,b\n1,"open\n', "a.csv:2: bad cells: unexpected end of data"),
        ("a.csv", b"a,b\n1,\xe9\n", "a.csv:2: this is not UTF-8 (byte 0xe9)"),
        ("a.parquet", b"PAR1 but no more", "a.parquet is not a sound Parquet file"),
        ("a.jsonl", b"", "a.jsonl is empty: it holds no rows"),
        ("a.jsonl", b" \n\n", "a.jsonl is empty: it holds no rows"),
        ("a.json", b"[ ]", "a.json is empty: it holds no rows"),
        ("a.csv", b"a,b\n", "a.csv is empty: it holds no rows"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "a.jsonl.gz: the gzip file is damaged after row"),
        ("a.txt", b"words", "cannot tell from its name what a.txt holds"),
    ],
)
def test_what_is_broken_is_named_with_its_place(tmp_path, monkeypatch, name, data, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(data)
    assert message(name).startswith(said)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"a": {}}\n{"a": {"b": 1, "b": 3}}', 'a.jsonl:2: bad JSON: the key "b" stands twice in one'),
        ("a.json", b'[{"a": 1},\n{"b": 1, "b": 1}]', 'a.json:2:1: bad JSON: the key "b" stands twice in one object'),
        ("a.csv", b"a,b\r1,2\r", "a.csv:1: bad cells: a carriage return without a line feed; save the file with"),
        ("a.csv", b"a, a\n1,2\n", "a.csv:1: two columns have the same name"),
        ("a.csv", read.LFS + b"v1\noid", "a.csv holds no data but points to them: fetch them with git lfs pull"),
        ("a.parquet", read.LFS + b"v1\noid", "a.parquet holds no data but points to them"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, monkeypatch, name, data, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(data)
    assert message(name).startswith(said)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_nan_in_json_is_no_value(tmp_path, name):
    (tmp_path / name).write_text('{"a": NaN, "b": [NaN], "c": -Infinity}')
    assert fields(tmp_path / name) == [{"a": None, "b": [None], "c": -math.inf}]


def test_names_of_columns_may_have_space_around_them(tmp_path):
    (tmp_path / "a.csv").write_text("prompt, chosen ,rejected\n1, 2 ,3\n")
    assert fields(tmp_path / "a.csv") == [{"prompt": "1", "chosen": " 2 ", "rejected": "3"}]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{}", "{", "{}", ""], "a.jsonl:2:2: bad JSON: Expecting property name enclosed in double quotes"),
        (["{", "", "[1]", "{}"], "; line 3 is broken, too"),
        (["{}", "2", "\xff", "{", "{}"], "; lines 3, 4 are broken, too"),
        (["words"] * 20, "; lines 2, 3, 4, 5, 6 and 14 more are broken, too"),
        (["{", "{}", " ", "1"], "; line 4 is broken, too"),
        (["{", "{", "x" * 200, "{"], "; line 2 is broken, too"),  # nothing is looked at behind a line too long
    ],
)
def test_all_lines_that_are_no_rows_are_named_at_once(tmp_path, monkeypatch, lines, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(read, "MAX_ROW", 100)
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    assert message("a.jsonl").endswith(said)


def test_lines_of_nothing_but_space_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf\n" + '{"a": 1}\n\u3000\n'.encode())
    assert fields(tmp_path / "a.jsonl") == [{"a": 1}]


def test_a_damaged_file_does_not_hide_a_broken_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"words\n" + bytes(range(256)) * 99)[:-40])
    assert message("a.jsonl.gz").startswith("a.jsonl.gz:1:1: bad JSON")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_row_beyond_the_limit_is_refused_before_it_is_loaded(tmp_path, monkeypatch, name):
    monkeypatch.setattr(read, "MAX_ROW", 50_000)
    monkeypatch.setattr(read, "CHUNK", 1000)
    write(tmp_path / name, [{"a": "short"}, {"a": "x" * 5_000_000}])
    tracemalloc.start()
    said = message(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "longer than 50,000 bytes" in said
    assert peak < 1_000_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(read, "CHUNK", 1000)
    write(tmp_path / name, [{"prompt": f"{i} " * 200, "chosen": "c", "rejected": "r"} for i in range(10_000)])  # 10 MB
    next(read_rows(str(tmp_path / name)))  # imports are not what is measured
    tracemalloc.start()
    count = sum(1 for _ in read_rows(str(tmp_path / name)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 1_500_000


@pytest.mark.parametrize("chunk", range(1, 40, 3))
def test_an_array_does_not_depend_on_where_it_is_cut(tmp_path, monkeypatch, chunk):
    rows = [{"a": 'é\\"\n', "b": [{"c": None}, -1.5e3, True]}, {}, {"x": "𝄞" * 9}]
    path = write(tmp_path / "a.json", rows, indent=2)
    monkeypatch.setattr(read, "CHUNK", chunk)
    assert fields(path) == rows


# ---------------------------------------------------------------- names


def test_globs_and_folders(tmp_path):
    write(tmp_path / "b.jsonl", [{"n": 2}])
    write(tmp_path / "a.json", [{"n": 1}])
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "c.csv.gz", [{"n": "3"}])
    (tmp_path / "LICENSE").write_text("words")
    (tmp_path / ".hidden.jsonl").write_text("{")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert [int(row["n"]) for row in fields(tmp_path)] == [1, 2, 3]
    assert [row["n"] for row in fields(tmp_path / "?.json*")] == [1, 2]
    assert "no file matches" in message(tmp_path / "*.parquet")
    (tmp_path / "none").mkdir()
    assert "holds no data files" in message(tmp_path / "none")


def test_links_to_folders_are_followed_once_and_one_that_leads_nowhere_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    write(tmp_path / "far" / "a.jsonl", ROWS)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "round").symlink_to(tmp_path / "data")
    assert fields(tmp_path / "data") == ROWS
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fields("~/data") == ROWS
    (tmp_path / "far" / ".#a.jsonl").symlink_to("somebody@somewhere")  # an editor's lock
    assert fields(tmp_path / "data") == ROWS
    (tmp_path / "far" / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for spec in (tmp_path / "data", tmp_path / "far" / "*.jsonl"):
        assert "gone.jsonl, which is not there" in message(spec)


@pytest.mark.parametrize("name", ["latest", "a", "zz"])
def test_a_link_to_a_split_does_not_hide_it(tmp_path, name):
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        write(tmp_path / "data" / split / "p.jsonl", ROWS if split == "train" else ROWS[:1])
    (tmp_path / "data" / name).symlink_to("train")
    assert "holds the splits test, train: choose one" in message(tmp_path / "data")
    assert fields(f"{tmp_path}/data:train") == ROWS
    (tmp_path / "data" / "test" / "q.jsonl").symlink_to("gone")
    assert fields(f"{tmp_path}/data:train") == ROWS  # of no matter there


def test_a_folder_may_be_a_link_into_what_is_hidden(tmp_path):
    (tmp_path / "data" / ".versions" / "v1").mkdir(parents=True)
    write(tmp_path / "data" / ".versions" / "v1" / "p.jsonl", ROWS)
    (tmp_path / "data" / "current").symlink_to(".versions/v1")
    assert fields(tmp_path / "data") == ROWS


def test_a_name_that_the_system_refuses_is_one_sentence(tmp_path):
    assert "cannot be looked at" in message(tmp_path / ("x" * 300 + ".jsonl"))


def test_an_object_is_no_list_of_its_messages(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}
    file = tmp_path / "one.json"
    weighted = {"messages": [message | {"weight": 1} for message in row["messages"]]}
    ranked = {"prompt": "q", "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 0}]}
    for content, expected in (
        (row, [row]), (weighted, [weighted]), (ranked, [ranked]), ({"data": ROWS, "errors": []}, ROWS)
    ):  # fmt: skip
        file.write_text(json.dumps(content, indent=1))
        assert fields(file) == expected


def test_a_folder_with_splits_must_be_told_which(tmp_path):
    write(tmp_path / "train-00000.jsonl", [{"n": 1}])
    write(tmp_path / "test.jsonl", [{"n": 2}])
    assert "holds the splits test, train: choose one" in message(tmp_path)
    assert fields(f"{tmp_path}:train") == [{"n": 1}]
    assert message(f"{tmp_path}:dev").endswith('has no files for the split "dev"; there is test, train')


def test_a_missing_file_suggests_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "prefs.jsonl", ROWS)
    assert message("pref.jsonl") == "there is no file pref.jsonl; did you mean prefs.jsonl?"
    assert message(tmp_path / "prefs") == f"there is no file {tmp_path}/prefs; did you mean {tmp_path}/prefs.jsonl?"
    assert message("elsewhere/other.jsonl") == "there is no file elsewhere/other.jsonl"
    assert (
        message("/dev/null")
        == "/dev/null is no file but a stream, and data are read more than once: save them as a file"
    )
    assert message("") == "--data is empty: name a file, a folder or a data set"
    assert message("-").startswith("- is no file but a stream")


@pytest.fixture
def forgetful():
    """What is known of the hub is forgotten before and after a test."""
    hub._splits.cache_clear()
    yield
    hub._splits.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_hub_names(monkeypatch):
    from datasets import Dataset

    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        if name == "no/such":
            raise ConnectionError("Couldn't reach the hub\nand more")
        return {"train": Dataset.from_list([{"n": 1}, {"n": 2}]), "test": Dataset.from_list([{"n": 3}])}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert list(read_rows("owner/name")) == [Row({"n": 1}, "owner/name:row 1"), Row({"n": 2}, "owner/name:row 2")]
    assert fields("owner/name/config:test") == [{"n": 3}]
    assert asked == [("owner/name", None), ("owner/name", "config")]
    assert (
        message("owner/name:dev") == 'owner/name:dev has no split "dev"; say owner/name:SPLIT with one of train, test'
    )
    assert message("no/such").endswith("the hub does not give it: Couldn't reach the hub")
    assert message("nope") == "there is no file nope, and a data set on the hub is called owner/name"
    assert len(asked) == 3


@pytest.mark.usefixtures("forgetful")
def test_what_the_hub_gives_is_read_from_the_cache_of_datasets(tmp_path, monkeypatch):
    """A folder in the hub's place, for the library that reads it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write(tmp_path / "owner" / "name" / "train.jsonl", ROWS)
    write(tmp_path / "owner" / "name" / "test.jsonl", ROWS[:1])
    monkeypatch.setattr("prefopt.data.read.find_files", lambda spec: None)
    read, bytes_read = [row.fields for row in read_rows("owner/name")], []
    assert read == ROWS and fields("owner/name:test") == ROWS[:1]
    list(read_rows("owner/name", bytes_read.append))
    assert sum(bytes_read) == pytest.approx(size("owner/name")) and size("owner/name") > 0
    before = fingerprint("owner/name"), fingerprint("owner/name:test")
    assert before[0] != before[1]
    hub._splits.cache_clear()
    assert before == (fingerprint("owner/name"), fingerprint("owner/name:test"))  # as in another process
    write(tmp_path / "owner" / "name" / "train.jsonl", ROWS[1:])
    hub._splits.cache_clear()
    assert fingerprint("owner/name") != before[0]


@pytest.mark.usefixtures("forgetful")
def test_splits_of_the_hub_may_have_different_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write(tmp_path / "owner" / "name" / "train.jsonl", ROWS)
    write(tmp_path / "owner" / "name" / "test.jsonl", [{**row, "more": 1} for row in ROWS])
    monkeypatch.setattr("prefopt.data.read.find_files", lambda spec: None)
    assert fields("owner/name") == ROWS and fields("owner/name:test")[0] == {**ROWS[0], "more": 1}
    assert fingerprint("owner/name") != fingerprint("owner/name:test")


def test_bytes_are_told_as_they_are_read(tmp_path):
    rows = [{"n": i, "text": "x" * 1000} for i in range(3000)]
    plain = tmp_path / "a.jsonl"
    write(plain, rows)
    zipped = tmp_path / "b.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    for file in (plain, zipped):
        told = []
        assert sum(1 for _ in read_rows(str(file), told.append)) == 3000
        assert sum(told) == size(str(file)) == file.stat().st_size
    table = write(tmp_path / "c.parquet", rows)
    around = tmp_path / "d.json"
    around.write_text(json.dumps({"rows": rows}))
    for file in (table, around):  # which are not read from beginning to end, but in part twice
        told = []
        assert sum(1 for _ in read_rows(str(file), told.append)) == 3000
        assert 0.9 * size(str(file)) < sum(told) <= size(str(file))
    read = read_rows(str(plain), told.append)
    told.clear()
    next(read)
    assert 0 < sum(told) < size(str(plain)) / 2


# ---------------------------------------------------------------- laws

text = st.text(st.characters(codec="utf-8"))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(rows=st.lists(st.dictionaries(text, values, max_size=4), min_size=1, max_size=6), zipped=st.booleans())
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_json_rows_survive(tmp_path, kind, rows, zipped):
    assert fields(write(tmp_path / f"a.{kind}{'.gz' * zipped}", rows)) == rows


@quick
@given(cells=st.lists(st.tuples(text, text), min_size=1, max_size=6))
def test_csv_cells_survive(tmp_path, cells):
    rows = [{"a": a.replace("\r", "").replace("\0", ""), "b": b.replace("\r", "").replace("\0", "")} for a, b in cells]
    assert fields(write(tmp_path / "a.csv", rows)) == rows


@quick
@given(junk=st.binary(max_size=200), tail=st.booleans())
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz"])
def test_junk_gives_rows_or_one_clear_sentence(tmp_path, kind, junk, tail):
    sound = b"" if not tail else write(tmp_path / f"sound.{kind}", ROWS).read_bytes()
    path = tmp_path / f"a.{kind}"
    path.write_bytes(sound[: len(sound) // 2] + junk + sound[len(sound) // 2 :])
    try:
        assert all(isinstance(row.fields, dict) for row in read_rows(str(path)))
    except UserError as error:
        assert str(path) in str(error)


@quick
@given(text=st.text('[]{}",:\\n1 \nat\ufeff', max_size=60))
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_almost_json_gives_rows_or_one_clear_sentence(tmp_path, kind, text):
    path = tmp_path / f"a.{kind}"
    path.write_text(text, encoding="utf-8")
    try:
        list(read_rows(str(path)))
    except UserError as error:
        assert str(path) in str(error)
