"""Figures on their way from the device to ``metrics.jsonl``, which is the truth about a run.

``Metrics`` adds up unreduced values where they were computed; reading them out is the only wait for the
device, once per log. ``MetricsFile`` appends one JSON object a line: ``step``, ``split``, then the names.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.errors import RunFailed, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Metrics:
    """Sums and counts by name, kept on the device until they are asked for.

    >>> import torch
    >>> metrics = Metrics()
    >>> metrics.add({"loss": torch.tensor([1.0, 2.0])})  # a micro-batch of two examples
    >>> metrics.add({"loss": torch.tensor([6.0])})  # and one of one: every example weighs the same
    >>> metrics.reduce()
    {'loss': 3.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add unreduced values, any shape, each element one observation. Does not wait for the device."""
        for name, value in values.items():
            total = _precise(value.detach()).sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts.get(name, 0) + value.numel()

    def send(self) -> Sent:
        """All so far, on its way to the host, without waiting for it; starts anew."""
        import torch

        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        if not sums:
            return Sent({}, None)
        here = torch.stack(list(sums.values()))  # one transfer for all names
        if not here.is_cuda:
            return Sent(counts, here.to("cpu"))
        there, arrived = here.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return Sent(counts, there, arrived)

    def reduce(self) -> dict[str, float]:
        """The averages so far; starts anew. A name that nothing was counted for has none, and is left out."""
        return self.send().read()


@dataclass(frozen=True)
class Sent:
    """Sums on their way from the device."""

    counts: Mapping[str, int]
    sums: Tensor | None
    arrived: torch.cuda.Event | None = None

    def there(self) -> bool:
        """Whether ``read`` would not have to wait."""
        return self.arrived is None or self.arrived.query()

    def read(self) -> dict[str, float]:
        """The averages of what was counted; waits until the sums are there."""
        if self.sums is None:
            return {}
        if self.arrived is not None:
            self.arrived.synchronize()
        return {name: total / n for (name, n), total in zip(self.counts.items(), self.sums.tolist(), strict=True) if n}


def _precise(value: Tensor) -> Tensor:
    """Float64 for the sum: a run's worth of tokens outgrows float32. Apple's GPUs have no float64."""
    return value.float() if value.device.type == "mps" else value.double()


class MetricsFile:
    """``metrics.jsonl``: appended to, one line per log, on disk as soon as it is written.

    ``resume_at=None`` begins an empty file. A step number continues one after the training line of that step:
    later lines, and a last one that a crash left half-written, are cut off, since what they tell of will be done
    again. Hence log a step before its checkpoint is written, and evaluate after it. RunFailed when the disk is full.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        keep = 0
        if resume_at is not None and path.exists():
            for end, record in _lines(path):
                if record["step"] > resume_at or (record["step"] == resume_at and record["split"] != "train"):
                    break
                keep = end
        self._file = open(path, "ab")  # noqa: SIM115  closed by close()
        self._file.truncate(keep)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line. What is not a finite number becomes null and is named under ``nonfinite``."""
        record: dict[str, Any] = {"step": step, "split": split}
        nonfinite = {}
        for name, value in values.items():
            finite = math.isfinite(value)
            record[name] = value if finite else None
            if not finite:
                nonfinite[name] = str(float(value))
        if nonfinite:
            record["nonfinite"] = nonfinite
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise RunFailed(
                f"{self._file.name}: cannot be written ({error.strerror}): make room, then continue with --resume"
            ) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # every write was flushed, and one that failed has been told of
            self._file.close()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, in the order written, with nan and ±inf where they were.

    A half-written last line is left out; any other line that is no record is a UserError naming it.
    """
    records = []
    for _, record in _lines(path):
        record.update({name: float(text) for name, text in record.pop("nonfinite", {}).items()})
        records.append(record)
    return records


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every whole record with the offset of its end."""
    end = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # the process ended while writing it
            end += len(line)
            try:
                record = json.loads(line)
                if not (isinstance(record["step"], int) and isinstance(record["split"], str)):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}:{number}: not a line of metrics (an object with step and split); mend or delete the line"
                ) from None
            yield end, record


def peak_memory() -> int:
    """Bytes: the most that tensors took on the CUDA device if one is in use, else the process's peak resident size."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
