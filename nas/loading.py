"""Builds the networks with choices and finds the strategies that `--space` and `--strategy` name, also in a user's
file."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import msgspec
from torch import nn

from architectures import SPACE_HELP, SPACES, STRATEGIES, STRATEGY_HELP, load, load_space
from experiment import cli
from experiment.errors import UserError, shown
from nas.mutables import reset_mutable_counter

if TYPE_CHECKING:
    from nas.strategies import Strategy

T = TypeVar("T")


def build_network(args: argparse.Namespace, num_classes: int, discrete: bool = False) -> nn.Module:
    """The network of `args.space` with all its choices open; `discrete`: for one architecture, not for a search."""
    space, network = load_space(args.space), load_network(args.space)
    signature = inspect.signature(network)
    sizes = {space.WIDTH: args.init_channels, space.DEPTH: args.layers}
    given = {name: value for name, value in sizes.items() if value is not None}
    if args.space == "darts":
        given["n_nodes"] = args.nodes
    if "num_classes" in signature.parameters:
        given["num_classes"] = num_classes
    if "in_channels" in signature.parameters:
        given["in_channels"] = args.channels
    elif args.channels != 3:
        raise UserError(f"--channels {args.channels} needs a network that takes in_channels: leave it out")
    reserved = {*sizes, *given, "num_classes", "in_channels"}
    given |= constructor_arguments("--space_arg", cli.assignments(args.space_arg or ""), (network,), reserved)[0]
    if discrete:
        given |= space.DISCRETE
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UserError(f"--space {args.space} cannot be built with {given}: {error}") from None
    reset_mutable_counter()
    return network(**given)


def load_network(name: str) -> type[nn.Module]:
    """The network with the choices of a space, a built-in one or `file.py:Class`."""
    return load(load_space(name).NETWORK) if name in SPACES else _load_class("space", name, SPACE_HELP, nn.Module)


def load_strategy(name: str) -> type[Strategy]:
    """The strategy `name`, a built-in one or `file.py:Class`."""
    if name in STRATEGIES:
        return load(STRATEGIES[name])
    from nas.strategies import Strategy

    return _load_class("strategy", name, STRATEGY_HELP, Strategy)


def _load_class(option: str, name: str, known: str, base: type[T]) -> type[T]:
    """The class `file.py:Class`. Runs the code of the file.

    Raises:
        UserError: `name` does not have this form, the file cannot be imported, or it has no such subclass of `base`.
    """
    file, _, class_name = name.rpartition(":")
    if not file or not class_name.isidentifier():
        raise UserError(f"unknown {option} {name!r}: {known}")
    spec = importlib.util.spec_from_file_location(f"{option}_{Path(file).stem}", file)
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


def constructor_arguments(
    option: str, given: Mapping[str, str], makers: Sequence[type], reserved: Collection[str]
) -> list[dict[str, Any]]:
    """For each class in `makers` its arguments from the texts `given` to `--space_arg` or `--strategy_arg`, converted
    by the annotations of its constructor.

    `reserved` are arguments that cannot be set this way.
    """
    types = [_argument_types(maker, reserved) for maker in makers]
    known = sorted(set().union(*types))
    for name in given:
        if name not in known:
            raise UserError(f"unknown {option} {shown(name)}: known are {', '.join(known) or 'none'}")
    return [
        {name: _typed(option, name, text, each[name]) for name, text in given.items() if name in each} for each in types
    ]


def _argument_types(maker: type, reserved: Collection[str]) -> dict[str, Any]:
    """{name: type} of the arguments that can be read from text. Without an annotation, the type is that of the
    default."""
    try:
        hints = get_type_hints(maker.__init__)  # type: ignore[misc]  # `maker` is a class
    except Exception:  # an annotation in a user's file may be imported for type checkers only, or be wrong in any way
        hints = {}
    parameters = inspect.signature(maker).parameters.values()
    found = {one.name: hints.get(one.name, type(one.default)) for one in parameters if one.name not in reserved}
    return {name: hint for name, hint in found.items() if set(get_args(hint) or [hint]) <= _TYPES}


_TYPES = {NoneType, bool, int, float, str}


def _typed(option: str, name: str, text: str, hint: Any) -> Any:
    try:
        return msgspec.convert(None if text == "None" else text, hint, strict=False)
    except msgspec.ValidationError:
        kinds = " or ".join("None" if kind is NoneType else kind.__name__ for kind in get_args(hint) or [hint])
        raise UserError(f"{option} {name}={text}: {name} is {kinds}") from None
