"""Sampling beside transformers' own ``generate``: ``python -m benchmarks.sampling`` writes SAMPLING.md.

Both answer the same batches of 16 prompts, padded at the left to the longest, with 128 new tokens, greedily and at
temperature 1 with the same seed; they must write the same tokens. Each turn is a process of its own, and the schemes
take turns, so what else the machine does weighs on both.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import xxhash

from benchmarks.measure import measured

HERE = Path(__file__).parent
TEMPERATURES = {"greedy": 0.0, "temperature 1": 1.0}
AT_ONCE, WARM_UP = 16, 4
Ids = list[np.ndarray]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__)
    parser.add_argument("--data", help="preference file whose prompts are answered; by default one is made")
    parser.add_argument("--rounds", type=int, default=5, help="times that both take their turn")
    parser.add_argument("--batches", type=int, default=3, help="of 16 prompts, in each turn")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--toy", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of SAMPLING.md")
    args = parser.parse_args(argv)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        made = _checked(
            args.threads, work="make", folder=scratch, name="hh", data=args.data, pairs=args.batches * AT_ONCE,
            size="toy" if args.toy else "30M", device="cpu",
        )  # fmt: skip
        for turn in range(args.rounds):
            for scheme in list(SCHEMES) if turn % 2 == 0 else list(SCHEMES)[::-1]:
                asked = {"folder": scratch, "scheme": scheme, "new_tokens": args.new_tokens}
                record = _checked(args.threads, work="sample", **asked) | {"scheme": scheme, "turn": turn}
                records.append(record)
                rates = (f"{what} {of['tokens'] / sum(of['seconds']):7,.0f} tokens/s" for what, of in _each(record))
                print(f"turn {turn}  {scheme:<13}", *rates, flush=True)
    text = written(records, made, args)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "SAMPLING.md").write_text(text)
    print(text)


def _checked(threads: int, **asked: Any) -> dict[str, Any]:
    record = measured(threads, **asked)
    if "failed" in record:
        raise SystemExit(f"{asked['work']}: {record['failed']}")
    return record


def _each(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(what, record[what]) for what in TEMPERATURES]


def written(records: Sequence[dict[str, Any]], made: dict[str, str], args: argparse.Namespace) -> str:
    """SAMPLING.md: for each way of drawing the rates, and the median over the turns of their ratio."""
    data = "made" if args.data is None else Path(args.data).name
    lines = [
        "# Sampling beside transformers' generate",
        f"{args.batches} batches of {AT_ONCE} prompts of `hh` ({data}), {args.new_tokens} new tokens, fp32, "
        f"{args.threads} threads; {args.rounds} turns of each, medians. Written by `python -m benchmarks.sampling`.",
        "; ".join(f"{name} {value}" for name, value in made.items()) + ".",
        "| | prefopt, tokens/s | generate, tokens/s | prefopt / generate | smallest and largest | the same tokens |"
        "\n|---|---|---|---|---|---|",
    ]
    for what in TEMPERATURES:
        rates = {s: [_rate(r[what]) for r in records if r["scheme"] == s] for s in SCHEMES}
        ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
        same = len({r[what]["written"] for r in records}) == 1
        ours, theirs = (f"{median(values):,.0f}" for values in rates.values())
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines[-1] += f"\n| {what} | {ours} | {theirs} | {median(ratios):.2f} | {spread} | {'yes' if same else 'NO'} |"
    return "\n\n".join(lines) + "\n"


def _rate(of: dict[str, Any]) -> float:
    return of["tokens"] / sum(of["seconds"])


# --- in a process of its own ------------------------------------------------------------------------


def sample(folder: str, scheme: str, new_tokens: int) -> dict[str, Any]:
    """Seconds of each batch, tokens that were written, and a hash of them: by way of drawing."""
    from benchmarks import workloads

    prompts = [e.prompt for e in workloads.load(Path(folder))]
    prompts = [p for p in prompts if len(p) + new_tokens <= 1024]
    batches = [sorted(prompts[i : i + AT_ONCE], key=len) for i in range(0, len(prompts), AT_ONCE)]
    answer = SCHEMES[scheme](Path(folder, "model"))
    answer(batches[0], 1.0, WARM_UP)
    record: dict[str, Any] = {}
    for what, temperature in TEMPERATURES.items():
        seconds, found = [], []
        for batch in batches:
            began = time.perf_counter()
            found += answer(batch, temperature, new_tokens)
            seconds.append(time.perf_counter() - began)
        content = b"|".join(np.asarray(ids, np.int64).tobytes() for ids in found)
        tokens = sum(map(len, found))
        record[what] = {"seconds": seconds, "tokens": tokens, "written": xxhash.xxh3_128_hexdigest(content)}
    return record


def prefopt(model: Path) -> Callable[[Ids, float, int], Ids]:
    from prefopt.data.encode import Encoder
    from prefopt.generate import TransformersGenerator
    from prefopt.model.load import load_model, load_tokenizer

    lm, encoder = load_model(str(model), "float32", "cpu"), Encoder(load_tokenizer(str(model)))

    def answer(prompts: Ids, temperature: float, new_tokens: int) -> Ids:
        generator = TransformersGenerator(lm, encoder, temperature, max_new_tokens=new_tokens, batch_size=AT_ONCE)
        return [ids for (ids,) in generator.ids(prompts)]

    return answer


def generate(model: Path) -> Callable[[Ids, float, int], Ids]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    end = tokenizer.eos_token_id

    def answer(prompts: Ids, temperature: float, new_tokens: int) -> Ids:
        inputs = tokenizer.pad({"input_ids": [ids.tolist() for ids in prompts]}, return_tensors="pt")
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        torch.manual_seed(0)
        out = lm.generate(**inputs, max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=end, **drawn)
        rows = out[:, inputs["input_ids"].shape[1] :].numpy()
        lengths = [int(np.argmax(row == end)) + 1 if (row == end).any() else len(row) for row in rows]
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    return answer


SCHEMES: dict[str, Callable[[Path], Callable[[Ids, float, int], Ids]]] = {"prefopt": prefopt, "generate": generate}


if __name__ == "__main__":
    main()
