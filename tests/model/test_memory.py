"""What freed memory does to the size of the process, seen from outside: in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, torch
from model.memory import keep_freed_memory

def pages():
    return int(open("/proc/self/statm").read().split()[1])

assert keep_freed_memory() is True or sys.exit(77)
before = pages()
block = torch.ones(300 * 2**18)
full = pages() - before
del block
print((pages() - before) / full)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_freed_blocks_stay_with_the_process() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 77:
        pytest.skip("this C library is not glibc")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9, "by default a freed block of 300 MB leaves the process at once"
