"""The report of ``prefopt check``: every kind of finding with its place, and nothing that a terminal would obey."""

import io
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from prefopt.cli import main
from prefopt.data.check import check, render, to_json
from prefopt.data.dataset import encoded
from prefopt.data.encode import Encoder
from prefopt.data.findings import by_kind
from prefopt.progress import Unseen
from tests.data.made import CHATML, OPENED, THINKING, byte_level, metaspace

GOOD = {"prompt": "what is 2 + 2?", "chosen": " It is 4.", "rejected": " It is five."}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def write(*rows, name="prefs.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return write


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def chat(question="Hello", chosen="I am fine.", rejected="No"):
    prompt = turns(("user", question))
    return {"prompt": prompt, "chosen": turns(("assistant", chosen)), "rejected": turns(("assistant", rejected))}


def screen(report):
    console = Console(file=io.StringIO(), width=100)
    console.print(render(report))
    return console.file.getvalue()


def kinds(report):
    return {kind: [finding.source for finding in found] for kind, found in by_kind(report.findings).items()}


def test_a_sound_file_is_counted_and_nothing_is_found(file):
    report = check([file(GOOD, {**GOOD, "chosen": " four"}, {**GOOD, "prompt": "Hello"})])
    assert report.counts == {"rows": 3, "examples": 3, "pairs": 3, "responses": 6, "prompts": 2, "usable": 3}
    assert "prefs.jsonl: preference" in report.layouts[0] and "guessed" in report.layouts[0]
    assert list(report.sample.values()) == list(GOOD.values())
    assert "nothing odd found" in screen(report)


def test_all_of_the_data_is_told_of_in_each_pass(file):
    passes = {}

    class Watched(Unseen):
        @contextmanager
        def pass_(self, name, total, unit=""):
            passes[name, unit] = [total, 0.0]

            def advance(more):
                passes[name, unit][1] += more

            yield advance

    data = file(*[{**GOOD, "prompt": f"{i} {'x' * 999}"} for i in range(2000)])
    check([data], show=Watched())
    encoded([data], None, Encoder(byte_level()), Watched())
    assert set(passes) == {("reading", "B"), ("encoding", "B")}
    assert all(told == pytest.approx([Path(data).stat().st_size] * 2) for told in passes.values())


def test_what_is_odd_in_the_rows_is_named_by_line(file):
    rows = [
        GOOD,
        {**GOOD, "rejected": None},
        {"prompt": "Hello", "chosen": "x"},
        {**GOOD, "chosen": ""},
        {**GOOD, "chosen": " no", "rejected": " no"},
        GOOD,
        {**GOOD, "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]},
    ]
    report = check([file(*rows)])
    assert kinds(report) == {
        "null": ["prefs.jsonl:2"],
        "missing": ["prefs.jsonl:3"],
        "empty": ["prefs.jsonl:4"],
        "equal": ["prefs.jsonl:5"],
        "duplicate": ["prefs.jsonl:6"],
        "contradiction": ["prefs.jsonl:7"],
    }
    assert report.counts["rows"] == 7 and report.counts["usable"] == 3
    assert 'prefs.jsonl:3: no "rejected"' in screen(report)


def test_prompts_alone_get_the_same_account(file):
    rows = [
        {"prompt": "Hello"},
        {"prompt": 3},
        {"prompt": "Hello"},
        {"prompt": " "},
        {"prompt": "Hello " * 60, "id": "h1"},
    ]
    data = file(*rows, {"prompt": turns(("user", "Hello"))}, name="prompts.jsonl")
    tokenizer = byte_level()
    report = check([data], tokenizer=tokenizer, max_length=50)
    assert report.layouts == ["prompts.jsonl: prompt, prompts alone, for prefopt sample and prefopt ppo (guessed)"]
    assert report.counts == {"rows": 6, "examples": 5, "pairs": 0, "responses": 0, "prompts": 4, "usable": 4}
    assert report.lengths.keys() == {"prompt"}
    assert report.lengths["prompt"]["longest"] == len(tokenizer("Hello " * 60).input_ids)
    places = {kind: [place.removeprefix("prompts.jsonl:") for place in found] for kind, found in kinds(report).items()}
    assert places == {"type": ["2"], "empty": ["4"], "overlong": ["5"], "duplicate": ["3"]}
    assert [finding.source for finding in report.findings if finding.drops] == ["prompts.jsonl:2", "prompts.jsonl:5"]
    assert "these columns are not read: id" in screen(report) and "the longest response" not in screen(report)
    assert check([data]).counts == report.counts | {"usable": 5}, "nothing is too long without a tokenizer"


@pytest.mark.parametrize("answer", [{"chosen": "4", "rejected": "5"}, {"chosn": "4", "rejectd": "5"}])
def test_prompts_whose_responses_are_missing_or_misspelt_are_not_taken_for_prompts_alone(file, capsys, answer):
    data = file(
        {"prompt": "2+2="}, {"prompt": "2+2=", "chosen": None, "rejected": None}, *[{"prompt": "2+2="} | answer] * 3
    )
    code = main(["check", data])
    said = capsys.readouterr()
    if "chosen" in answer:
        assert code == 0 and 'prefs.jsonl:1: no "chosen"' in said.out and 'prefs.jsonl:2: "chosen" is null' in said.out
    else:
        assert code == 2 and "no layout fits its columns" in said.err


def test_lengths_and_what_each_policy_would_do(file):
    tokenizer = byte_level()
    rows = [GOOD, {**GOOD, "prompt": "Hello " * 60}, {**GOOD, "prompt": "Hi", "chosen": " 4" * 60}]
    report = check([file(*rows)], tokenizer=tokenizer, max_length=50)
    assert report.lengths["prompt"]["shortest"] == len(tokenizer("Hi").input_ids)
    assert report.lengths["prompt"]["longest"] == len(tokenizer("Hello " * 60).input_ids)
    assert report.lengths["response"]["longest"] == 61  # its end token included
    assert (report.cuts["drop"].overlong, report.cuts["drop"].dropped, report.cuts["drop"].ends_lost) == (2, 2, 0)
    assert report.cuts["cut-prompt"].dropped == 1  # whose response alone is too long
    assert report.cuts["cut-response"].dropped == 1 and report.cuts["cut-response"].ends_lost == 1
    assert kinds(report)["overlong"] == ["prefs.jsonl:2", "prefs.jsonl:3"]
    assert report.counts["usable"] == 1
    assert "--max-length 50" in screen(report)


def test_special_tokens_in_text_and_a_doubled_bos_are_found(file):
    report = check([file(chat("what does </s> mean?"), chat())], tokenizer=byte_level(CHATML))
    assert kinds(report) == {"special-token": ["prefs.jsonl:1"]}
    rendered = {**GOOD, "prompt": "<s><|im_start|>user\nHello<|im_end|>\n"}
    report = check([file(rendered)], tokenizer=byte_level(bos=True))
    assert kinds(report) == {"double-bos": ["prefs.jsonl:1"]}
    assert any("already rendered" in note for note in report.notes)


def test_a_prompt_that_is_no_token_prefix_is_found(file):
    split = {"prompt": "Hel", "chosen": "lo there", "rejected": " x"}
    for tokenizer in (byte_level(), byte_level(bos=True), metaspace()):
        report = check([file(GOOD, split)], tokenizer=tokenizer)
        assert kinds(report) == {"border": ["prefs.jsonl:2"]}
        assert "'Hel'" in report.findings[0].message and "'lo there" in report.findings[0].message


def test_templates_that_rewrite_history_are_found_with_the_difference(file):
    report = check([file(chat())], tokenizer=byte_level(OPENED))
    assert kinds(report) == {"rewritten": ["prefs.jsonl:1"]} and "<think>" in report.findings[0].message
    several = {"messages": turns(("user", "Hello"), ("assistant", "fine"), ("user", "and?"), ("assistant", "four"))}
    report = check([file(several)], tokenizer=byte_level(THINKING), train_on="all-assistant")
    assert kinds(report) == {"rewritten": ["prefs.jsonl:1"]}


def test_the_sample_is_what_the_model_reads(file):
    report = check([file(chat())], tokenizer=byte_level(CHATML))
    prompt, chosen, rejected = report.sample.values()
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert (chosen, rejected) == ("I am fine.<|im_end|>", "No<|im_end|>")


def test_a_report_fits_a_screen_and_says_how_many_more(file):
    report = check([file(GOOD, *[{**GOOD, "chosen": None}] * 20, {**GOOD, "prompt": "Hello " * 5000})], "preference")
    shown = screen(report)
    assert "and 17 more" in shown and len(shown.splitlines()) < 40


def test_text_from_data_cannot_speak_to_the_terminal(file):
    nasty = "\x1b[2Jgone [bold red]loud[/bold red] \u202eback\x07"
    shown = screen(check([file({**GOOD, "prompt": nasty}), file({**GOOD, "chosen": nasty}, name="\x1b[31mred.jsonl")]))
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert "\\x1b[2Jgone [bold red]loud[/bold red] \\u202eback" in shown


def test_json_holds_every_finding(file):
    name = file(GOOD, *[{**GOOD, "chosen": None}] * 20)
    report = json.loads(to_json(check([name], "preference", tokenizer=byte_level())))
    assert len(report["findings"]) == 20
    assert report["findings"][0]["source"] == "prefs.jsonl:2" and report["counts"]["usable"] == 1
    assert report["lengths"]["prompt"]["median"] > 0


def test_the_command(file, tmp_path, capsys):
    byte_level(CHATML).save_pretrained(tmp_path / "tokenizer")
    name = file(chat(), chat("</s>"))
    assert main(["check", name, "--model", "tokenizer", "--max-length", "64"]) == 0
    assert "prefs.jsonl:2" in capsys.readouterr().out
    long = file(chat(), chat("</s>"), name=f"{'prefs' * 30}.jsonl")
    assert main(["check", long, "--model", "tokenizer"]) == 0
    assert f"  {long}:2: a message holds '</s>', which stays text" in capsys.readouterr().out.splitlines()
    assert main(["check", name, "--model", "tokenizer", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["rows"] == 2
    assert main(["check", name, "--model", "tokenizer", "--strict"]) == 2
    assert "--strict refuses" in capsys.readouterr().err
    assert main(["check", name, "--strict"]) == 0
