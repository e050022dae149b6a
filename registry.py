"""Resolves `--space`, `--strategy` and `--arch`: a name in a registry, or a class in a user's file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import msgspec

from architecture import Architecture
from experiment import cli
from experiment.errors import UserError, shorten, shown

if TYPE_CHECKING:
    from torch import nn

    from nas.strategies import Strategy


# {name of a space: the class of its architectures}. A module is imported when its name is asked for.
SPACES = {
    "darts": "cells:Cells",
    "enas_micro": "nas.spaces.enas:Micro",
    "enas_macro": "nas.spaces.enas:Macro",
    "nasbench201": "nas.spaces.nasbench201:Cell201",
}
STRATEGIES = {
    "darts": "nas.strategies:Darts",
    "gdas": "nas.strategies:Gdas",
    "enas": "nas.strategies:Enas",
    "random": "nas.strategies:Random",
}
_SPACES = SPACES | {"rnn": "rnn.cells:RecurrentCell"}  # no value of --space: rnn/ has its own scripts

SPACE_HELP = f"{', '.join(SPACES)}; or a network with choices of your own, my_space.py:Net"
STRATEGY_HELP = f"{', '.join(STRATEGIES)}; or a strategy of your own, my_strategy.py:Class"

T = TypeVar("T")


def load_space(name: str) -> type[Architecture]:
    """The class of the architectures of a space: `Architecture` itself for a network in a user's file, which is not run."""
    return _named(_SPACES[name]) if name in _SPACES else Architecture


def load_network(name: str) -> type[nn.Module]:
    """The network with the choices of a space, a built-in one or `file.py:Class`.

    Raises:
        UserError: see `_load_class`.
    """
    from torch import nn

    return _named(load_space(name).NETWORK) if name in SPACES else _load_class("space", name, SPACE_HELP, nn.Module)


def load_strategy(name: str) -> type[Strategy]:
    """The strategy `name`, a built-in one or `file.py:Class`.

    Raises:
        UserError: see `_load_class`.
    """
    if name in STRATEGIES:
        return _named(STRATEGIES[name])
    from nas.strategies import Strategy

    return _load_class("strategy", name, STRATEGY_HELP, Strategy)


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def read(arch: str, space: str) -> Architecture:
    """What `--arch` stands for in a space.

    Raises:
        UserError: it is not an architecture of the space, or is the folder of a run in another one.
    """
    if space != "darts" and arch in load_space("darts").names() and not Path(arch).exists():
        raise UserError(f"--arch {arch} belongs to --space darts: name a JSON file or a search's folder of --space {space}")
    try:
        other = cli.read_config(arch)["arguments"].get("space")
    except (OSError, ValueError):  # not a run's folder
        other = None
    if isinstance(other, str) and (other == "darts") != (space == "darts"):
        raise UserError(f"{shorten(arch)} is a run in another space: add {shlex.join(['--space', shorten(other)])}")
    return load_space(space).read(arch)


def names() -> list[str]:
    """All published cells; those of the recurrent cell begin with `rnn.`."""
    return [*load_space("darts").names(), *(f"rnn.{name}" for name in load_space("rnn").names())]


def canonical(arch: str) -> str:
    """See `Architecture.canonical`, for all of `names`."""
    prefix = "rnn." if arch.startswith("rnn.") else ""
    return prefix + load_space("rnn" if prefix else "darts").canonical(arch.removeprefix(prefix))


def read_any(arch: str) -> Architecture:
    """What `arch`, one of `names` or as of `Architecture.read`, stands for in the space that recognises it.

    Raises:
        UserError: it is not an architecture.
    """
    if (arch := canonical(arch)) in names():
        return load_space("rnn" if arch.startswith("rnn.") else "darts").read(arch.removeprefix("rnn."))
    failures = []
    for space in map(load_space, ("darts", "rnn", *SPACES)):  # those that need no torch first
        try:
            content = space.content(arch)
        except UserError as error:
            failures.append(error)
            continue
        if space.recognises(content):
            return space.of(content)
    if failures:
        raise failures[0]
    return Architecture.of(content)


def constructor_arguments(option: str, given: Mapping[str, str], makers: Sequence[type], reserved: Collection[str]) -> list[dict[str, Any]]:
    """For each class in `makers` its arguments from `--space_arg` or `--strategy_arg`, converted by the annotations of its constructor.

    Args:
        option: the name of the option, for messages.
        given: {name: value} from the command line.
        makers: the classes.
        reserved: constructor arguments that cannot be set this way.

    Raises:
        UserError: no constructor has an argument of this name, or the value does not have its type.
    """
    types = [_argument_types(maker, reserved) for maker in makers]
    known = sorted({name for each in types for name in each})
    for name in given:
        if name not in known:
            raise UserError(f"unknown {option} {shown(name)}: known are {', '.join(known) or 'none'}")
    return [{name: _typed(option, name, value, each[name]) for name, value in given.items() if name in each} for each in types]


def _argument_types(maker: type, reserved: Collection[str]) -> dict[str, Any]:
    """{name: type} of the arguments that can be read from text. Without an annotation, the type is that of the default."""
    try:
        hints = get_type_hints(maker.__init__)  # type: ignore[misc]  # `maker` is a class
    except Exception:  # an annotation in a user's file may be imported for type checkers only, or be wrong in any way
        hints = {}
    found = {name: hints.get(name, type(value.default)) for name, value in inspect.signature(maker).parameters.items()}
    return {name: hint for name, hint in found.items() if name not in reserved and set(get_args(hint) or [hint]) <= _TYPES}


_TYPES = {NoneType, bool, int, float, str}


def _typed(option: str, name: str, text: str, hint: Any) -> Any:
    try:
        return msgspec.convert(None if text == "None" else text, hint, strict=False)
    except msgspec.ValidationError:
        kinds = " or ".join("None" if kind is NoneType else kind.__name__ for kind in get_args(hint) or [hint])
        raise UserError(f"{option} {name}={text}: {name} is {kinds}") from None


def _load_class(option: str, name: str, known: str, base: type[T]) -> type[T]:
    """The class `file.py:Class`. Runs the code of the file.

    Raises:
        UserError: `name` does not have this form, the file cannot be imported, or it has no such subclass of `base`.
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
        raise UserError(f"--{option} {name}: {file} cannot be imported: {type(error).__name__}: {error}") from None
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"--{option} {name}: {file} has no class {class_name} that is a {base.__name__}")
    return found
