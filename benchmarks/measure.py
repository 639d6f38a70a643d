"""One measurement, in a process of its own: ``python -m benchmarks.measure JSON`` prints one JSON line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prefopt.environment import share_the_cores, stretch_the_memory

ROOT = Path(__file__).parent.parent


def measured(threads: int, timeout: float | None = None, **asked: Any) -> dict[str, Any]:
    """Run the measurement ``asked`` for in a child. Its record, or {"failed": why}."""
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(asked | {"threads": threads})]
    try:
        with tempfile.TemporaryDirectory() as cache:  # nothing is known from the run before
            child = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=timeout,
                env=os.environ | {"PREFOPT_CACHE": cache, "OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout:g} s"}
    if child.returncode:
        print(child.stderr[-4000:], file=sys.stderr, flush=True)
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return {"failed": last[:300]}
    return json.loads(child.stdout.splitlines()[-1])


def steps(
    folder: str, scheme: str, batch_size: int, steps: int, device: str, dtype: str, **options: Any
) -> dict[str, Any]:
    """Losses, seconds, peak memory of ``steps`` training steps, and what the machine could do just after them."""
    from transformers import AutoConfig

    from benchmarks import machine, workloads
    from benchmarks.schemes import SCHEMES, Task

    pairs = workloads.load(Path(folder))
    task = Task(Path(folder, "model"), pairs, batch_size, steps, device=device, dtype=dtype, **options)
    others, began = machine.Others(), time.perf_counter()
    run = SCHEMES[scheme](task)
    record = {
        "losses": run.losses,
        "seconds": run.seconds,
        "reference_seconds": run.reference_seconds,
        "whole_seconds": time.perf_counter() - began,
        "memory": machine.peak_memory(),
        "others": others.cores(),
        "peak_flops": machine.matmul_peak(device, dtype),
    }
    config = AutoConfig.from_pretrained(task.model)
    return record | {
        "useful_tokens": [machine.useful_tokens(batch) for batch in task.batches] * len(task.betas),
        "useful_flops": [machine.useful_flops(batch, config) for batch in task.batches] * len(task.betas),
    }


def make(folder: str, name: str, data: str | None, pairs: int, size: str, device: str) -> dict[str, Any]:
    """A workload's files, in a process of its own too, so that the one that measures stays small."""
    from benchmarks import machine, workloads

    workloads.make(name, Path(folder), data, pairs, size, device)
    return machine.describe(device)


def grow(folder: str, toy: bool, axis: str, value: int) -> dict[str, Any]:
    """Median seconds and peak memory of a prefopt step where ``axis`` is ``value``: of 4 prompts, or of a long one."""
    from statistics import median

    from benchmarks import machine, workloads
    from benchmarks.schemes import Task, prefopt

    prompts = 1 if axis == "prompt" else 4
    at = {"prompts": prompts, "prompt": 256, "responses": 2, "vocabulary": 8192} | {axis: value}
    model, examples = workloads.grown(Path(folder), toy=toy, **at)
    run = prefopt(Task(model, examples, len(examples) // 3, 3))
    return {"seconds": median(run.seconds[1:]), "memory": machine.peak_memory()}


def read(folder: str, toy: bool, pairs: int) -> dict[str, Any]:
    """Seconds and peak memory from a file of so many pairs to a plan: read, checked, encoded, split."""
    import numpy as np

    from benchmarks import machine, workloads

    file, tokenizer = Path(folder, "made.jsonl"), workloads.small_tokenizer(Path(folder))
    workloads.write_pairs(file, pairs, np.random.default_rng(0))
    began = time.perf_counter()
    examples = workloads.read(str(file), tokenizer)
    return {"seconds": time.perf_counter() - began, "memory": machine.peak_memory(), "kept": len(examples)}


def sample(**asked: Any) -> dict[str, Any]:
    """One turn of sampling."""
    from benchmarks import sampling

    return sampling.sample(**asked)


def main() -> None:
    asked = json.loads(sys.argv[1])
    stretch_the_memory()  # as prefopt's command line does, for all
    if asked.get("scheme", "prefopt").startswith("prefopt"):
        share_the_cores()  # and this for itself
    import torch

    torch.set_num_threads(asked.pop("threads"))
    work = {"steps": steps, "make": make, "grow": grow, "read": read, "sample": sample}[asked.pop("work")]
    print(json.dumps(work(**asked)))


if __name__ == "__main__":
    main()
