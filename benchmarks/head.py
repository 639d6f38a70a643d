"""The head alone, forward and backward: ``python -m benchmarks.head [--device cuda]`` prints a table.

``logits``        all of them at once
``prefopt``       in chunks that are computed again in the backward pass (prefopt/model/logprobs.py)
``torch``         torch's ``linear_cross_entropy`` in chunks, where torch has it
``cce``           the Triton kernels of the package cut-cross-entropy, where that is installed; on a GPU

Each gives one figure for every token, and gets a gradient of its own for each, as a loss on sequences has it. On a CPU
in fp32; on a GPU in bf16 over fp32 weights. ``off``: how far the gradients of the hidden states are from those of
``logits`` in fp32, relative to their norm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.machine import now
from prefopt.model.logprobs import token_logps

SHAPES = {"cpu": ((512, 8192, 384), (512, 131072, 384)), "cuda": ((4096, 32768, 2048), (2048, 131072, 4096))}
"""width, vocabulary, tokens"""
Logps = Callable[[Tensor, nn.Linear, Tensor], Tensor]


def logits(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    return -F.cross_entropy(head(hidden).float(), target, reduction="none")


def prefopt(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    return token_logps(hidden, head, target, head.out_features)


def in_torch(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    chunked = nn.LinearCrossEntropyOptions()
    return -F.linear_cross_entropy(hidden, head.weight, target, reduction="none", options=chunked)


def cce(hidden: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden.bfloat16(), head.weight.bfloat16(), target, reduction="none")


WAYS: dict[str, Logps] = {"logits": logits, "prefopt": prefopt, "torch": in_torch, "cce": cce}


def measured(way: Logps, given: tuple[Tensor, nn.Linear, Tensor], upstream: Tensor, repeats: int) -> tuple[float, int]:
    """Median seconds, and the most bytes on a GPU beside what is given."""
    hidden, head, target = given
    seconds = []
    for turn in range(repeats + 1):
        hidden.grad = head.weight.grad = None
        if turn == 1 and hidden.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            there = torch.cuda.memory_allocated()
        began = now()
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=hidden.is_cuda):
            out = way(hidden, head, target)
        out.backward(upstream)
        seconds.append(now() - began)
    return median(seconds[1:]), torch.cuda.max_memory_allocated() - there if hidden.is_cuda else 0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    table = Table("width", "vocabulary", "tokens", "", "ms", "GB beside", "off")
    for width, vocabulary, tokens in SHAPES[args.device]:
        for row in rows(args.device, width, vocabulary, tokens, args.repeats):
            table.add_row(f"{width:,}", f"{vocabulary:,}", f"{tokens:,}", *row)
    Console().print(table)


def rows(device: str, width: int, vocabulary: int, tokens: int, repeats: int) -> list[tuple[str, ...]]:
    torch.manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False, device=device)
    nn.init.normal_(head.weight, std=0.02)
    draw = partial(torch.randn, device=device)
    given = draw(tokens, width).requires_grad_(), head, torch.randint(0, vocabulary, (tokens,), device=device)
    upstream = draw(tokens)
    logits(*given).backward(upstream)
    exact = given[0].grad
    found = []
    for name, way in WAYS.items():
        try:
            seconds, held = measured(way, given, upstream, repeats)
        except Exception as error:  # not installed, not in this torch, not for this device
            found.append((name, "–", "–", type(error).__name__))
            continue
        off = float((given[0].grad - exact).norm() / exact.norm())
        found.append((name, f"{1e3 * seconds:.1f}", f"{held / 1e9:.2f}" if held else "–", f"{off:.0e}"))
    return found


if __name__ == "__main__":
    main()
