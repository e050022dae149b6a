"""No operation writes past its memory on two threads: pytest -n0 tests/thorough/test_memory.py"""

import os
import subprocess
import sys
from pathlib import Path

# In a process of its own, which a write past the end of memory ends. glibc checks the end of every piece of memory that
# is freed.
GRID = """
import itertools, sys, torch
sys.path.insert(0, sys.argv[1])
import operations
from speed import layers
torch.set_num_threads(2)
for C, B, size in itertools.product((2, 3, 4, 8, 12), (2, 3, 13, 29), (8, 14, 16, 32)):
    x = torch.randn(B, C, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    for name, stride in itertools.product(operations.OPS, (1, 2)):
        if C % 2 == 0 or name != "skip_connect":
            operation = operations.OPS[name](C, stride, True)
            layers.use_fast_gradients(operation)
            sum_ = operation(x).square().sum()
            if sum_.requires_grad:
                sum_.backward()
print("all done")
"""


def test_no_operation_corrupts_memory_on_two_threads():
    checked = (
        {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"}
        if sys.platform == "linux"
        else {}
    )
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}  # a waiting thread leaves its core to other tests
    command = [sys.executable, "-c", GRID, str(Path(__file__).parent.parent.parent)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **checked, **threads})
    assert ended.stdout == "all done\n", (ended.returncode, ended.stderr[-500:])
