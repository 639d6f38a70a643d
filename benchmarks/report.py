"""From ``results.json`` to ``RESULTS.md``: medians over the turns, ratios to prefopt, and what stays open."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

Record = dict[str, Any]

OPEN = ("head in chunks on CUDA against torch's linear_cross_entropy: torch 2.11 has none (python -m benchmarks.head)",)


@dataclass(frozen=True)
class Row:
    """One scheme on one workload at one batch size: medians over its turns."""

    records: list[Record]

    def _median(self, of) -> float:
        return median(map(of, self.records))

    @property
    def pairs_per_second(self) -> float:
        """After the reference pass, if there is one; the first steps, which warm up, are not counted."""
        return self._median(lambda r: r["batch_size"] * len(_timed(r, "seconds")) / sum(_timed(r, "seconds")))

    @property
    def with_pass(self) -> float:
        """The pass over the reference included, as in a run of one epoch."""
        return 1 / (1 / self.pairs_per_second + self.pass_per_pair)

    @property
    def pass_per_pair(self) -> float:
        """Of the steps that are timed, as their tokens' share of the whole pass: the first may have longer pairs."""

        def seconds(r: Record) -> float:
            return r["reference_seconds"] * sum(_timed(r, "useful_tokens")) / sum(r["useful_tokens"])

        return self._median(lambda r: seconds(r) / (r["batch_size"] * len(_timed(r, "seconds"))))

    @property
    def tokens_per_second(self) -> float:
        return self._median(lambda r: sum(_timed(r, "useful_tokens")) / sum(_timed(r, "seconds")))

    @property
    def share_of_peak(self) -> float:
        return self._median(lambda r: sum(_timed(r, "useful_flops")) / sum(_timed(r, "seconds")) / r["peak_flops"])

    @property
    def memory(self) -> float:
        return self._median(lambda r: r["memory"])

    @property
    def whole_seconds(self) -> float:
        """Of all, loading and, where TRL does it, preparing included."""
        return self._median(lambda r: r["whole_seconds"])

    @property
    def losses(self) -> list[float]:
        return self.records[0]["losses"]


def _timed(record: Record, what: str) -> list[float]:
    return record[what][record.get("untimed", 1) :]


Rows = dict[tuple[str, int, str], Row]


def rows(records: Iterable[Record]) -> Rows:
    """By (workload, batch size, scheme); failed turns are left out."""
    grouped: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        if "failed" not in record:
            grouped.setdefault((record["workload"], record["batch_size"], record["scheme"]), []).append(record)
    return {key: Row(found) for key, found in grouped.items()}


def line(record: Record) -> str:
    """What the screen shows of one turn."""
    head = f"{record['workload']:<11}{record['batch_size']:>3} pairs  {record['scheme']:<16}"
    if "failed" in record:
        return head + record["failed"]
    row = Row([record])
    return head + (
        f"{row.pairs_per_second:8.3f} pairs/s {row.with_pass:8.3f} with its pass {row.share_of_peak:6.1%} of peak "
        f"{row.memory / 1e9:6.2f} GB  loss {', '.join(f'{x:.5f}' for x in row.losses)}  others {record['others']:.1f}"
    )


def written(results: dict[str, Any], elsewhere: Mapping[str, dict[str, Any]] = MappingProxyType({})) -> str:
    """RESULTS.md; ``elsewhere``: results of GPUs, by their folder."""
    found, up = rows(results["records"]), "" if results["device"] == "cpu" else "../"
    parts = [
        "# What was measured",
        f"A model of {results['size']} parameters on {_device(results)}; {_untimed(results)} "
        "not timed, and a rate is the median of the turns', with the slowest and the fastest. "
        f"Pairs of `hh`: {results['data']}. Written by `python -m benchmarks`; the schemes stand in "
        f"[schemes.py]({up}schemes.py), the workloads in [workloads.py]({up}workloads.py). In brackets: how many times "
        "as fast as this row prefopt is, and how many times prefopt's memory this row takes. Useful tokens are the "
        "distinct prefixes of a step's sequences, the same for every row; the share of the peak counts only their "
        "products.",
        "The newest were measured on: "
        + "; ".join(f"{name} {value}" for name, value in results.get("machine", {}).items())
        + ".",
        _load(results),
        "![Pairs a second and peak memory of each](results.svg)",
        *(_table(found, name, batch) for name, batch in dict.fromkeys((n, b) for n, b, _ in found)),
        "## Figures to reach",
        _targets(_wanted(found) if results["device"] == "cpu" else _wanted_on_gpu(found)),
        *(_on_gpu(name, of) for name, of in elsewhere.items()),
        "## Open",
        "\n".join(f"- {text}" for text in _open(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _on_gpu(name: str, results: dict[str, Any]) -> str:
    gpu = results["machine"].get("gpu", "GPU")
    where = f"### {results['size']} parameters on one {gpu}, bf16, {results['date']}"
    more = f"All of it: [{name}]({name}/RESULTS.md)."
    parts = [where, _targets(_wanted_on_gpu(rows(results["records"]))), more]
    return "\n\n".join([*parts, *(f"- {text}" for text in _failures(results["records"]))])


def _untimed(results: dict[str, Any]) -> str:
    count = max((r.get("untimed", 1) for r in results["records"]), default=1)
    return "the first step of a turn is" if count == 1 else f"the first {count} steps of a turn are"


def _device(results: dict[str, Any]) -> str:
    on_cpu = results["device"] == "cpu"
    return f"{results['threads']} threads of a CPU, in fp32, hh-bf16 in bf16" if on_cpu else "a GPU, in bf16"


def _open(results: dict[str, Any]) -> list[str]:
    found = rows(results["records"])
    alone = [f"{name}, {batch} pairs: TRL" for name, batch, _ in found if (name, batch, "trl") not in found]
    return [*OPEN, *results["left_out"], *dict.fromkeys(alone), *_failures(results["records"])]


def _load(results: dict[str, Any]) -> str:
    records = results["records"]
    busy = [r["others"] for r in records if "failed" not in r]
    if not busy:
        return "Nothing was measured."
    peaks = [r["peak_flops"] / 1e9 for r in records if "failed" not in r and r["workload"] != "hh-bf16"] or [0.0]
    shared = median(busy) > 0.2 or max(peaks) > 1.2 * min(peaks)
    dtype = "fp32" if results["device"] == "cpu" else "bf16"
    return (
        f"The peak is the best of five products after each turn: {min(peaks):,.0f} to {max(peaks):,.0f} GFLOP/s "
        f"in {dtype}. Meanwhile other work kept {median(busy):.1f} cores busy "
        f"(median over the turns; {max(busy):.1f} at most)."
        + (" The machine was not ours alone: read the ratios, not the rates." if shared else "")
    )


def _table(found: Rows, name: str, batch: int) -> str:
    these = {scheme: row for (n, b, scheme), row in found.items() if (n, b) == (name, batch)}
    ours = these.get("prefopt")
    lines = [
        f"## {name}, {batch} pairs a step",
        f"Turns of each: {', '.join(f'{scheme} {len(row.records)}' for scheme, row in these.items())}; "
        f"{len(next(iter(these.values())).losses)} steps a turn; {_dates(these.values())}.",
        "| | pairs/s | with the reference pass | useful tokens/s | of matrix-product peak | peak memory"
        " | loss by step | furthest from prefopt's |\n|---|---|---|---|---|---|---|---|",
    ]
    for scheme, row in these.items():
        off = "" if ours is None else f"{max(abs(a - b) for a, b in zip(row.losses, ours.losses, strict=True)):.0e}"
        lines[-1] += (
            f"\n| {scheme} | {row.pairs_per_second:.2f}{_times(ours, row, 'pairs_per_second')}{_spread(row)}"
            f" | {row.with_pass:.2f}{_times(ours, row, 'with_pass')} | {row.tokens_per_second:,.0f}"
            f" | {row.share_of_peak:.0%} | {row.memory / 1e9:.2f} GB{_times(row, ours, 'memory')}"
            f" | {_listed(row.losses)} | {off} |"
        )
    return "\n\n".join(lines)


def _dates(these: Iterable[Row]) -> str:
    """When they were measured: a workload is measured anew as a whole, the others stay."""
    return ", ".join(dict.fromkeys(record["date"] for row in these for record in row.records))


def _listed(losses: list[float]) -> str:
    shown = [f"{x:.4f}" for x in losses]
    return " ".join(shown if len(shown) <= 4 else [*shown[:3], "…", shown[-1]])


def _spread(row: Row) -> str:
    if len(row.records) == 1:
        return ""
    each = [Row([record]).pairs_per_second for record in row.records]
    return f", {min(each):.2f} to {max(each):.2f}"


def _times(above: Row | None, below: Row | None, what: str) -> str:
    if above is None or below is None or above is below:
        return ""
    return f" ({getattr(above, what) / getattr(below, what):.1f}×)"


Target = tuple[str, float, float | None]
"""what, the bound (at most, where it is negative), and what was measured"""


def _ratio(found: Rows, name: str, batch: int, of: str, peer: str) -> float | None:
    ours, theirs = found.get((name, batch, "prefopt")), _peer(found, name, batch, peer)
    return None if ours is None or theirs is None else getattr(ours, of) / getattr(theirs, of)


def _peer(found: Rows, name: str, batch: int, peer: str) -> Row | None:
    """The fastest of its settings, where there are several."""
    rows = (row for (n, b, scheme), row in found.items() if (n, b) == (name, batch) and _is(scheme, peer))
    return max(rows, key=lambda row: row.with_pass, default=None)


def _is(scheme: str, peer: str) -> bool:
    return scheme == peer or (peer == "trl-best" and scheme.startswith(peer))


def _wanted_on_gpu(found: Rows) -> list[Target]:
    ours = found.get(("hh", 64, "prefopt")) or found.get(("hh", 16, "prefopt"))
    pairs = ours.records[0]["batch_size"] if ours else 16
    return [
        ("hh, 16 pairs: pairs/s with its pass, against TRL's default", 4, _ratio(found, "hh", 16, "with_pass", "trl")),
        ("… against TRL's best setting, both with their pass", 2, _ratio(found, "hh", 16, "with_pass", "trl-best")),
        ("… peak memory against TRL's default", -0.6, _ratio(found, "hh", 16, "memory", "trl")),
        (f"hh, {pairs} pairs: share of the matrix-product peak, wanted at 7B", 0.4, ours and ours.share_of_peak),
    ]


def _wanted(found: Rows) -> list[Target]:
    """The ratios of prefopt to its peers that the project aims at, on a CPU."""
    ratio = partial(_ratio, found)
    sweep = ratio("sweep", 8, "whole_seconds", "trl")
    ours = found.get(("hh", 8, "prefopt"))
    return [
        ("hh, 8 pairs: pairs/s with its pass, against TRL's default", 4.5, ratio("hh", 8, "with_pass", "trl")),
        ("hh, 16 pairs: the same", 6, ratio("hh", 16, "with_pass", "trl")),
        ("hh, 64 pairs: the same", 6, ratio("hh", 64, "with_pass", "trl")),
        ("hh, 64 pairs: against TRL with all 64 at once", 6, ratio("hh", 64, "with_pass", "trl-whole")),
        ("hh, 8 pairs: after the pass, against TRL with its reference precomputed", 6,
         ratio("hh", 8, "pairs_per_second", "trl-precomputed")),
        ("sweep: four β, whole wall time", 8, sweep and 1 / sweep),
        ("hh, 8 pairs, the longest among them: peak memory", -0.5, ratio("hh-longest", 8, "memory", "trl")),
        ("hh, 16 pairs: peak memory against TRL's default", -0.30, ratio("hh", 16, "memory", "trl")),
        ("hh, 8 pairs: share of the matrix-product peak", 0.85, ours and ours.share_of_peak),
        ("ranking: 4 responses against TRL's 3 pairs", 8, ratio("ranking", 24, "with_pass", "trl")),
        ("vocabulary of 128k: peak memory against TRL's default", -0.5, ratio("vocabulary", 8, "memory", "trl")),
    ]  # fmt: skip


def _targets(wanted: Iterable[Target]) -> str:
    lines = ["| | wanted | measured |\n|---|---|---|"]
    for what, bound, value in wanted:
        reached = value is not None and (value >= bound if bound > 0 else value <= -bound)
        shown = "open" if value is None else f"{value:.2f} {'✓' if reached else '✗'}"
        lines.append(f"| {what} | {'≥' if bound > 0 else '≤'} {abs(bound):g} | {shown} |")
    return "\n".join(lines)


def _failures(records: Iterable[Record]) -> list[str]:
    failed = [
        (f"{r['workload']}, {r['batch_size']} pairs, {r['scheme']}", r["failed"].split(". ")[0])
        for r in records
        if "failed" in r
    ]
    return [f"{what}: {why}" for what, why in dict.fromkeys(failed)]


def write(folder: Path) -> None:
    """RESULTS.md and results.svg in ``folder``, from its results.json."""
    from benchmarks.picture import draw

    results = json.loads((folder / "results.json").read_text())
    inside = {file.parent.name: json.loads(file.read_text()) for file in sorted(folder.glob("*/results.json"))}
    (folder / "RESULTS.md").write_text(written(results, inside))
    draw(rows(results["records"]), folder / "results.svg")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
