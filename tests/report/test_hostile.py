"""A page of hostile text runs nothing, loads nothing and stays readable."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from prefopt.report import write
from tests.report import made
from tests.report.made import Page

TEXTS = {
    "script": "<script>alert(1)</script>",
    "end of style": "</style></title></main><script src=//evil.test/x.js></script>",
    "attribute": "\"><img src=x onerror=alert(1)> ' onmouseover='alert(1)",
    "template": "{{7*7}} {% for x in y %} {# #} ${7*7}",
    "svg": '<svg onload=alert(1)><use href="https://evil.test/#x"/></svg>',
    "mathtext": "$\\frac{1}{0$ $x$ \\alpha",
    "style": "red; background: url(https://evil.test/x.png)",
    "ansi": "\x1b[31mred\x1b]8;;https://evil.test\x07",
    "bidirectional": "\u202egnp.exe\u2066 \u200f",
    "null": "a\x00b\ufffe",
    "comment": "<!-- --> ]]> <![CDATA[ x",
    "surrogate": "\ud800 lone",
}


def frontier(text: str) -> dict:
    return {"curve": [[0, 0], [1, 1]], "points": [{"name": text, "kl": 1, "reward": 0.5}]}


def page_of(tmp_path: Path, name: str, text: str) -> str:
    runs = [made.run(tmp_path / name / run, text, frontier=frontier(text)) for run in ("a", "b")]
    write(runs, tmp_path / f"{name}.html")
    return (tmp_path / f"{name}.html").read_text(encoding="utf-8")


@pytest.fixture
def harmless(quick: None, tmp_path: Path) -> Page:
    return Page(page_of(tmp_path, "harmless", "harmless"))


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_adds_no_tag_and_no_attribute(tmp_path, harmless, name):
    html = page_of(tmp_path, "page", TEXTS[name])
    found = Page(html)
    assert Counter(found.names) == Counter(harmless.names)
    assert Counter(a for _, of in found.tags for a in of) == Counter(a for _, of in harmless.tags for a in of)
    assert not set("\u202e\u2066\u200f\x1b\x00\x07") & set(html)


@pytest.mark.parametrize("text", ["x" * 1_000_000, "<b>\n" * 250_000], ids=["a long word", "many lines"])
def test_an_endless_text_is_cut_and_says_so(quick, tmp_path, text):
    run = made.run(tmp_path / "run", loss=text)
    made.lines(run / "pairs.jsonl", [made.pair(0, "eval", text)])
    made.lines(run / "samples.jsonl", [{"key": "a", "prompt": text, "before": text, "after": text}])
    write([run], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(html) < 150_000 and "<b>" not in html
    assert re.search(r"99\d,\d{3} more characters", html) and "999,400 characters before" in html


def test_text_is_shown_as_it_was_written(quick, tmp_path):
    for name in ("script", "attribute", "template", "svg", "comment", "mathtext"):
        assert TEXTS[name] in Page(page_of(tmp_path, name, TEXTS[name])).text


def test_nothing_is_loaded_and_nothing_runs(tmp_path):
    """Neither scripts nor handlers nor addresses, and a policy that would stop them."""
    html = page_of(tmp_path, "page", "plain")
    harmless = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "img", "image", "a"} & set(
        harmless.names
    )
    attributes = [(name, value or "") for _, of in harmless.tags for name, value in of.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    assert all(value.startswith("#") for name, value in attributes if name in ("href", "xlink:href"))
    assert not re.search(r"https?:|//|@import|data:|javascript:", html)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", html))
    (policy,) = [a["content"] for t, a in harmless.tags if t == "meta" and a.get("http-equiv")]
    assert policy and policy.startswith("default-src 'none'; style-src 'unsafe-inline'") and "script" not in policy
    # Every id is there once, and every reference has its own.
    ids = re.findall(r' id="([^"]*)"', html)
    assert ids and len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', html)) == set(ids)


def test_a_hostile_folder_name(quick, tmp_path):
    run = made.run(tmp_path / '<img src=x onerror="alert(1)">')
    write([run], tmp_path / "report.html")
    assert "img" not in Page((tmp_path / "report.html").read_text()).names
