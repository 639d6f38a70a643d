"""The machine: what it can do, what else it is doing, and how much work a step is."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Sequence
from importlib.metadata import version

import psutil
import torch

from prefopt.model.tree import pack
from prefopt.types import Encoded


def describe(device: str) -> dict[str, str]:
    """What has to be known to compare figures with those of another day."""
    return {
        "processor": _processor(),
        **({} if device == "cpu" else {"gpu": torch.cuda.get_device_name()}),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def matmul_peak(device: str = "cpu", dtype: str = "float32", repeats: int = 5) -> float:
    """FLOP/s of a large matrix product: the best of some, after one that warms up."""
    size = 2048 if device == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(repeats + 1):
        began = now()
        a @ b
        seconds.append(now() - began)
    return 2 * size**3 / min(seconds[1:])


def now() -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> int:
    """Bytes: the most that this process ever held, on the GPU where it uses one, else in memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Others:
    """How many cores were busy with other people's work, on this machine or its host, since this was made."""

    def __init__(self) -> None:
        self._then = self._now()

    def cores(self) -> float:
        wall, busy, own = (now - then for now, then in zip(self._now(), self._then, strict=True))
        return max(0.0, (busy - own) / wall) if wall else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        t = psutil.cpu_times()
        busy = t.user + t.system + getattr(t, "nice", 0.0) + getattr(t, "steal", 0.0)
        return time.perf_counter(), busy, time.process_time()


def useful_tokens(batch: Sequence[Encoded]) -> int:
    """Different prefixes of the batch's sequences: what has to be computed, nothing twice and nothing padded."""
    return pack(batch).ids.shape[1]


def useful_flops(batch: Sequence[Encoded], config) -> float:
    """Of one training step on llama-shaped ``config``, forward and backward, for useful tokens only.

    A product of [m, k] and [k, n] is 2mkn, and its backward pass is two of that size. What is recomputed
    to save memory does not count.
    """
    tree = pack(batch)
    tokens, scored = tree.ids.shape[1], len(tree.target)
    seen = int((tree.positions + 1).sum())
    head_dim = config.hidden_size // config.num_attention_heads
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    weights = config.hidden_size * (head_dim * (2 * heads + 2 * kv_heads) + 3 * config.intermediate_size)
    layer = 2 * tokens * weights + 2 * 2 * seen * head_dim * heads
    head = 2 * scored * config.hidden_size * config.vocab_size
    return 3.0 * (config.num_hidden_layers * layer + head)
