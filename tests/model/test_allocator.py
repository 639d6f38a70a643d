"""What a tensor held goes back to the system when it is gone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prefopt.model.allocator import return_memory_at_once

CHILD = """
import sys, torch
from prefopt.model.allocator import return_memory_at_once

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "at once":
    assert return_memory_at_once()
for size in (2**18, 2**20, 2**22):  # bytes / 4: glibc sees ever larger ones freed
    torch.ones(size)
before = resident()
tensors = [torch.ones(2**20) for _ in range(64)]
tensors = tensors[-1:]  # the last one holds the heap's end
print((resident() - before) // 2**20)
"""


@pytest.mark.skipif(not return_memory_at_once(), reason="no glibc")
def test_what_is_freed_below_something_that_stays_is_given_back():
    def left(how: str) -> int:
        child = subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=True)
        return int(child.stdout)

    assert left("at once") < 16  # MB, of 256
    assert left("as it comes") > 128
