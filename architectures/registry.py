"""The names of spaces and strategies, and the architecture that `--arch` names in a space.

`nas/loading.py` builds them.
"""

from __future__ import annotations

import importlib
import shlex
from typing import Any

from architectures.architecture import Architecture
from experiment import cli
from experiment.errors import UserError, shorten

# {name of a space: the class of its architectures}. A module is imported when its name is asked for.
SPACES = {
    "darts": "architectures.cells:Cells",
    "enas_micro": "nas.spaces.enas:Micro",
    "enas_macro": "nas.spaces.enas:Macro",
    "nasbench201": "nas.spaces.nasbench201:Cell201",
}
STRATEGIES = {
    "darts": "nas.strategies:Darts",
    "drnas": "nas.strategies:Drnas",
    "gdas": "nas.strategies:Gdas",
    "enas": "nas.strategies:Enas",
    "random": "nas.strategies:Random",
}
_SPACES = SPACES | {"rnn": "rnn.cells:RecurrentCell"}  # no value of --space: rnn/ has its own scripts

SPACE_HELP = f"{', '.join(SPACES)}; or a network with choices of your own, my_space.py:Net"
STRATEGY_HELP = f"{', '.join(STRATEGIES)}; or a strategy of your own, my_strategy.py:Class"


def load_space(name: str) -> type[Architecture]:
    """The class of the architectures of a space: `Architecture` itself for a network in a user's file, which is not
    run."""
    return load(_SPACES[name]) if name in _SPACES else Architecture


def load(path: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def read(arch: str, space: str) -> Architecture:
    """The architecture that `--arch` names in a space."""
    try:
        other = cli.read_config(arch)["arguments"].get("space")
    except (OSError, ValueError):  # not a run's folder
        other = None
    if isinstance(other, str) and (other == "darts") != (space == "darts"):
        raise UserError(f"{shorten(arch)} is a run in another space: add {shlex.join(['--space', shorten(other)])}")
    return load_space(space).read(arch)
