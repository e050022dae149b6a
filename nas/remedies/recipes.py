"""The arguments of the remedies, and the settings of their papers. This file does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The authors' settings for searches on CIFAR-10 that differ from the defaults here; docs/remedies.md lists what is left out.
PRESETS: dict[str, dict[str, Any]] = {
    "pc-darts": {
        "partial_channels": 4,
        "arch_warmup": 15,
        "batch_size": 256,
        "learning_rate": 0.1,
        "learning_rate_min": 0.0,
        "arch_learning_rate": 6e-4,
    },
    "gdas": {"strategy": "gdas", "epochs": 250, "batch_size": 256, "layers": 6, "weight_decay": 5e-4},
    "sdarts-rs": {"perturb": "random"},
    "darts-minus": {"auxiliary_skip": 1.0},
    "fair-darts": {
        "gate": "sigmoid",
        "zero_one_weight": 10.0,
        "gate_threshold": 0.85,
        "batch_size": 128,
        "learning_rate": 0.005,
        "arch_learning_rate": 3e-3,
        "arch_beta1": 0.9,
    },
}

# Remedies of the supernet: {argument: its value without the remedy}.
OF_SUPERNET = {
    "partial_channels": 1,
    "auxiliary_skip": 0.0,
    "gate": "softmax",
    "zero_one_weight": 0.0,
    "gate_threshold": 0.0,
    "max_skips": None,
}
NONE = {**OF_SUPERNET, "perturb": "none", "arch_warmup": 0}


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The remedies in the arguments of a search: {argument: value}. Searches of earlier versions lack some arguments."""
    return {name: arguments[name] for name, off in NONE.items() if arguments.get(name, off) != off}
