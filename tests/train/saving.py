"""Saves checkpoints and dies of it, many times over; run as a script so that forks are cheap and clean.

    python -m tests.train.saving FOLDER random REPEATS SEED SIZE    killed at random moments
    python -m tests.train.saving FOLDER every                       killed before each file operation in turn

Exits 0 when after every death a whole checkpoint was found, no older than the last one reported saved.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from prefopt.train import checkpoint


def contents(step: int, size: int) -> dict[str, dict[str, torch.Tensor]]:
    weight = torch.full((size,), float(step))
    return {"model": {"w": weight, "tied": weight}, "optimizer": {"w.exp_avg": weight + 0.5, "w.step": weight[:1] * 1}}


def check_newest(folder: Path, at_least: int, size: int) -> int:
    newest = checkpoint.load_newest(folder)
    step = newest.step if newest else 0
    assert step >= at_least, f"step {at_least} was reported as saved, step {step} was found"
    if newest:
        assert newest.state == {"step": step}
        for group, named in contents(step, size).items():
            found = newest.tensors(group)
            assert found.keys() == named.keys() and all(torch.equal(found[n], t) for n, t in named.items())
    return step


def in_child(work: Callable[[], None]) -> int:
    if child := os.fork():
        return child
    try:
        work()
    except BaseException as error:
        print("child:", repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def killed_at_random(folder: Path, repeats: int, seed: int, size: int) -> None:
    rng = random.Random(seed)
    step = 0
    for _ in range(repeats):
        reader, writer = os.pipe()

        def save_on(step: int = step, writer: int = writer) -> None:
            while True:
                step += 1
                checkpoint.save(folder, step, contents(step, size), {"step": step})
                os.write(writer, step.to_bytes(4, "little"))
                checkpoint.prune(folder, keep=2)

        child = in_child(save_on)
        # Wait for one save, so that each life makes progress, and then for any moment of the next.
        began = time.perf_counter()
        reported = os.read(reader, 4)
        time.sleep(rng.uniform(0, time.perf_counter() - began))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        os.close(writer)
        while more := os.read(reader, 1 << 16):
            reported += more
        os.close(reader)
        last = int.from_bytes(reported[-4:], "little")
        whole = [not checkpoint.verify(path) for path in folder.glob("step-*")]
        assert all(whole), "a folder with a checkpoint's name is not a whole checkpoint"
        step = check_newest(folder, last, size)
    print(f"{repeats} kills, {step} steps saved")


def killed_before_each_operation(folder: Path, damaged: bool) -> int:
    """Two checkpoints exist, one more is saved (or the newest, damaged, is saved again) and one pruned."""
    prepared = folder / "prepared"
    for step in (1, 2):
        checkpoint.save(prepared, step, contents(step, 100), {"step": step})
    if damaged:
        (prepared / "step-00000002" / "state.json").unlink()
    for nth in range(1, 1000):
        trial = Path(shutil.copytree(prepared, folder / f"trial-{damaged}-{nth}"))

        def die_at(nth: int = nth, trial: Path = trial) -> None:
            count = 0

            def hook(event: str, _: tuple) -> None:
                nonlocal count
                if event == "open" or event.startswith(("os.", "shutil.")):
                    count += 1
                    if count == nth:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            step = 2 if damaged else 3
            checkpoint.save(trial, step, contents(step, 100), {"step": step})
            checkpoint.prune(trial, keep=2)

        _, status = os.waitpid(in_child(die_at), 0)
        check_newest(trial, 1 if damaged else 2, 100)
        checkpoint.save(trial, 4, contents(4, 100), {"step": 4})
        checkpoint.prune(trial, keep=2)
        assert len(list(trial.iterdir())) == 2, sorted(trial.iterdir())
        if not os.WIFSIGNALED(status):
            assert status == 0
            return nth - 1
    raise AssertionError("never came to an end")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    if mode == "random":
        killed_at_random(folder, *map(int, sys.argv[3:]))
    else:
        for damaged in (False, True):
            print(f"{killed_before_each_operation(folder, damaged)} operations")
