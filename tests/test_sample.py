"""``prefopt sample``: exact against transformers and against enumeration, and the same file however it came about."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from prefopt import sample as module
from prefopt.alone import alone_with
from prefopt.cli import main
from prefopt.data.encode import Encoder
from prefopt.data.mix import load
from prefopt.data.prompts import prompts
from prefopt.demo.world import SLOTS, the_world
from prefopt.errors import RunFailed, UserError
from prefopt.frontier.space import next_token_logps
from prefopt.generate import Realign, TransformersGenerator
from prefopt.model.language_model import LanguageModel
from prefopt.model.load import load_model, load_tokenizer
from prefopt.server import ServerGenerator
from prefopt.types import Message
from tests.train import tiny

PROMPTS = ["the cat", "a dog ran under the tree then never again", "no", "the mat sat", "thanks", "never the tree"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    data = tiny.write(folder / "prompts.jsonl", [{"prompt": prompt, "topic": 1} for prompt in PROMPTS])
    return tiny.model(folder / "policy"), tiny.model(folder / "reference", seed=1), data


def sample(data: str, out: Path, **settings: Any) -> int:
    words = ["sample", "--data", data, "--out", str(out)]
    for key, value in ({"max_new_tokens": 8} | settings).items():
        words += ["--" + key.replace("_", "-"), *([] if value is True else [str(value)])]
    return main(words)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_greedy_is_transformers_greedy(given, tmp_path):
    model, _, data = given
    assert sample(data, tmp_path / "out.jsonl", model=model, temperature=0, batch_size=4) == 0
    own: Any = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = load_tokenizer(model)
    own.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=2, max_new_tokens=8, do_sample=False)
    found = rows(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in found] == PROMPTS
    for row, prompt in zip(found, Encoder(tokenizer).prompts(PROMPTS), strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        written = own.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]
        assert row["completion"] == tokenizer.decode(written, skip_special_tokens=True)
        assert row["ended"] == (written[-1] == 1)


@pytest.fixture(scope="module")
def critic():
    """A small model that has read some of the demo's reviews, so that it writes such reviews itself."""
    world = the_world()
    torch.manual_seed(0)
    size: dict[str, Any] = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    ends: dict[str, Any] = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(world.tokenizer), max_position_embeddings=32, **size, **ends))
    texts = [f"{e.prompt} {e.responses[0].content} </s>" for e in world.corpus(2000)]
    ids = torch.tensor(world.tokenizer(texts)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(80):
        batch = ids[(torch.arange(64) + 64 * step) % len(ids)]
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    return world, LanguageModel(model.eval())


def test_frequencies_are_the_exact_distribution(critic):
    """2,000 reviews by opening and adverb against the sum over all 36,864: χ² as low as chance has it."""
    world, lm = critic
    with torch.no_grad():
        exact = np.exp(world.trees[0].enumerate_logps(next_token_logps(lm.bare, world.trees[0])))
    cell = world.words[:, 0] * len(SLOTS[1]) + world.words[:, 1]
    expected = np.bincount(cell, exact)
    expected = 2000 * np.append(expected, 1 - expected.sum())  # the last: what is no review
    assert expected[-1] < 1000
    generator = TransformersGenerator(lm, Encoder(world.tokenizer), max_new_tokens=12, batch_size=500)
    (texts,) = generator([world.prompts[0]], n=2000)
    place = {text: int(cell[y]) for y, text in enumerate(world.texts)}
    drawn = Counter(place.get(text.strip(), len(expected) - 1) for text in texts)
    observed = np.array([drawn[i] for i in range(len(expected))])
    often = expected >= 5
    assert expected[~often].sum() < 20 and often.sum() > 40
    chi2, freedom = chi_square(observed[often], expected[often]), often.sum() - 1
    limit = freedom + 4 * (2 * freedom) ** 0.5 + 8  # four standard deviations, and some for the skew
    warmer = expected[often] ** 0.6 * (expected[often].sum() / (expected[often] ** 0.6).sum())
    assert chi2 < limit < chi_square(observed[often], warmer)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 1.5])
def test_realigned_greedy_is_that_of_the_mixture(given, weight):
    model, reference, _ = given
    policy, theirs = load_model(model), load_model(reference)
    encoder = Encoder(load_tokenizer(model))
    generator = TransformersGenerator(
        policy, encoder, temperature=0, max_new_tokens=8, batch_size=4, realign=Realign(theirs, weight)
    )
    asked = encoder.prompts(PROMPTS)
    for prompt, (found,) in zip(asked, generator.ids(asked), strict=True):
        ids = prompt.tolist()
        while len(ids) < len(prompt) + 8 and ids[-1] != 1:
            ours, other = (lm.bare(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for lm in (policy, theirs))
            ids.append(int((weight * ours + (1 - weight) * other).argmax()))
        assert found.tolist() == ids[len(prompt) :]


def test_top_k_draws_from_the_k_likeliest(given):
    lm, encoder = load_model(given[0]), Encoder(load_tokenizer(given[0]))
    (prompt,) = encoder.prompts(["the cat"])
    with torch.no_grad():
        likeliest = lm.bare(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1].topk(3).indices.tolist()
    (drawn,) = TransformersGenerator(lm, encoder, top_k=3, max_new_tokens=1).ids([prompt], 200)
    assert {int(ids[0]) for ids in drawn} == set(likeliest)


def test_a_stopped_file_is_continued_to_the_same_bytes(given, tmp_path):
    model, _, data = given
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    settings: dict[str, Any] = dict(model=model, n=2, batch_size=1, seed=5)
    assert sample(data, whole, **settings) == 0
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 12 and len({row["completion"] for row in rows(whole)}) > 6
    assert sample(data, part, **settings) == 0
    for kept in (0, 7, 12):
        part.write_text("".join([*lines[:kept], *(line[:9] for line in lines[kept : kept + 1])]), encoding="utf-8")
        assert sample(data, part, **settings, resume=True) == 0
        assert part.read_bytes() == whole.read_bytes()


def test_stopped_says_how_to_go_on(given, tmp_path, monkeypatch, capsys):
    model, _, data = given
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert sample(data, whole, model=model, batch_size=1) == 0
    answer = module.answer

    def stopped(asked, draw, n, first, *rest):
        if first:
            signal.raise_signal(signal.SIGTERM)
        return answer(asked, draw, n, first, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(module, "answer", stopped)
        assert sample(data, out, model=model, batch_size=1) == 75
    assert "what was done is kept: continue with the same command and --resume" in capsys.readouterr().err
    assert len(rows(out)) == 4
    assert sample(data, out, model=model, batch_size=1, resume=True) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_an_output_of_other_settings_is_refused(given, tmp_path, capsys):
    model, reference, data = given
    out = tmp_path / "out.jsonl"
    assert sample(data, out, model=model) == 0
    assert sample(data, out, model=model) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert sample(data, out, model=reference, resume=True) == 2
    assert f"--model is {reference} and was {model}" in capsys.readouterr().err
    other = tiny.write(tmp_path / "other.jsonl", [{"prompt": "never"}])
    assert sample(other, out, model=model, resume=True) == 2
    assert "out.jsonl:1 answers another prompt" in capsys.readouterr().err


def test_a_file_that_was_renamed_and_grew_is_continued(given, tmp_path):
    model, _, data = given
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    assert sample(data, out, model=model, batch_size=1) == 0
    more = tiny.write(tmp_path / "more.jsonl", [{"prompt": prompt} for prompt in (*PROMPTS, "again", "on", "under")])
    assert sample(more, out, model=model, batch_size=1, resume=True) == 0
    assert sample(more, whole, model=model, batch_size=1) == 0
    mine, theirs = ([{**row, "source": ""} for row in rows(file)] for file in (out, whole))
    assert mine == theirs and len(mine) == 9


def test_one_process_writes_a_file(given, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    with alone_with(out):
        assert sample(given[2], out, model=given[0]) == 2
        assert out.exists()  # who was refused does not clear away what another one is about to write
    assert "another process is writing it" in capsys.readouterr().err
    assert not out.exists()
    out.touch()
    with alone_with(out):
        pass
    assert out.exists()  # it was there
    out.unlink()
    for no_file in (tmp_path, "/dev/null"):
        assert sample(given[2], Path(no_file), model=given[0]) == 2
        assert f"--out {no_file} is no file" in capsys.readouterr().err
    assert sample(given[2], out, server="nowhere", server_model="m") == 2
    assert list(tmp_path.glob("out*")) == []  # nothing was begun
    assert sample(given[2], out, model=given[0]) == 0
    with alone_with(out):
        assert sample(given[2], out, model=given[0], resume=True) == 2
    assert len(rows(out)) == len(PROMPTS)


def test_text_is_read_as_written_and_that_is_said(given, tmp_path, capsys):
    assert sample(given[2], tmp_path / "text.jsonl", model=given[0]) == 0
    assert "6 prompts of text, read as written: only messages go through" in capsys.readouterr().err
    chat = tiny.write(tmp_path / "chat.jsonl", [{"prompt": [{"role": "user", "content": "no"}]}])
    assert sample(chat, tmp_path / "chat-out.jsonl", model=given[0]) == 0
    assert "read as written" not in capsys.readouterr().err


def test_a_file_without_a_row_is_not_begun(given, tmp_path):
    model, _, data = given
    mine, out = tmp_path / "mine.py", tmp_path / "out.jsonl"
    mine.write_text("def few(pairs):\n    return []\ndef longest(pairs):\n    return [len(r) for _, r in pairs]\n")
    assert sample(data, out, model=model, reward=f"{mine}:few") == 2
    assert sample(data, out, model=model, reward=f"{mine}:longest") == 0
    assert len(rows(out)) == len(PROMPTS)


def test_the_best_of_n_is_the_best_of_those_drawn(given, tmp_path):
    model, _, data = given
    mine = tmp_path / "mine.py"
    mine.write_text("def longest(pairs):\n    return [len(response) for _, response in pairs]\n")
    settings: dict[str, Any] = dict(model=model, reward=f"{mine}:longest", batch_size=6)
    assert sample(data, tmp_path / "all.jsonl", n=6, **settings) == 0
    assert sample(data, tmp_path / "best.jsonl", n=2, best_of=3, **settings) == 0
    drawn, best = rows(tmp_path / "all.jsonl"), rows(tmp_path / "best.jsonl")
    assert all(row["reward"] == len(row["completion"]) for row in drawn)
    expected = [max(r["reward"] for r in drawn[i : i + 3]) for i in range(0, len(drawn), 3)]
    assert [row["reward"] for row in best] == expected


def test_how_many_ended_and_their_reward_is_said_of_all_that_the_file_holds(given, tmp_path, capsys):
    (mine := tmp_path / "mine.py").write_text("def longest(pairs):\n    return [len(text) for _, text in pairs]\n")
    settings: dict[str, Any] = dict(model=given[0], n=2, batch_size=1, max_new_tokens=80, reward=f"{mine}:longest")
    out = tmp_path / "out.jsonl"
    assert sample(given[2], out, **settings) == 0
    said = capsys.readouterr().err
    ended, rewards = sum(row["ended"] for row in rows(out)), [row["reward"] for row in rows(out)]
    ends = f"{ended} came to their end, {12 - ended} cut at --max-new-tokens 80"
    assert 0 < ended < 12 and f"12 responses to 6 prompts in {out}: {ends}" in said
    assert f"mean reward {np.mean(rewards):.3f} (95 % interval " in said
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:9]))
    assert sample(given[2], out, resume=True, **settings) == 0
    assert capsys.readouterr().err.splitlines()[-2:] == said.splitlines()[-2:]


def test_what_is_written_is_read_back(given, tmp_path):
    model, _, _ = given
    chat = [{"role": "user", "content": "the cat"}]
    data = tiny.write(tmp_path / "chat.jsonl", [{"prompt": chat}, {"prompt": [{"role": "user", "content": "no"}]}])
    assert sample(data, tmp_path / "out.jsonl", model=model) == 0
    examples = load([str(tmp_path / "out.jsonl")])
    assert [e.prompt for e in examples] == [(Message("user", "the cat"),), (Message("user", "no"),)]
    assert [e.prompt for e in prompts([str(tmp_path / "out.jsonl")])] == [e.prompt for e in examples]


@pytest.mark.parametrize("chat", [True, False])
def test_what_was_cut_off_has_the_reward_of_what_was_drawn(given, chat, tmp_path, capsys):
    """No end token that was never drawn: as sampling rewards it, and as both ways to score read it in the file."""
    model, reference, _ = given
    asked: list[Any] = [[{"role": "user", "content": text}] if chat else text for text in PROMPTS]
    data = tiny.write(tmp_path / "asked.jsonl", [{"prompt": prompt} for prompt in asked])
    out, reward = tmp_path / "out.jsonl", f"implicit:{model}@{reference}"
    assert sample(data, out, model=model, n=8, best_of=2, reward=reward, max_new_tokens=30) == 0
    kept = {f"{out}:{i}": row for i, row in enumerate(rows(out), 1) if row["completion"].strip()}
    assert 0 < sum(row["ended"] for row in kept.values()) < len(kept)
    pair = ["--policy", model, "--reference", reference]
    for name, by in ("policy.jsonl", pair), ("reward.jsonl", ["--reward", reward]):
        capsys.readouterr()
        assert main(["score", *by, "--data", str(out), "--out", str(tmp_path / name)]) == 0
        assert f"{sum(not row['ended'] for row in kept.values())} unended (kept)" in capsys.readouterr().err
        found = {row["source"]: row["reward"] for row in rows(tmp_path / name)}
        assert found == {source: pytest.approx(row["reward"], abs=1e-4) for source, row in kept.items()}
    lm, examples = load_model(model), load([str(out)])
    lengths = {row["source"]: row["length"] for row in rows(tmp_path / "policy.jsonl")}
    ends = {e.source: e.responses[0].ended for e in examples}
    for draft, example in zip(Encoder(load_tokenizer(model)).drafts(examples), examples, strict=True):
        if example.source in kept:
            assert len(draft.responses[0]) == lengths[example.source]
            assert (draft.responses[0][-1] == lm.bare.config.eos_token_id) == ends[example.source]


def test_each_prompt_is_asked_once_whatever_the_layout(tmp_path):
    pairs = tiny.pairs(tmp_path / "pairs.jsonl", count=12, prompts=3)
    assert len(prompts([pairs])) == 3
    notes: list[str] = []
    odd = tiny.write(tmp_path / "odd.jsonl", [{"prompt": "a"}, {"prompt": 3}, {"prompt": "b"}])
    assert [e.prompt for e in prompts([odd], note=notes.append)] == ["a", "b"]
    assert "no response to 1 row that cannot be read" in notes[0] and "odd.jsonl:2" in notes[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "name one of them"),
        ({"server": "http://localhost:1"}, "what does the server call its model"),
        ({"realign": 0.5}, "go together"),
        ({"n": 2, "temperature": 0}, "greedy responses would all be the same"),
        ({"top_k": 2, "temperature": 0}, "no effect on greedy responses"),
        ({"best_of": 2}, "needs --reward"),
        ({"max_new_tokens": 500}, "no prompt leaves room for --max-new-tokens 500: 128 tokens"),
    ],
)
def test_settings_that_make_no_sense(given, tmp_path, capsys, settings, says):
    model = {} if not settings or "server" in settings else {"model": given[0]}
    assert sample(given[2], tmp_path / "out.jsonl", **model, **settings) == 2
    assert says in capsys.readouterr().err


class Pretended(BaseHTTPRequestHandler):
    """Answers with what it was asked; every first attempt at a prompt with "no" in it finds it busy."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.path + str(body)
        self.server.seen[key] += 1  # type: ignore[attr-defined]
        if body["model"] != "m":
            return self._reply(404, {"error": f"there is no model {body['model']}"})
        if "no" in str(body.get("prompt")) and self.server.seen[key] == 1:  # type: ignore[attr-defined]
            return self._reply(503, {"error": "busy"})
        if "empty" in str(body.get("prompt")):
            return self._reply(200, {"choices": []})
        one_by_one = "one" in str(body.get("prompt"))
        said = [f"{self.path[4:]} {body['seed']} {i}" for i in range(1 if one_by_one else body["n"])]
        choices = [
            {"index": i, "finish_reason": "stop" if i else "length"}
            | ({"message": {"content": text}} if "messages" in body else {"text": text})
            for i, text in enumerate(said)
        ]
        self._reply(200, {"choices": choices[::-1]})

    def _reply(self, status: int, content: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    made = HTTPServer(("127.0.0.1", 0), Pretended)
    made.seen = Counter()  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()


def test_a_server_is_asked_and_asked_again(server, given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    out = tmp_path / "out.jsonl"
    assert sample(given[2], out, server=server, server_model="m", n=2, seed=1, batch_size=2) == 0
    assert [row["completion"] for row in rows(out)] == [
        f"completions {1_000_003 + i} {j}" for i in range(len(PROMPTS)) for j in range(2)
    ]
    assert [row["ended"] for row in rows(out)] == [False, True] * len(PROMPTS)
    assert sample(given[2], tmp_path / "b.jsonl", server=f"{server}/v1", server_model="other") == 2
    assert "refuses the request: 404" in capsys.readouterr().err


def test_a_server_gets_messages_as_messages_and_may_be_away(server, monkeypatch):
    waited: list[float] = []
    told: list[str] = []
    monkeypatch.setattr("time.sleep", waited.append)
    assert ServerGenerator(server, "m", seed=7)([(Message("user", "Hi"),)]) == [["chat/completions 7 0"]]
    with pytest.raises(RunFailed, match="does not answer after 3 attempts"):
        ServerGenerator("http://127.0.0.1:9", "m", retries=2, note=told.append)(["a"])
    assert waited == [1.0, 2.0]
    assert len(told) == 2 and told[0].startswith("--server http://127.0.0.1:9 is asked again, up to 2 times: ")
    for odd in (
        "nowhere",
        "localhost:8000",
        "http://localhost:80o0",
        "http://",
        "ftp://localhost",
        "http://a host",
        "http://ü",
    ):
        with pytest.raises(UserError, match="is no address"):
            ServerGenerator(odd, "m")


def test_a_server_that_gives_one_response_is_asked_for_each(server):
    said = ServerGenerator(server, "m", seed=7)(["by one"], n=3)
    assert said == [["completions 7 0", "completions 8 0", "completions 9 0"]]
    with pytest.raises(UserError, match="without a response"):
        ServerGenerator(server, "m")(["empty"])


def test_a_key_that_is_none_is_not_shown(monkeypatch, server):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u2026secret")
    with pytest.raises(UserError, match="plain ASCII") as caught:
        ServerGenerator(server, "m")(["a"])
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\r\n")  # of a file with Windows's line ends
    assert ServerGenerator(server, "m")(["a"]) == [["completions 0 0"]]


def test_a_server_that_breaks_off_is_asked_again(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr("time.sleep", lambda seconds: None)

        def break_off() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
                connection.close()

        thread = threading.Thread(target=break_off)
        thread.start()
        with pytest.raises(RunFailed, match="does not answer after 2 attempts"):
            ServerGenerator(f"http://127.0.0.1:{listening.getsockname()[1]}", "m", retries=1)(["a"])
        thread.join()


def test_prompts_that_several_rows_have_are_said(given, tmp_path, capsys):
    data = tiny.write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("a dog", "a cat", "a dog")])
    assert sample(data, tmp_path / "out.jsonl", model=given[0]) == 0
    assert "3 rows with 2 different prompts: each is answered once" in capsys.readouterr().err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
