"""Run directories as a run would leave them, with any text in every place where text comes from outside."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml


def step(number: int, split: str, margin: float, **more: Any) -> dict[str, Any]:
    rewards = {"rewards/chosen": margin / 2, "rewards/rejected": -margin / 2, "rewards/margins": margin}
    figures = {"loss": math.log1p(math.exp(-margin)), "rewards/accuracies": 0.5 + min(margin, 0.4)}
    logps = {"logps/chosen": -80.0 - margin, "logps/rejected": -90.0 - 3 * margin}
    return {"step": number, "split": split, **figures, **rewards, **logps, **more}


def pair(number: int, split: str, text: str) -> dict[str, Any]:
    margin = 0.25 * (number - 3)
    texts = {key: f"{key} {number} {text}" for key in ("source", "prompt", "chosen", "rejected")}
    rewards = {"rewards/chosen": margin, "rewards/rejected": 0.0, "rewards/margins": margin}
    return {**texts, "split": split, **rewards, "weights": 1 / (1 + math.exp(margin))}


def run(folder: Path, text: str = "plain", finished: bool = True, steps: int = 30, **results: Any) -> Path:
    """A tuned model with held-out data; ``text`` is everywhere, ``results`` are put into results.json."""
    folder.mkdir(parents=True)
    interval = {"pairs": 20, "prompts": 10, "rewards/accuracies_low": 0.6, "rewards/accuracies_high": 0.95}
    history = [step(0, "eval", 0.0, **interval), step(0, "training", 0.0)]
    history += [step(i, "train", i / 20, grad_norm=1.0) for i in range(1, steps + 1)]
    history += [step(i, "eval", i / 30, **interval) for i in range(10, steps + 1, 10)]
    lines(folder / "metrics.jsonl", [*history, step(steps, "training", steps / 20, **interval)])
    settings = {"model": text, "data": [text], "out": str(folder), "loss": "dpo", "beta": 0.1, "reference": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    if not finished:
        return folder
    document = {
        "method": text, "loss": text, "steps": steps, "skipped_steps": 0, "seconds": 12.0, "peak_memory": 10**9,
        "training": {"before": step(0, "", 0.0), "after": step(steps, "", 1.5, **interval)},
        "held_out": {"before": step(0, "", 0.0), "after": step(steps, "", 1.0, **interval)},
        "data": {"fingerprint": text, "kept": 30}, "versions": {"prefopt": text, "torch": "2"},
    }  # fmt: skip
    for split in ("training", "held_out"):
        for figures in document[split].values():  # type: ignore[attr-defined, index]
            del figures["step"], figures["split"]
    (folder / "results.json").write_text(json.dumps(document | results), encoding="utf-8")
    lines(folder / "pairs.jsonl", [pair(i, split, text) for split in ("eval", "training") for i in range(10)])
    lines(
        folder / "samples.jsonl",
        [{"source": text, "key": str(i), "prompt": text, "before": text, "after": text} for i in range(3)],
    )
    return folder


def lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Page(HTMLParser):
    """What a browser would find: ``tags`` with their attributes in order, and the ``text`` that it would show."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    @property
    def names(self) -> list[str]:
        return [tag for tag, _ in self.tags]
