"""By the real torchrun: one of two processes is killed in the second of three epochs."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from scripts import assert_same, result
from test_distributed import ROOT, SPACE, launch


def test_torchrun_starts_again_and_goes_on(images, tmp_path):
    command = ["train_search", *SPACE, "--epochs", "3", "--checkpoint_minutes", "0", "--report_freq", "1"]
    for status, output in launch(2, command, images, "--run_dir", tmp_path / "undisturbed", double=False):
        assert status == 0, output
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=3"]
    arguments = ["--dataset", "folder", "--data", str(images), "--image_size", "16", "--gpu", "-1", "--workers", "0"]
    process = subprocess.Popen(
        [*torchrun, str(ROOT / "train_search.py"), *command[1:], *arguments, "--run_dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines, killed = [], False
    for line in process.stdout:
        lines.append(line)
        if "epoch 1 lr" in line and not killed:
            children = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")]
            os.kill(max(map(int, " ".join(children).split())), signal.SIGKILL)
            killed = True
    output = "".join(lines)
    assert process.wait() == 0, output
    assert re.search(r"going on from .*: epoch 1, step \d", output)
    assert_same(result(tmp_path / "run"), result(tmp_path / "undisturbed"))
