"""What `--space` and `--strategy` stand for: an entry of a registry, or a class in a user's file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import nn

from experiment.errors import UserError
from nas.spaces.darts import DartsNetwork
from nas.spaces.enas import ENASMacroGeneralModel, ENASMicroNetwork
from nas.spaces.nasbench201 import NASBench201Network
from nas.strategies import Darts, Enas, Random, Strategy


class Space(NamedTuple):
    """A network that holds choices, and what its constructor calls `--init_channels` and `--layers`."""

    network: type[nn.Module]
    width: str = "init_channels"
    depth: str = "layers"


SPACES = {
    "darts": Space(DartsNetwork),
    "enas_micro": Space(ENASMicroNetwork, "out_channels", "num_layers"),
    "enas_macro": Space(ENASMacroGeneralModel, "out_filters", "num_layers"),
    "nasbench201": Space(NASBench201Network, "channels", "cells"),
}
STRATEGIES: dict[str, type[Strategy]] = {"darts": Darts, "enas": Enas, "random": Random}

SPACE_HELP = f"{', '.join(SPACES)}; or a network with choices of your own, my_space.py:Net"
STRATEGY_HELP = f"{', '.join(STRATEGIES)}; or a strategy of your own, my_strategy.py:Class"

T = TypeVar("T")


def load_space(name: str) -> Space:
    """The space of this name, or the network `file.py:Class`.

    Raises:
        UserError: see `_load_class`.
    """
    return SPACES[name] if name in SPACES else Space(_load_class("space", name, SPACE_HELP, nn.Module))


def load_strategy(name: str) -> type[Strategy]:
    """The strategy of this name, or that of `file.py:Class`.

    Raises:
        UserError: see `_load_class`.
    """
    return STRATEGIES[name] if name in STRATEGIES else _load_class("strategy", name, STRATEGY_HELP, Strategy)


def _load_class(option: str, name: str, known: str, base: type[T]) -> type[T]:
    """The class that `file.py:Class` names. Runs the file.

    Raises:
        UserError: `name` does not have this form, the file cannot be imported, or it has no such class derived from `base`.
    """
    file, _, class_name = name.rpartition(":")
    if not file or not class_name.isidentifier():
        raise UserError(f"unknown {option} {name!r}: {known}")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--{option} {name}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"{option}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--{option} {name}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"--{option} {name}: {file} does not import: {type(error).__name__}: {error}") from None
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"--{option} {name}: {file} has no class {class_name} that is a {base.__name__}")
    return found
