"""``results.svg``: speed and memory of every scheme on every workload, as bars."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import Row, Rows

COLOURS = {
    "prefopt": "#2a6fdb",
    "prefopt-lean": "#123c80",
    "trl": "#c44",
    "trl-whole": "#922",
    "trl-precomputed": "#e08a4a",
    "trl-best": "#e3b34a",
    "trl-best-4": "#ccc04a",
    "trl-best-8": "#a8b84a",
    "trl-best-16": "#7fa34a",
    "padded": "#999",
}


def draw(found: Rows, file: Path) -> None:
    """One group of bars for each workload and batch size; written in them, the ratio to prefopt."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "results", "svg.fonttype": "none"}
    from matplotlib import pyplot

    groups = list(dict.fromkeys((name, batch) for name, batch, _ in found))
    bars = sum(len(_schemes(found, group)) + 1 for group in groups)
    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(9, 1.2 + 0.2 * bars), sharey=True)
    ticks, place = {}, 0.0
    for group in groups:
        schemes = _schemes(found, group)
        ticks["{}, {} pairs".format(*group)] = place + (len(schemes) - 1) / 2
        for scheme, row in schemes.items():
            _bar(speed, place, scheme, row.with_pass, _ratio(schemes, row, "with_pass"))
            _bar(memory, place, scheme, row.memory / 1e9, _ratio(schemes, row, "memory"))
            place += 1
        place += 1
    speed.set_yticks(list(ticks.values()), list(ticks))
    speed.invert_yaxis()
    speed.set_xlabel("pairs/s, the reference's pass included")
    memory.set_xlabel("peak memory, GB")
    for axes in (speed, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15, y=0.02)
    drawn = {
        name: pyplot.Rectangle((0, 0), 1, 1, color=c) for name, c in COLOURS.items() if name in {s for *_, s in found}
    }
    figure.legend(list(drawn.values()), list(drawn), loc="outside upper center", ncols=len(drawn), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _schemes(found: Rows, group: tuple[str, int]) -> dict[str, Row]:
    return {scheme: found[(*group, scheme)] for scheme in COLOURS if (*group, scheme) in found}


def _ratio(schemes: dict[str, Row], row: Row, what: str) -> str:
    ours = schemes.get("prefopt")
    return "" if ours is None or ours is row else f" {getattr(row, what) / getattr(ours, what):.2f}×"


def _bar(axes, place: float, scheme: str, value: float, said: str) -> None:
    axes.barh(place, value, color=COLOURS[scheme], height=0.9)
    axes.text(value, place, said, va="center", fontsize=7)
