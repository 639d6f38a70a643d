"""Everything side by side: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import TRL_AT_ONCE, report
from benchmarks.measure import measured

HERE = Path(__file__).parent
SCHEMES = ("prefopt", "trl", "trl-whole", "trl-precomputed", "trl-best", "padded")
ON_GPU = ("prefopt-lean", "trl-best-4", "trl-best-8", "trl-best-16")
BETAS = (0.05, 0.1, 0.5, 1.0)  # of the sweep
SIZES = ("toy", "30M", "0.5B", "3B", "7B")
BATCHES = {
    "hh": (8, 16, 64),
    "sweep": (8,),
    "hh-longest": (8,),
    "hh-bf16": (8,),
    "ultrafeedback": (8,),
    "ranking": (24,),
    "long": (4,),
    "vocabulary": (8,),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", help="preference file for the hh workloads; by default one is made")
    parser.add_argument("--ultrafeedback", help="preference file for the workload of that name, left out without")
    parser.add_argument("--workloads", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="of the hh workload, instead of 8 16 64")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=[*SCHEMES, *ON_GPU])
    parser.add_argument("--rounds", type=int, default=3, help="times that every scheme takes its turn")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of each turn")
    parser.add_argument("--untimed", type=int, default=1, help="the first of them, which warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a turn is given up")
    parser.add_argument("--size", default="30M", choices=SIZES, help="of the model; toy: to see that it runs")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json, RESULTS.md, results.svg")
    parser.add_argument("--add", action="store_true", help="keep what --out has of other workloads and batch sizes")
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    results: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "threads": args.threads,
        "size": args.size,
        "device": args.device,
        "data": "made" if args.data is None else Path(args.data).name,
        "left_out": _left_out(args),
        "records": [],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    if args.add:
        results["records"] = _kept(args, results)
    for name in _workloads(args):
        with tempfile.TemporaryDirectory() as folder:  # of one workload at a time: models can be large
            results["machine"] = _made(args, name, folder)
            for record in _turns(args, name, folder):
                results["records"].append(record | {"date": results["date"]})
                results["records"].sort(key=lambda r: (list(BATCHES).index(r["workload"]), r["batch_size"]))
                print(report.line(record), flush=True)
                (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report.write(args.out)


def _kept(args: argparse.Namespace, now: dict[str, Any]) -> list[dict[str, Any]]:
    """What --out has of other workloads and batch sizes, if it was measured in the same way."""
    before = json.loads((args.out / "results.json").read_text())
    for key in ("size", "device", "threads", "data"):
        if before[key] != now[key]:
            raise SystemExit(f"--add: {args.out} has the figures of {key} {before[key]}, not {now[key]}")
    again = {(name, batch) for name in _workloads(args) for batch in _batches(args, name)}
    kept = (r for r in before["records"] if (r["workload"], r["batch_size"]) not in again)
    return [{"date": before["date"], **r} for r in kept]


def _made(args: argparse.Namespace, name: str, folder: str) -> dict[str, Any]:
    """Writes a workload; the machine it was made on."""
    made = measured(
        args.threads, work="make", folder=folder, name=name,
        data=args.ultrafeedback if name == "ultrafeedback" else args.data,
        pairs=max(_batches(args, name)) * args.steps, size=args.size, device=args.device,
    )  # fmt: skip
    if "failed" in made:
        raise SystemExit(f"{name}: {made['failed']}")
    return made


def _turns(args: argparse.Namespace, name: str, folder: str) -> Iterator[dict[str, Any]]:
    for turn in range(args.rounds):
        for batch in _batches(args, name):
            schemes = _schemes(args, batch)
            for scheme in schemes if turn % 2 == 0 else schemes[::-1]:
                record = measured(
                    args.threads, args.timeout, work="steps", folder=folder, scheme=scheme,
                    batch_size=batch, steps=args.steps, device=args.device,
                    dtype="bfloat16" if args.device == "cuda" or name == "hh-bf16" else "float32",
                    betas=BETAS if name == "sweep" else (0.1,),
                )  # fmt: skip
                told = {"workload": name, "scheme": scheme, "batch_size": batch, "turn": turn}
                yield record | told | {"untimed": args.untimed}


def _schemes(args: argparse.Namespace, batch: int) -> list[str]:
    """What is asked for and installed; where a step is no more than TRL takes at once, one row of it is enough."""
    no = {"trl-whole"} if batch <= TRL_AT_ONCE and "trl" in args.schemes else set()
    no |= set(ON_GPU) if args.device == "cpu" else set()
    return [s for s in args.schemes if s not in no and (not s.startswith("trl") or find_spec("trl"))]


def _workloads(args: argparse.Namespace) -> list[str]:
    same = {"hh-bf16"} if args.device == "cuda" else set()  # as hh
    return [n for n in args.workloads if n not in same and (n != "ultrafeedback" or args.ultrafeedback)]


def _left_out(args: argparse.Namespace) -> list[str]:
    trl = [] if find_spec("trl") else ["TRL, which is not installed: make bench-env"]
    if args.ultrafeedback or "ultrafeedback" not in args.workloads:
        return trl
    return [*trl, "ultrafeedback, of which no file was given: --ultrafeedback FILE"]


def _batches(args: argparse.Namespace, name: str) -> Sequence[int]:
    return (name == "hh" and args.batch_sizes) or BATCHES[name]


if __name__ == "__main__":
    main()
