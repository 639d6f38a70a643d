"""The prompts of one turn and their chosen responses: ``python -m examples.dialogue.single_turn DATA OUT``.

Each prompt once, as rows of prompt and completion, for `prefopt sample` and `examples.preferred`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from prefopt.data.mix import load


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.dialogue.single_turn", description=__doc__)
    parser.add_argument("data", help="file or hub name of HH transcripts, such as Anthropic/hh-rlhf:test")
    parser.add_argument("out", type=Path, help="the JSONL file to write")
    parser.add_argument("--most", type=int, help="so many prompts at most")
    args = parser.parse_args(argv)
    rows = single_turn(args.data)[: args.most]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows):,} single-turn prompts in {args.out}")


def single_turn(data: str) -> list[dict]:
    """Of each prompt that is one message: the messages, and the best response's text."""
    found: dict[tuple, str] = {}
    for example in load([data]):
        (best, *_) = sorted(example.responses, key=lambda response: -(response.score or 0.0))
        if len(example.prompt) == 1 and not isinstance(best.content, str):
            found.setdefault(example.prompt, best.content[-1].content)
    return [{"prompt": [m._asdict() for m in prompt], "completion": text} for prompt, text in found.items()]


if __name__ == "__main__":
    main()
