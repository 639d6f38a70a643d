"""A worker does not outlive the process that started it."""

import subprocess
import sys

SCRIPT = """
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from prefopt.signals import end_with_parent

def work():
    print("at work", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        pool.submit(work).result()
"""


def test_a_worker_ends_with_its_parent(tmp_path) -> None:
    file = tmp_path / "parent.py"
    file.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "at work\n"
    parent.kill()
    rest, _ = parent.communicate(timeout=60)  # which ends when nobody can write any more: the worker too has ended
    assert rest == ""
