"""README's commands, one after the other in a copy of the project: pytest -s -n0 tests/thorough/test_readme.py

Those for a CPU run as they are. Those for a GPU or for images that are not here run for two batches, on a CPU and on
other images.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import genotypes
from model import NetworkCIFAR

ROOT = Path(__file__).parent.parent.parent
COMMANDS = re.findall(
    r"^    (?:pip install .*&& )?(python .+?)(?: +#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE
)
SHORT = ["--fast_dev_run", "--init_channels", "4", "--layers", "3", "--batch_size", "8"]


def runnable(command, folder):
    """The arguments of a command, here; `folder`: where it will run."""
    script, *arguments = shlex.split(command)[1:]
    for kind in ("search", "eval"):  # the folder that an earlier command made
        made = max(folder.glob(f"{kind}-EXP-*"), key=lambda path: path.stat().st_mtime, default=None)
        arguments = [re.sub(rf"{kind}-EXP-\S+", made.name, argument) if made else argument for argument in arguments]
    if "nasbench201.csv" in arguments:  # neither the table nor the images are here
        arguments = ["my_images" if argument == "cifar10-jpeg" else argument for argument in arguments[:-2]]
    if script == "reproduce.py":
        arguments += ["--dry_run"]  # hours
    elif script == "export.py" and find_spec("onnx") is None:
        arguments[-1] = "torch"
    elif script == "predict.py":
        arguments += ["--gpu", "-1"]
    elif "--gpu" in arguments and "-1" not in arguments:
        arguments += ["--gpu", "-1", *(SHORT if script != "test.py" else [])]
        arguments += ["--dataset", "digits"] if "--dataset" not in arguments else []
    return [sys.executable, script, *arguments]


def test_every_command(tmp_path):
    folder = shutil.copytree(
        ROOT, tmp_path / "darts", ignore=shutil.ignore_patterns(".*", "data", "runs", "search-*", "eval-*", "tests")
    )
    rng = np.random.default_rng(0)
    classes = [f"my_images/{part}/{label}" for part in ("train", "test") for label in ("ant", "bee")]
    for path in [
        *(f"{name}/{number}.jpg" for name in classes for number in range(64)),
        "photo.jpg",
        "more_photos/1.jpg",
    ]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(folder / path)
    torch.save(NetworkCIFAR(36, 10, 20, True, genotypes.DARTS_V2).state_dict(), folder / "cifar10_model.pt")
    assert len(COMMANDS) > 20
    for command in COMMANDS:
        begun, here = time.monotonic(), runnable(command, folder)
        done = subprocess.run(here, cwd=folder, capture_output=True, text=True)
        print(f"{time.monotonic() - begun:4.0f} s  {shlex.join(['python', *here[1:]])}", flush=True)
        assert done.returncode == 0, (command, done.stderr)
