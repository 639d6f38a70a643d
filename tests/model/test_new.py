"""New models: of the size that was asked for, loadable, and with a tokenizer that loses nothing."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.config import NewModel
from prefopt.data.encode import Encoder
from prefopt.errors import RunFailed, UserError
from prefopt.model.new import ASPECT, choose_shape, default_vocab, model_config, run, train_tokenizer
from prefopt.terminal import counted
from prefopt.types import Example, Message, Response

WORDS = ["a", "cat", "sat", "on", "the", "mat", "and", "dog", "saw", "that", "there", "while", "rained", "over", "town"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "prefs.jsonl"
    rows = [
        {
            "prompt": " ".join(WORDS[i % 7 :]),
            "chosen": [{"role": "assistant", "content": WORDS[i % 9] * (i % 4)}],
            "rejected": WORDS[i % 5],
        }
        for i in range(200)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make(data: Path, out: Path, **settings: object) -> NewModel:
    config = NewModel(**{"size": "200K", "tokenizer_from": str(data), "out": out, "vocab": 320, **settings})  # type: ignore[arg-type]
    run(config)
    return config


def test_a_folder_of_a_tokenizer_is_no_folder_of_texts(tmp_path):
    """It has JSON files too, of which a tokenizer could be trained, of 259 bytes."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        make(folder, tmp_path / "out", vocab=None)


def test_a_tokenizer_at_home_is_taken_as_it_is(data, tmp_path, monkeypatch):
    """A shell spells ~ out on the command line, but nobody does in YAML."""
    monkeypatch.setenv("HOME", str(tmp_path))
    make(data, tmp_path / "base")
    make(Path("~/base"), tmp_path / "other", vocab=None)
    assert (tmp_path / "base/tokenizer.json").read_bytes() == (tmp_path / "other/tokenizer.json").read_bytes()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt-neox"])
def test_every_architecture_has_the_size_asked_for(data: Path, tmp_path: Path, architecture: str) -> None:
    make(data, tmp_path / "base", architecture=architecture)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.config.model_type == architecture.replace("-", "_")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(200_000, rel=0.1)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.dtype == torch.float32


def test_the_table_says_what_was_made(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(data, tmp_path / "base")
    said = capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert f"{sum(p.numel() for p in model.parameters()):,} (asked for 200K)" in said
    shape = model.config
    heads = counted(shape.num_attention_heads, "head")
    assert f"{shape.num_hidden_layers} layers, width {shape.hidden_size}, {heads}\n" in said


def test_the_seed_decides_the_weights(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(data, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "c/tokenizer.json").read_bytes()


def test_the_tokenizer_writes_any_text_back(data: Path, tmp_path: Path) -> None:
    make(data, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    for text in ("the cat", "  two  spaces\n\n", "naïve 你好 🙂 \x00", "Human: <b>1+1</b>"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_messages_become_a_transcript(data: Path, tmp_path: Path) -> None:
    make(data, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    chat = Example((Message("user", "the cat"),), (Response((Message("assistant", "sat"),), 1.0),), "x.jsonl:1")
    (encoded,) = Encoder(tokenizer).encode([chat]).examples
    assert tokenizer.decode(encoded.prompt) == "<|startoftext|>\n\nHuman: the cat\n\nAssistant:"
    assert tokenizer.decode(encoded.responses[0]) == " sat<|endoftext|>"


def test_a_tokenizer_folder_is_taken_as_it_is(data: Path, tmp_path: Path) -> None:
    make(data, tmp_path / "first")
    make(tmp_path / "first", tmp_path / "second", vocab=None, architecture="gpt2")
    ours, theirs = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("first", "second"))
    assert ours["model"] == theirs["model"]
    with pytest.raises(UserError, match=r"--vocab has no effect: the tokenizer in .*first is taken as it is"):
        make(tmp_path / "first", tmp_path / "third", vocab=500)


def test_a_folder_that_holds_something_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--out is .* already"):
        make(data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_folder_that_cannot_be_written_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=f"--out {data}/base: cannot be written"):
        make(data, data / "base")


def test_a_size_without_room_for_the_vocabulary(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--size 1K has no room for 320 tokens: the smallest that fits is about"):
        make(data, tmp_path / "base", size="1K")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("size", ["1M", "3M", "10M", "30M", "100M", "0.5B"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_shapes(size: str, architecture: str, tmp_path: Path) -> None:
    """Within 10 %, counted by hand for llama: embeddings, and per layer attention, gated MLP and two norms."""
    config = NewModel(size=size, tokenizer_from="none", out=tmp_path, architecture=architecture)  # type: ignore[arg-type]
    tokenizer = _tokens(default_vocab(config.parameters))
    shape = choose_shape(config, tokenizer)
    assert ASPECT / 4 < shape.width / shape.layers < ASPECT * 4
    assert shape.width // shape.heads in (32, 64)
    if architecture == "llama":
        inner = model_config(config, tokenizer, shape).intermediate_size
        layer = 4 * shape.width**2 + 3 * shape.width * inner + 2 * shape.width
        assert len(tokenizer) * shape.width + shape.layers * layer + shape.width == pytest.approx(
            config.parameters, rel=0.1
        )


def test_few_texts_make_a_small_vocabulary() -> None:
    assert 259 < len(train_tokenizer(["the cat sat"] * 5, vocab=1000)) < 300


class _tokens:
    """A tokenizer as far as shapes care."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count
