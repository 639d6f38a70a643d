"""One ablation, in the world that can be enumerated: ``python -m examples.ablations beta``.

beta         how far each β goes, and how near to the optimum that it aims at
reference    DPO from models whose SFT was stopped early
temperature  the tuned models, sampled colder and warmer
noise        what wrong labels cost, and which losses mend it
compute      FLOPs and seconds until DPO and PPO have a given reward

Writes NAME.md and NAME.svg to --out, and prints the table. The model after SFT is kept there too, for the next one.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from examples.ablations.common import Setting

NAMES = ("beta", "reference", "temperature", "noise", "compute")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, default=3, help="how often each run is repeated, with other pairs")
    args = parser.parse_args(argv)
    run(args.name, Setting(args.out, seeds=args.seeds))


def run(name: str, setting: Setting) -> None:
    found = import_module(f"examples.ablations.{name}").ablation(setting)
    for suffix, text in (("md", found.table + "\n"), ("svg", found.picture)):
        (setting.out / f"{name}.{suffix}").write_text(text, encoding="utf-8")
    print(f"{found.table}\n\n{setting.out / name}.md, {setting.out / name}.svg")


if __name__ == "__main__":
    main()
