"""Saves and checks the content of checkpoints: the states of networks, optimizers and random number generators."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import torch


def check_like(value: Any, like: Any, what: str) -> None:
    """Raises `ValueError` unless `value` has the structure of `like`: types, keys, lengths, and the shapes and types of tensors.

    Args:
        what: a description of `value` for the message.
    """
    if isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"{what} lack entries, or have unknown ones")
        for key in like:
            check_like(value[key], like[key], f"{what}: {key}")
    elif isinstance(like, torch.Tensor):
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"{what} is not a tensor of numbers")
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{what} is {value.dtype} of shape {list(value.shape)}, not {like.dtype} of {list(like.shape)}")
    elif type(value) is not type(like):
        raise ValueError(f"{what} is a {type(value).__name__}, not a {type(like).__name__}")
    elif isinstance(like, list | tuple):
        if len(value) != len(like):
            raise ValueError(f"{what} has {len(value)} parts, not {len(like)}")
        for index, part in enumerate(like):
            check_like(value[index], part, f"{what}, {index}")


def load_optimizer(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Loads an optimizer's state, such as its momentum. Learning rate and other arguments of the run do not change.

    Raises:
        ValueError: `state_dict` is not the state of an SGD, ASGD or Adam optimizer of these parameters.
    """
    states = state_dict.get("state") if isinstance(state_dict, dict) else None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(states, dict) or not all(type(index) is int and 0 <= index < len(parameters) for index in states):
        raise ValueError("the state of an optimizer is not of this network's parameters")
    for index, state in states.items():
        like: dict[str, Any]
        if isinstance(optimizer, torch.optim.SGD):
            momentum = isinstance(state, dict) and state.get("momentum_buffer") is not None
            like = {"momentum_buffer": parameters[index] if momentum else None}
        elif isinstance(optimizer, torch.optim.ASGD):
            like = {**dict.fromkeys(("step", "eta", "mu"), torch.tensor(0.0)), "ax": parameters[index]}
        else:
            like = {"step": torch.tensor(0.0), "exp_avg": parameters[index], "exp_avg_sq": parameters[index]}
        check_like(state, like, f"the optimizer's parameter {index}")
        if "step" in like and not 1 <= state["step"] < 2**53:
            raise ValueError(f"the optimizer has taken {state['step']} steps")
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def saved(content: Any) -> memoryview:
    """What `torch.save` writes, in memory. An error while it is written to disk is then an error of the disk, not of a device."""
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


def set_random_states(states: dict[str, Any]) -> None:
    """Sets all random states except CUDA's. Raises `ValueError` if `states` is not valid."""
    try:
        kind, keys, *rest = states["numpy"]
        random.setstate(states["python"])
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(states["torch"])
    except Exception as error:  # of many types; none comes from a device
        raise ValueError(f"its random states cannot be restored ({error})") from None
