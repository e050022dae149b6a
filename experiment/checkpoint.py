"""Parts of a checkpoint: states of optimizers and random number generators. `Run.save` in `run.py` writes the file."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import torch


def load_optimizer(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Loads an optimizer's state, such as its momentum. Learning rate and other arguments of the run do not change."""
    optimizer.load_state_dict({"state": state_dict["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def saved(content: Any) -> memoryview:
    """The bytes that `torch.save` writes. Later errors are then errors of the disk, not of a device."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getbuffer()


def random_states(device: torch.device) -> dict[str, Any]:
    state = np.random.get_state()
    assert isinstance(state, tuple)  # NumPy's default generator, which nothing here replaces
    kind, keys, position, has_gauss, cached = state
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],  # of the GPU of this process
    }


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Sets all random states; CUDA's only if they come from a GPU and `device` is one."""
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    for state in states["cuda"] if device.type == "cuda" else ():
        torch.cuda.set_rng_state(state, device)
