"""One run's folder: its log, configuration, metrics, genotype and weights."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torchvision
from torch import nn

from cli import UserError


class Run:
    """The folder of one run, made by this object, so never one that holds anything yet.

    | file | holds |
    |---|---|
    | `log.txt` | what was printed |
    | `config.json` | every argument, the versions of what computed, the commit |
    | `metrics.jsonl` | one JSON object per epoch |
    | `genotype.json` | the latest genotype |
    | `weights.pt` | the latest weights, a plain `state_dict()` |

    Args:
        folder: the run's folder; parents are made, too.
        args: the arguments to record.

    Raises:
        UserError: the folder exists and is not empty, or cannot be made.
    """

    def __init__(self, folder: str | Path, args: argparse.Namespace) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                raise UserError(f"{self.folder} is not empty: name another --run_dir, a run is never overwritten")
            log_file = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot make the run's folder {self.folder}: {error.strerror}") from None
        # A logger of our own, not one of logging's registry: two runs in one process do not write into each other's log.
        self._logger = logging.Logger("darts", logging.INFO)
        for handler in (logging.StreamHandler(sys.stdout), log_file):
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%m/%d %I:%M:%S %p"))
            self._logger.addHandler(handler)
        self.write_json("config.json", {"arguments": vars(args), **_provenance()})
        self.log("args = %s", args)

    def log(self, message: str, *values: Any) -> None:
        """Prints and keeps a line; `values` fill its %-placeholders."""
        self._logger.info(message, *values)

    def write_json(self, name: str, content: Any) -> None:
        """Writes `content` to the file `name`, whole or not at all."""
        self._replace(name, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))

    def write_weights(self, model: nn.Module) -> None:
        """Writes `weights.pt`, whole or not at all."""
        self._replace("weights.pt", lambda file: torch.save(model.state_dict(), file))

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def _replace(self, name: str, write: Callable[[BinaryIO], Any]) -> None:
        """Writes beside the old file, then renames: who reads, or is interrupted, finds one that is complete."""
        temporary = self.folder / f"{name}.tmp"
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)


def default_folder(kind: str, save: str) -> str:
    """The original's names: `search-EXP-20260101-120000`, `eval-EXP-...`."""
    return f"{kind}-{save}-{time.strftime('%Y%m%d-%H%M%S')}"


def load_weights(model: nn.Module, path: str) -> None:
    """Loads a `state_dict()` saved by `write_weights`, or by the original authors, into `model`.

    Raises:
        UserError: the file cannot be read or holds no weights, or those of another network.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from None
    except Exception as error:  # what torch.load raises for a damaged file or a pickle that would run code is of many kinds
        raise UserError(f"{path} does not hold saved weights that can be loaded safely ({type(error).__name__})") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path} does not hold a state_dict: a dictionary of tensors")
    own = model.state_dict()
    # Weights from before PyTorch 0.4.1 lack BatchNorm's counters, which nothing here reads.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    differing = [
        f"{key} is {_shape(weights[key])} in the file, {_shape(own[key])} here"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if missing or unexpected or differing:
        hint = "check --arch, --init_channels, --layers and the dataset"
        if not missing and not differing and all(key.startswith("auxiliary_head.") for key in unexpected):
            hint = "add --auxiliary"
        elif not unexpected and not differing and all(key.startswith("auxiliary_head.") for key in missing):
            hint = "leave out --auxiliary"
        first = [f"missing in the file: {key}" for key in missing[:3]]
        first += [f"only in the file: {key}" for key in unexpected[:3]]
        first += differing[:3]
        raise UserError(f"{path} holds the weights of another network ({hint}); the first that differ: {'; '.join(first)}")
    model.load_state_dict(own | weights)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _provenance() -> dict[str, Any]:
    return {
        "command": sys.argv,
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """The commit of this code, with "+" where files differ from it; None outside a git checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
