"""`Architecture`, the result of a search, with its forms: text, JSON, edges; and the spaces by name, each a subclass.

    Architecture.read("run/").choices                              # {key of a choice: what was chosen}
    load_space("darts").read("DARTS_V2").cells["normal"].edges

A space is imported when its name is asked for. This file does not import torch.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from experiment import cli
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
    """{key of a choice: what was chosen}, in any network with choices. Subclasses are the spaces that are known
    better."""

    FILES: ClassVar[tuple[str, ...]] = ("architecture.json",)  # in a run's folder, the first that is there is read
    FIELDS: ClassVar[tuple[str, ...]] = ()  # of `Genotype(...)` in a text
    NUMBERED: ClassVar[Sequence[str]] = ()  # the operations behind the numbers in alphas
    NETWORK: ClassVar[str] = ""  # module:class of the network with the choices
    WIDTH, DEPTH = "init_channels", "layers"  # its arguments for --init_channels and --layers
    DISCRETE: ClassVar[Mapping[str, Any]] = {}  # its arguments where the network has one architecture

    def __init__(self, choices: Mapping[str, Any]) -> None:
        self._choices = dict(choices)

    # ---- Reading

    @classmethod
    def names(cls) -> Mapping[str, Any]:
        """{name: published architecture}."""
        return {}

    @classmethod
    def canonical(cls, arch: str) -> str:
        """The name that `arch` names, in upper or lower case, with `-` or `_`; or `arch` unchanged, such as a path."""
        spelt = {_spelling(name): name for name in cls.names()}.get(_spelling(arch))
        return arch if spelt is None or os.path.lexists(arch) else spelt

    @classmethod
    def read(cls, arch: str) -> Self:
        """The architecture that `arch` names: one of `names`, the folder of a run, or a text or a file of what `of`
        takes, as JSON or as Python prints it, with any text around it. Of several `Genotype(...)`, the last is read."""
        known, name = cls.names(), cls.canonical(arch)
        return cls.of(known[name]._asdict() if name in known else cls.content(arch))

    @classmethod
    def content(cls, arch: str) -> Any:
        """The decoded content of `arch`: a text, a file or a run's folder."""
        if re.match(r"\s*[{|]|.*Genotype\(", arch, re.DOTALL) and not os.path.lexists(arch):
            return cls.decode(arch, arch)
        path = Path(arch)
        if os.path.isdir(path):
            path = next((file for name in cls.FILES if (file := path / name).exists()), path / cls.FILES[0])
        elif (
            (known := cls.names()) and path.suffix != ".json" and not os.path.isfile(path)
        ):  # pathlib raises for a long name
            raise UserError(
                f"unknown architecture {shorten(arch)}: name one of {', '.join(known)}, a JSON file, or Genotype(...)"
            )
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the architecture {shorten(str(path))}: {error.strerror or error}") from None
        return cls.decode(text.decode(json.detect_encoding(text), "replace"), str(path))

    @classmethod
    def decode(cls, text: str, name: str) -> Any:
        """The decoded content of `text`; `name` is for messages."""
        from architectures.notation import decode

        return decode(text, name, cls.FIELDS)

    @classmethod
    def recognises(cls, content: Any) -> bool:
        """Whether decoded JSON is an architecture of this space."""
        return isinstance(content, dict) and bool(cls(content).cells)

    @classmethod
    def of(cls, content: Any) -> Self:
        """The architecture in decoded JSON, or in the result of a search model's `export`. Raises `UserError` if it is
        not one of this space."""
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
    def text(self) -> str:
        """A text that `read` reads; the architecture's name in a benchmark's table."""
        return json.dumps(self.json, sort_keys=True)

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
        """{name: cell} with names of `TITLES`. Empty if the space draws none: then a picture is a table of the
        choices."""
        return {}

    @classmethod
    def ends(cls, key: str) -> tuple[str, str] | None:
        """(tail, head) of the edge that alphas name `key`; None if it depends on the architecture."""
        return None

    @property
    def chosen(self) -> dict[str, str]:
        """{edge: operation}, with the same names of edges as the alphas."""
        every = [edge for cell in self.cells.values() for edge in cell.edges]
        # Of several operations on an edge, the last one counts, and `none` only if it is alone.
        edges = {edge.key: edge.operation for edge in sorted(every, key=lambda edge: edge.operation != "none")}
        return edges or {key: str(chosen) for key, chosen in self.choices.items()}

    def skips(self) -> dict[str, int]:
        """{cell: number of skip connections}."""
        if cells := self.cells:
            return {name: sum(edge.operation == "skip_connect" for edge in cell.edges) for name, cell in cells.items()}
        return {"": sum(chosen == "skip_connect" for chosen in self.choices.values())}

    def metrics(self, alphas: Alphas) -> dict[str, Any]:
        """The entries of an epoch's metrics: for each cell its skip connections and the entropy of its alphas; the
        alphas, softmaxed; and `record`.

        The entropy is in nats, averaged over edges: from 0 (one weight is 1) to ln(candidates) (all are equal).
        """
        entropies: dict[str, list[float]] = {}
        for edge, weights in alphas.items():
            entropy = -math.fsum(weight * math.log(weight) for weight in weights.values() if weight > 0)
            entropies.setdefault(cell_of(edge), []).append(entropy)
        found: dict[str, Any] = {
            f"entropy_{cell}".strip("_"): statistics.fmean(values) for cell, values in entropies.items()
        }
        found |= {f"skips_{cell}".strip("_"): count for cell, count in self.skips().items()}
        return found | {"alphas": alphas, **self.record()}

    def distance(self, other: Architecture) -> int | None:
        """The number of edges, with their operations, that `other` lacks, or else of choices that differ; None if the
        two belong to different spaces."""
        ours, theirs = ([cell.edges for cell in found.cells.values()] for found in (self, other))
        if type(self) is not type(other) or list(map(len, ours)) != list(map(len, theirs)):
            return None
        if ours:
            return sum((Counter(one) - Counter(two)).total() for one, two in zip(ours, theirs, strict=True))
        if self.choices.keys() != other.choices.keys():
            return None
        return sum(chosen != other.choices[key] for key, chosen in self.choices.items())


def cell_of(key: str) -> str:
    """The cell of an edge or a choice by its key: `normal`, `reduce`, `recurrent`, or "" for none of them."""
    kind = key.partition("_")[0]
    return kind if kind in TITLES else ""


def is_index(chosen: Any, length: int) -> bool:
    return type(chosen) is int and 0 <= chosen < length


def unmasked(values: list[Any], count: int) -> list[Any]:
    """The indices in a mask over `count` candidates, as NNI 1 writes it: all booleans, or all floats. Other `values`
    are returned."""
    if len(values) == count and {type(on) for on in values} in ({bool}, {float}):
        return [index for index, on in enumerate(values) if on]
    return values


def _spelling(name: str) -> str:
    return name.casefold().replace("-", "_")


# ---- Spaces and strategies by name; nas/loading.py builds them

# {name of a space: the class of its architectures}
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
_SPACES = SPACES | {"rnn": "rnn.genotypes:RecurrentCell"}  # no value of --space: rnn/ has its own scripts

SPACE_HELP = f"{', '.join(SPACES)}; or a network with choices of your own, my_space.py:Net"
STRATEGY_HELP = f"{', '.join(STRATEGIES)}; or a strategy of your own, my_strategy.py:Class"


def load_space(name: str) -> type[Architecture]:
    """The class of a space's architectures: `Architecture` itself for a network in a user's file, which is not run."""
    return load(_SPACES[name]) if name in _SPACES else Architecture


def load(path: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def read_architecture(arch: str, space: str) -> Architecture:
    """The architecture that `--arch` names in a space."""
    try:
        other = cli.read_config(arch)["arguments"].get("space")
    except (OSError, ValueError):  # not a run's folder
        other = None
    if isinstance(other, str) and (other == "darts") != (space == "darts"):
        raise UserError(f"{shorten(arch)} is a run in another space: add {shlex.join(['--space', shorten(other)])}")
    return load_space(space).read(arch)
