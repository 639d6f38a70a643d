"""What is encoded once is kept under the contents of its files, and read back only where it is the same."""

import json
import os
from dataclasses import replace
from io import BytesIO

import pytest

from prefopt.data import cache, dataset
from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.data.shelf import COLUMNS, Writer
from prefopt.errors import UserError
from tests.data.made import CHATML, LLAMA, byte_level, metaspace


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


def file(folder, rows, name="prefs.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def turn(role, content):
    return {"role": role, "content": content}


def chat(asked="Hello", chosen="It is 4.", rejected="It is five."):
    return {
        "prompt": [turn("user", asked)],
        "chosen": [turn("assistant", chosen)],
        "rejected": [turn("assistant", rejected)],
    }


def text(prompt="Hello", chosen=" It is 4.", rejected=" It is five."):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def equal(a, b):
    assert a.counts == b.counts and a.findings == b.findings and a.notes == b.notes
    assert a.weights.tolist() == b.weights.tolist()
    for x, y in zip(a.examples, b.examples, strict=True):
        assert (x.key, x.prompt_key, x.source, x.scores) == (y.key, y.prompt_key, y.source, y.scores)
        for p, q in zip((x.prompt, *x.responses, *x.scored), (y.prompt, *y.responses, *y.scored), strict=True):
            assert p.dtype == q.dtype and p.tolist() == q.tolist()


def kept():
    (folder,) = cache.folder().glob("encoded-*")
    return folder


ONE = [text()]
ODD = [text(), text("a </s> b"), text("x", "", "b"), text(), {"prompt": "y"}, text("z", " a", " a"), text("z" * 400)]
"""rows of every fate: usable, noted, empty, twice, lacking a column, equal, too long"""


def test_what_was_encoded_once_is_read_back_with_all_that_was_said(tmp_path, monkeypatch):
    data = [file(tmp_path, ODD), f"{file(tmp_path, [text(str(i)) for i in range(3)], 'more.jsonl')}=2"]
    first = encoded(data, None, Encoder(byte_level(), max_length=100))
    assert {"special-token", "empty", "duplicate", "missing", "equal", "overlong"} == {f.kind for f in first.findings}
    assert first.counts["rows"] == 10 and len(first.weights) == len(first.examples) == 6
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("encoded twice"))
    monkeypatch.setattr(dataset, "Usable", lambda *_: pytest.fail("read twice"))
    equal(encoded(data, None, Encoder(byte_level(), max_length=100)), first)
    other = encoded([data[0], data[1].replace("=2", "=5")], None, Encoder(byte_level(), max_length=100))
    assert other.weights.tolist() == [1, 1, 1, 5, 5, 5]  # a weight is no part of what is kept


def test_a_tokenizer_without_a_template_gets_one_from_the_cache_too(tmp_path, monkeypatch):
    data = [file(tmp_path, [text()]), file(tmp_path, [chat()], "chats.jsonl")]
    first, second = byte_level(), byte_level()
    monkeypatch.setattr(dataset, "AT_ONCE", 1)
    whole = encoded(data, None, Encoder(first))
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("encoded twice"))
    equal(encoded(data, None, Encoder(second)), whole)
    assert first.chat_template == second.chat_template is not None
    said = ["some prompts are text, read as written: only messages go through the model's chat template"]
    equal(encoded(data, None, Encoder(first)), replace(whole, notes=said))  # as a model that was saved with it


def test_messages_after_texts_are_no_surprise_to_a_tokenizer_with_a_template(tmp_path, monkeypatch):
    """And what is kept of them still tells one without that there are messages."""
    data = [file(tmp_path, FIVE), file(tmp_path, [chat()], "chats.jsonl")]
    monkeypatch.setattr(dataset, "AT_ONCE", 2)
    bare = byte_level()
    known = byte_level(Encoder(bare).template)
    monkeypatch.setattr(dataset, "Surprise", ())  # nothing is caught
    encoded(data, None, Encoder(known))
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("encoded twice"))
    encoded(data, None, Encoder(bare))
    assert bare.chat_template == known.chat_template


def test_the_cache_follows_code_tokenizer_template_options_names_and_content(tmp_path, monkeypatch):
    def made(tokenizer, rows=ONE, name="prefs.jsonl", **options):
        before = len(list(cache.folder().glob("encoded-*")))
        encoded([file(tmp_path, rows, name)], None, Encoder(tokenizer, **options))
        return len(list(cache.folder().glob("encoded-*"))) - before

    assert made(byte_level(CHATML)) == 1 and made(byte_level(CHATML)) == 0
    assert made(byte_level(LLAMA)) == 1
    assert made(metaspace(CHATML)) == 1
    assert made(byte_level(CHATML, eos="<|im_end|>")) == 1
    assert made(byte_level(CHATML), max_length=64) == 1
    assert made(byte_level(CHATML), [text("Hello!")]) == 1
    assert made(byte_level(CHATML), name="other.jsonl") == 1  # findings name the file
    monkeypatch.setattr(cache, "_code", lambda: ["another"])
    assert made(byte_level(CHATML)) == 1


def test_which_layout_was_told_is_part_of_what_is_kept(tmp_path):
    data = [file(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"}])]
    of = {name: encoded(data, name, Encoder(byte_level())).examples[0] for name in ("preference", "prompt-completion")}
    assert len(of["preference"].responses) == 2 and len(of["prompt-completion"].responses) == 1


@pytest.mark.parametrize("name", ["ids", "scores", "said.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "garbage", "gone"])
def test_a_damaged_cache_is_computed_again(name, damage, caplog, tmp_path):
    data = [file(tmp_path, [chat()])]
    first = encoded(data, None, Encoder(byte_level(CHATML)))
    raw = bytearray((kept() / name).read_bytes())
    (kept() / name).unlink()  # what is open stays as it was
    flipped = raw[:-1] + bytes([raw[-1] ^ 1])
    if damage != "gone":
        (kept() / name).write_bytes({"flip": flipped, "truncate": raw[:-5], "garbage": b"\x80\x04."}[damage])
    with caplog.at_level("WARNING"):
        equal(encoded(data, None, Encoder(byte_level(CHATML))), first)
    assert "damaged" in caplog.text
    caplog.clear()
    equal(encoded(data, None, Encoder(byte_level(CHATML))), first)
    assert not caplog.text  # it was written anew


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "file"))
    with caplog.at_level("WARNING"):
        assert encoded([file(tmp_path, [text()])], None, Encoder(byte_level())).counts["kept"] == 1
    assert "not cached" in caplog.text


def test_the_cache_holds_json_and_plain_arrays_only(tmp_path):
    encoded([file(tmp_path, [text()])], None, Encoder(byte_level()))
    assert {file.name for file in kept().iterdir()} == {"said.json", *COLUMNS}
    assert set(json.loads((kept() / "said.json").read_text())) == {"sum", "said"}


def test_a_full_disk_midway_leaves_no_trace_and_no_example_out(monkeypatch, caplog, tmp_path):
    data = [file(tmp_path, [text(f"What is {i}?") for i in range(30)])]
    whole = encoded(data, None, Encoder(byte_level()))
    written = []

    class Full:
        def __init__(self, file):
            self.file, self.close = file, file.close

        def write(self, some):
            written.append(some)
            if len(written) == 20:
                raise OSError(28, "No space left on device")
            return self.file.write(some)

    def writer(opened):
        files = {name: opened(name) for name in COLUMNS}
        return Writer(lambda name: files[name] if isinstance(files[name], BytesIO) else Full(files[name]))

    monkeypatch.setattr(cache, "Writer", writer)
    monkeypatch.setattr("prefopt.data.shelf.AT_ONCE", 100)
    with caplog.at_level("WARNING"):
        equal(encoded(data, None, Encoder(byte_level(), max_length=500)), whole)
    assert "No space left" in caplog.text
    assert len(list(cache.folder().iterdir())) == 1


def test_an_error_of_the_data_is_not_the_caches(caplog, monkeypatch, tmp_path):
    read, readings = dataset.read_all, []

    def gone(*given):
        readings.append(1)
        yield from read(*given)
        if len(readings) == 2:
            raise ConnectionError("Server disconnected")

    monkeypatch.setattr(dataset, "read_all", gone)
    with pytest.raises(ConnectionError):
        encoded([file(tmp_path, [text()])], None, Encoder(byte_level()))
    assert len(readings) == 2 and not caplog.text and not list(cache.folder().iterdir())


@pytest.mark.parametrize("sound", [True, False])
def test_what_another_process_kept_meanwhile_stays_if_it_is_sound(sound, monkeypatch, tmp_path):
    data = [file(tmp_path, [text()])]
    whole = encoded(data, None, Encoder(byte_level()))
    inode = kept().stat().st_ino
    if not sound:
        (kept() / "ids").unlink()
    monkeypatch.setattr(cache, "load", lambda key: None)
    equal(encoded(data, None, Encoder(byte_level())), whole)
    assert (kept().stat().st_ino == inode) == sound


def test_what_a_killed_process_began_and_what_no_run_reads_is_deleted_in_time(tmp_path):
    data = [file(tmp_path, [text()])]
    cache.folder().mkdir()
    old, new = (cache.folder() / f".writing-{name}" for name in ("old", "new"))
    for begun in (old, new):
        (begun / "new").mkdir(parents=True)
    former, file_of_before = cache.folder() / f"encoded-{'0' * 32}", cache.folder() / f"encoded-{'0' * 32}.safetensors"
    theirs = cache.folder() / "encoded-interviews"
    former.mkdir()
    theirs.mkdir()
    file_of_before.write_text("")
    for each in (old, former, file_of_before, theirs):
        os.utime(each, (0, 0))
    encoded(data, None, Encoder(byte_level()))
    assert not any(each.exists() for each in (old, former, file_of_before)) and new.exists()
    theirs.rmdir()  # it is not ours to delete
    read = kept()
    os.utime(read, (0, 0))
    encoded(data, None, Encoder(byte_level()))  # which is what keeps it
    encoded([file(tmp_path, [text("Other")], "other.jsonl")], None, Encoder(byte_level()))
    assert read.exists()


# ---------------------------------------------------------------- what is taken for granted of all from the first ones

BEGUN, STRANGE = text("<|im_start|>user\nHello<|im_end|>\n"), text("\U000f0000 and \U0010fffd")
FIVE = [text(str(i)) for i in range(5)]


@pytest.mark.parametrize(
    ("first", "last", "rendered"),
    [
        (FIVE, STRANGE, False),
        (FIVE, chat(), False),
        ([BEGUN] * 5, text(), False),
        ([chat(str(i)) for i in range(5)], BEGUN, True),
        (FIVE, BEGUN, False),
    ],
)
def test_late_surprises_change_no_id(first, last, rendered, tmp_path, monkeypatch):
    files = [file(tmp_path, [row], f"{i}.jsonl") for i, row in enumerate([*first, last])]
    whole = encoded(files, None, Encoder(byte_level()))
    monkeypatch.setattr(dataset, "AT_ONCE", 2)
    monkeypatch.setattr("prefopt.data.encode.AT_ONCE", 2)
    monkeypatch.setattr(cache, "_code", lambda: ["another"])
    equal(encoded(files, None, Encoder(byte_level())), whole)
    assert any("already rendered" in note for note in whole.notes) == rendered


def test_data_that_change_whenever_they_are_read_are_refused_and_not_kept(tmp_path, monkeypatch):
    data, read, readings = file(tmp_path, [text()]), dataset.read_all, []

    def meanwhile(*given):
        readings.append(1)
        yield from read(*given)
        file(tmp_path, [text()] * (len(readings) + 1))

    monkeypatch.setattr(dataset, "read_all", meanwhile)
    with pytest.raises(UserError, match="the data changed while they were read"):
        encoded([data], None, Encoder(byte_level()))
    assert not list(cache.folder().glob("encoded-*"))
