"""Runs PPO command lines, each in a process that gets a signal in the middle of a step; prints their exit codes.

python -m tests.rl.dying '[["KILL", 3, ["ppo", "--model", ...]], ...]'     at the third update
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch

from prefopt.cli import main
from prefopt.rl import loop
from prefopt.rl import run as _  # noqa: F401  # before the fork, since it takes seconds


def die(name: str, at: int) -> None:
    """Have this process get a signal at update ``at``, the first being 1."""
    update, done = loop._update, 0

    def counting(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == at:
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        return update(*arguments)

    loop._update = counting  # type: ignore[assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    statuses = []
    for name, at, line in json.loads(sys.argv[1]):
        if not (child := os.fork()):
            die(name, at)
            os._exit(main(line))
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(statuses))
