"""How cost grows with the work: ``python -m benchmarks.growth`` writes growth.json and growth.svg.

Along four axes, one at a time: pairs of a file (read, checked, encoded, planned), tokens of the prompt,
responses to a prompt, and tokens of the vocabulary (one training step of prefopt each). Time should be
linear in all of them, and memory flat in the number of pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import measured

HERE = Path(__file__).parent
SMALL = {
    "pairs": [1000, 3000, 10000],
    "prompt": [128, 512, 2048],
    "responses": [2, 4, 8],
    "vocabulary": [8192, 32768],
}
LARGE = {
    "pairs": [1000, 3000, 10000, 30000, 100000],
    "prompt": [128, 512, 2048, 8192, 16384],
    "responses": [2, 4, 8, 16],
    "vocabulary": [8192, 32768, 131072, 262144],
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--large", action="store_true", help="the whole range: pairs to 100k, prompts to 16k")
    parser.add_argument("--axes", nargs="+", default=list(SMALL), choices=list(SMALL))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--toy", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of growth.json and growth.svg")
    parser.add_argument("--add", action="store_true", help="keep what --out has of other axes")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    points: dict[str, list[dict[str, Any]]] = json.loads((args.out / "growth.json").read_text()) if args.add else {}
    with tempfile.TemporaryDirectory() as scratch:
        for axis in args.axes:
            points[axis] = []
            for value in (LARGE if args.large else SMALL)[axis]:
                work = "read" if axis == "pairs" else "grow"
                asked = {"axis": axis, "value": value} if work == "grow" else {"pairs": value}
                point = measured(args.threads, work=work, folder=scratch, toy=args.toy, **asked) | {"value": value}
                points[axis].append(point)
                shown = point.get("failed") or f"{point['seconds']:9.2f} s {point['memory'] / 1e9:6.2f} GB"
                print(f"{axis:<11}{value:>8,} {shown}", flush=True)
                (args.out / "growth.json").write_text(json.dumps(points, indent=1) + "\n")
    plot(points, args.out / "growth.svg")


def plot(points: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Time, logarithmic, and memory, from nothing on, against each axis; a dotted line is proportional growth."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, len(points), figsize=(3.2 * len(points), 5), squeeze=False, sharex="col")
    most = max((point.get("memory", 0) for found in points.values() for point in found), default=0) / 1e9
    for column, (axis, found) in enumerate(points.items()):
        good = [point for point in found if "failed" not in point]
        x = [point["value"] for point in good]
        for row, (what, unit) in enumerate((("seconds", 1.0), ("memory", 1e9))):
            y = [point[what] / unit for point in good]
            draw = grid[row][column].loglog if what == "seconds" else grid[row][column].semilogx
            draw(x, y, "o-", base=10)
            if good and what == "seconds":
                grid[row][column].loglog(x, [y[0] * value / x[0] for value in x], "k:", linewidth=0.8)
        grid[1][column].set_xlabel(axis)
        grid[1][column].set_ylim(0, 1.1 * most or None)
        grid[1][column].set_xticks(x, [f"{n // 1024}k" if n % 1024 == 0 else f"{n:,}" for n in x], rotation=45)
        grid[1][column].minorticks_off()
    grid[0][0].set_ylabel("seconds")
    grid[1][0].set_ylabel("peak memory, GB")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
