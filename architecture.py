"""`Architecture`: what a search finds, a value of its space, with text, JSON, edges and distance. A space is a subclass (registry.py).

    Architecture.read("run/").choices                              # {key of a choice: what was chosen}
    registry.load_space("darts").read("DARTS_V2").cells["normal"].edges

This file knows no space and does not import torch.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from experiment import files
from experiment.errors import UserError, shorten

Alphas = dict[str, dict[str, float]]  # {edge: {operation: softmaxed alpha}}

TITLES = {"normal": "normal cell", "reduce": "reduction cell", "recurrent": "recurrent cell", "": "architecture"}


class Edge(NamedTuple):
    """An edge of a cell with its operation. Nodes have their names in pictures."""

    key: str  # the name of the edge in alphas and choices
    tail: str
    head: str
    operation: str


class Cell(NamedTuple):
    """A cell as a graph (DARTS, Figures 4 and 5)."""

    nodes: dict[str, str]  # {name: "input", "node" or "output"}, the output last
    edges: list[Edge]
    concat: list[str]  # nodes with an edge to the output
    fixed: Sequence[tuple[str, str]] = ()  # (tail, head) of edges without an operation


class Architecture:
    """{key of a choice: what was chosen}, in any network with choices. Subclasses are the spaces that are known better."""

    FILES: ClassVar[tuple[str, ...]] = ("architecture.json",)  # in a run's folder, the first that is there is read
    FIELDS: ClassVar[tuple[str, ...]] = ()  # of `Genotype(...)` in a text
    NUMBERED: ClassVar[Sequence[str]] = ()  # the operations behind the numbers in alphas
    WIDTH, DEPTH = "init_channels", "layers"  # arguments of the network for --init_channels and --layers

    def __init__(self, choices: Mapping[str, Any]) -> None:
        self._choices = dict(choices)

    @classmethod
    def network(cls) -> type:
        """The class of the network with the choices."""
        raise NotImplementedError

    # ---- Reading

    @classmethod
    def names(cls) -> Mapping[str, Any]:
        """{name: published architecture}."""
        return {}

    @classmethod
    def canonical(cls, arch: str) -> str:
        """The name that `arch` names, in upper or lower case, with `-` or `_`. Everything else is returned unchanged, also a path."""
        spelt = {_spelling(name): name for name in cls.names()}.get(_spelling(arch))
        return arch if spelt is None or os.path.lexists(arch) else spelt

    @classmethod
    def read(cls, arch: str) -> Self:
        """The architecture that `arch` names: one of `names`, the folder of a run, or a text or a file of what `of` takes.

        A text is JSON or Python's notation, also with other text around it, such as a log. The last of several `Genotype(...)` is read.

        Raises:
            UserError: `arch` is none of these, or not an architecture of the space.
        """
        known, name = cls.names(), cls.canonical(arch)
        return cls.of(known[name]._asdict() if name in known else cls.content(arch))

    @classmethod
    def content(cls, arch: str) -> Any:
        """What the text, the file or the folder `arch` holds."""
        if re.match(r"\s*[{|]|.*Genotype\(", arch, re.DOTALL) and not os.path.lexists(arch):
            return cls.decode(arch, arch)
        path = Path(arch)
        try:
            if path.is_dir():
                path = next((file for name in cls.FILES if (file := path / name).exists()), path / cls.FILES[0])
            elif (known := cls.names()) and path.suffix != ".json" and not path.is_file():
                raise UserError(f"unknown architecture {shorten(arch)}: name one of {', '.join(known)}, a JSON file, or Genotype(...)")
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the architecture {shorten(str(path))}: {error.strerror or error}") from None
        return cls.decode(text.decode(json.detect_encoding(text), "replace"), str(path))

    @classmethod
    def decode(cls, text: str, name: str) -> Any:
        """What `text` holds: JSON, or the last `Genotype(...)` or the first dictionary in Python's notation. `name` is for messages."""
        start = text.rfind("Genotype(")
        if start < 0:
            try:
                return files.parse_json(text.removeprefix("\ufeff"))
            except ValueError as error:
                broken, start = f"{shorten(name)} does not hold JSON: {error}", max(text.find("{"), 0)
        else:
            broken = (
                f"cannot read {shorten(text[start:])}: a bracket, a quote or a comma is missing or too many, or quotes are not straight"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's, about "\\d" for example: the error is enough
                return _value(ast.parse(_bracketed(text[start:]), mode="eval").body, cls.FIELDS)
        except (SyntaxError, RecursionError, MemoryError):
            raise UserError(broken) from None
        except (ValueError, TypeError) as error:
            raise UserError(f"cannot read {shorten(text[start:])}: {error}") from None

    @classmethod
    def recognises(cls, content: Any) -> bool:
        """Whether decoded JSON is an architecture of this space."""
        return isinstance(content, dict) and bool(cls(content).cells)

    @classmethod
    def of(cls, content: Any) -> Self:
        """The architecture in decoded JSON, or in the result of a search model's `export`.

        Raises:
            UserError: `content` is not an architecture of the space.
        """
        if not isinstance(content, dict):
            raise UserError("an architecture must be an object in JSON, {key of a choice: what was chosen}")
        return cls(content)

    @classmethod
    def recorded(cls, folder: str | Path) -> Self | None:
        """The latest architecture in a run's folder; None if there is none yet."""
        return cls.of(cls.content(str(folder))) if any((Path(folder) / name).exists() for name in cls.FILES) else None

    @classmethod
    def of_epoch(cls, row: Mapping[str, Any]) -> Self | None:
        """The architecture in an epoch's metrics; None if they have none, as those of `train.py`."""
        found = [row[key] for name in cls.FILES if (key := name.removesuffix(".json")) in row]
        return cls.of(found[0]) if found else None

    # ---- Forms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.json == other.json

    def __str__(self) -> str:
        """A line for the log."""
        return f"architecture = {self._choices}"

    @property
    def choices(self) -> dict[str, Any]:
        """{key of a choice: what was chosen}."""
        return self._choices

    @property
    def json(self) -> dict[str, Any]:
        """The JSON-ready form that `of` reads."""
        return self.choices

    def files(self) -> dict[str, dict[str, Any]]:
        """{file name: JSON-ready content} that a search writes."""
        return {self.FILES[0]: self.json}

    def record(self) -> dict[str, dict[str, Any]]:
        """The entries of an epoch's metrics that `of_epoch` reads."""
        return {name.removesuffix(".json"): content for name, content in self.files().items() if name in self.FILES}

    # ---- Nodes and edges

    @property
    def cells(self) -> dict[str, Cell]:
        """{name: cell} with names of `TITLES`. Empty if the space draws none: then a picture is a table of the choices."""
        return {}

    @classmethod
    def ends(cls, key: str) -> tuple[str, str] | None:
        """(tail, head) of the edge that alphas name `key`, where this does not depend on the architecture; else None."""
        return None

    @property
    def chosen(self) -> dict[str, str]:
        """{edge: operation}, with the same names of edges as the alphas."""
        edges = {edge.key: edge.operation for cell in self.cells.values() for edge in cell.edges}
        return edges or {key: str(chosen) for key, chosen in self.choices.items()}

    def skips(self) -> dict[str, int]:
        """{cell: number of skip connections}."""
        if cells := self.cells:
            return {name: sum(edge.operation == "skip_connect" for edge in cell.edges) for name, cell in cells.items()}
        return {"": sum(chosen == "skip_connect" for chosen in self.choices.values())}

    def distance(self, other: Architecture) -> int | None:
        """The number of choices that differ; None if the two belong to different spaces."""
        if type(self) is not type(other) or self.choices.keys() != other.choices.keys():
            return None
        return sum(chosen != other.choices[key] for key, chosen in self.choices.items())


class Genotyped(Architecture):
    """An architecture that a named tuple `Genotype` describes: lists of edges, (operation, source), and of nodes that are concatenated."""

    FILES: ClassVar[tuple[str, ...]] = ("genotype.json",)

    def __init__(self, genotype: Any) -> None:
        self.genotype = genotype

    def __str__(self) -> str:
        return f"genotype = {self.genotype}"

    @property
    def json(self) -> dict[str, Any]:
        fields = self.genotype._asdict().items()
        return {name: [list(entry) if isinstance(entry, tuple | list) else entry for entry in field] for name, field in fields}

    @classmethod
    def recognises(cls, content: Any) -> bool:
        return isinstance(content, dict) and set(content) == set(cls.FIELDS)

    @classmethod
    def fields(cls, content: Any) -> dict[str, Any]:
        """`content` if it has the fields of the genotype."""
        if not isinstance(content, dict):
            raise UserError(f"an architecture must be an object in JSON with {', '.join(cls.FIELDS)}")
        missing, unknown = [field for field in cls.FIELDS if field not in content], [key for key in content if key not in cls.FIELDS]
        if missing or unknown:
            fields = ", ".join(cls.FIELDS)
            raise UserError(f"an architecture needs {fields}; missing: {missing}, unknown: {shorten(str(unknown))}")
        return content

    def distance(self, other: Architecture) -> int | None:
        """The number of edges, with their operations, that `other` lacks; None if the two belong to different spaces."""
        ours, theirs = ([cell.edges for cell in found.cells.values()] for found in (self, other))
        if type(self) is not type(other) or list(map(len, ours)) != list(map(len, theirs)):
            return None
        return sum((Counter(one) - Counter(two)).total() for one, two in zip(ours, theirs, strict=True))


def cell_of(key: str) -> str:
    """The cell of an edge or a choice by its key: `normal`, `reduce` or `recurrent`, or "" if it belongs to none of them."""
    kind = key.partition("_")[0]
    return kind if kind in TITLES else ""


def entropies(alphas: Alphas) -> dict[str, float]:
    """{cell: entropy of softmaxed alphas in nats, averaged over edges}, from 0 (one weight is 1) to ln(candidates) (all are equal)."""
    by_cell: dict[str, list[float]] = {}
    for edge, weights in alphas.items():
        by_cell.setdefault(cell_of(edge), []).append(-math.fsum(weight * math.log(weight) for weight in weights.values() if weight > 0))
    return {cell: math.fsum(values) / len(values) for cell, values in by_cell.items()}


def is_index(chosen: Any, length: int) -> bool:
    return type(chosen) is int and 0 <= chosen < length


def unmasked(values: list[Any], count: int) -> list[Any]:
    """The indices in a mask over `count` candidates, as NNI 1 writes it: all booleans, or all floats. Other `values` are returned."""
    if len(values) == count and {type(on) for on in values} in ({bool}, {float}):
        return [index for index, on in enumerate(values) if on]
    return values


def _spelling(name: str) -> str:
    return name.casefold().replace("-", "_")


def _bracketed(text: str) -> str:
    """`text` up to the bracket that closes its first one; all of it if none does."""
    depth = 0
    for bracket in re.finditer(r"[()\[\]{}]", text):
        depth += 1 if bracket[0] in "([{" else -1
        if depth == 0:
            return text[: bracket.end()]
    return text


_WRAPPERS = {"array", "int", "int32", "int64", "list", "str_", "tuple"}  # as in np.int64(0) and list(range(2, 6))


def _value(node: ast.AST | None, fields: Sequence[str]) -> Any:
    """The value of a literal, of `range` of integers, or of `Genotype(...)` as the dictionary of its `fields`. Nothing is evaluated."""
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [_value(element, fields) for element in node.elts]
        case ast.Dict():
            return {_value(key, fields): _value(value, fields) for key, value in zip(node.keys, node.values, strict=True)}
        case ast.Call(func=ast.Name(id="Genotype")):
            found = dict(zip(fields, (_value(argument, fields) for argument in node.args), strict=False))
            found |= {keyword.arg or "**": _value(keyword.value, fields) for keyword in node.keywords}
            if len(node.args) + len(node.keywords) != len(fields) or set(found) != set(fields):
                raise ValueError(f"it needs {', '.join(fields)}, each once")
            return found
        case ast.Call(func=ast.Name(id="range"), keywords=[]):
            bounds = [_value(argument, fields) for argument in node.args]
            if not all(type(bound) is int and abs(bound) <= 1000 for bound in bounds):
                raise ValueError("range() takes small integers")
            return list(range(*bounds))
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[only], keywords=[]) if name in _WRAPPERS:
            return _value(only, fields)
        case ast.Name():
            raise ValueError(f"{shorten(node.id)} has no quotes: write '{shorten(node.id)}'")
    raise ValueError("it may contain only names in quotes, numbers, lists and range()")
