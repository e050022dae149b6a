"""The cells of DARTS as an `Architecture`: reads published names, the notations of other codes and NNI's dictionaries.

This file does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import msgspec

import genotypes
from architectures import Architecture, Cell, Edge, is_index, unmasked
from experiment.errors import UserError, shorten, shown
from genotypes import CELLS, PRIMITIVES, Genotype, edge_key

# NNI's names for operations, which choices use. Other operations have the same name in both.
CHOICES = {
    "maxpool": "max_pool_3x3",
    "avgpool": "avg_pool_3x3",
    "skipconnect": "skip_connect",
    "sepconv3x3": "sep_conv_3x3",
    "sepconv5x5": "sep_conv_5x5",
    "dilconv3x3": "dil_conv_3x3",
    "dilconv5x5": "dil_conv_5x5",
}
NNI_NAMES = {operation: choice for choice, operation in CHOICES.items()}

# All operations that a genotype may contain: the candidates, and those of published cells.
OPERATIONS = list(dict.fromkeys([*PRIMITIVES, "none", *CHOICES.values(), "sep_conv_7x7", "conv_7x1_1x7"]))

# How the keys of NNI's dictionaries begin: that of its tutorial, and that of its choices.
_NNI = tuple(f"{cell}/" for cell in CELLS)
_CHOICES = tuple(f"{cell}_n2" for cell in CELLS)


def names() -> dict[str, Genotype]:
    """{name: published cells}: every genotype in `genotypes.py` and `published.py`."""
    from architectures import published

    both = vars(genotypes) | vars(published)
    return {name: value for name, value in both.items() if isinstance(value, Genotype)}


class Genotyped(Architecture):
    """An architecture that a named tuple `Genotype` describes: lists of edges, (operation, source), and of nodes that
    are concatenated."""

    FILES: ClassVar[tuple[str, ...]] = ("genotype.json",)
    NOTATIONS: ClassVar[tuple[str, ...]] = ()  # how keys begin in notations other than `FIELDS`

    def __init__(self, genotype: Any) -> None:
        self.genotype = genotype

    def __str__(self) -> str:
        return f"genotype = {self.genotype}"

    @property
    def text(self) -> str:
        return str(self.genotype)

    @property
    def json(self) -> dict[str, Any]:
        return {
            name: [list(entry) if isinstance(entry, tuple | list) else entry for entry in field]
            for name, field in self.genotype._asdict().items()
        }

    @classmethod
    def recognises(cls, content: Any) -> bool:
        return isinstance(content, dict) and any(
            key in cls.FIELDS or str(key).startswith(cls.NOTATIONS) for key in content
        )

    @classmethod
    def fields(cls, content: Any) -> dict[str, Any]:
        """`content` if it has the fields of the genotype."""
        if not isinstance(content, dict) or set(content) != set(cls.FIELDS):
            raise UserError(f"an architecture must be an object with {', '.join(cls.FIELDS)}, not {shown(content)}")
        return content


class Cells(Genotyped):
    """A normal and a reduction cell; `genotype` is the `Genotype`."""

    FILES = ("genotype.json", "architecture.json")
    FIELDS = Genotype._fields
    NOTATIONS = _NNI + _CHOICES
    NETWORK = "nas.spaces.darts:DartsNetwork"
    genotype: Genotype

    @classmethod
    def names(cls) -> Mapping[str, Genotype]:
        return names()

    @classmethod
    def of(cls, content: Any) -> Self:
        """The cells in the result of a search model's `export`, or in decoded JSON.

        Args:
            content: a `Genotype`; a dictionary of its fields, where edges may be in other notations (see `_in_pairs`);
                the flat dictionary of NNI's DARTS space, `{"normal/op_2_0": "sep_conv_3x3", "normal/input_2_0": 1,
                ...}`; or choices of NNI 2.0 and of `nas/spaces/darts.py`, `{"normal_n2_p0": "sepconv3x3", ...,
                "normal_n2_switch": ["normal_n2_p0", "normal_n2_p1"], ...}`, where edges that are in no switch may be
                `[]`, and NNI 1's indices or masks may replace names.
        """
        if isinstance(content, Genotype):
            return cls(content)
        keys = [str(key) for key in content] if isinstance(content, dict) else []
        for beginnings, read in ((_NNI, _from_nni), (_CHOICES, _from_choices)):
            if any(key.startswith(beginnings) for key in keys):
                return cls(read(content))
        return cls(check(**cls.fields(content)))

    @property
    def choices(self) -> dict[str, Any]:
        """The cells as choices of `nas/spaces/darts.py`, with `[]` for unused edges. Raises `UserError` if this space
        does not contain the cells: unknown operations, two edges from one node, or nodes not concatenated."""
        candidates = [primitive for primitive in PRIMITIVES if primitive != "none"]
        choices: dict[str, str | list[str]] = {}
        for cell, edges, nodes in _whole(self.genotype):
            for node in nodes:
                used = {source: operation for operation, source in edges[2 * node - 4 : 2 * node - 2]}
                if len(used) < 2 or not set(used.values()) <= set(candidates):
                    raise UserError(
                        f"node {node} of the {cell} cell is not of the DARTS space: it takes two different nodes, each "
                        f"by one of {', '.join(candidates)}"
                    )
                for source in range(node):
                    operation = used.get(source)
                    choices[edge_key(cell, node, source)] = NNI_NAMES.get(operation, operation) if operation else []
                choices[switch_key(cell, node)] = [edge_key(cell, node, source) for source in sorted(used)]
        return choices

    def files(self) -> dict[str, dict[str, Any]]:
        """Choices, genotype and NNI's form; only the genotype for cells in which `none` replaces an edge
        (`--gate_threshold`)."""
        if any(name == "none" for name, _ in [*self.genotype.normal, *self.genotype.reduce]):
            return {"genotype.json": self.json}
        return {"architecture.json": self.choices, "genotype.json": self.json, "nni.json": to_nni(self.genotype)}

    @property
    def cells(self) -> dict[str, Cell]:
        normal, normal_concat, reduce, reduce_concat = self.genotype
        return {"normal": graph("normal", normal, normal_concat), "reduce": graph("reduce", reduce, reduce_concat)}

    @classmethod
    def ends(cls, key: str) -> tuple[str, str] | None:
        edge = edge_of(key)
        return edge and (_node_name(edge[2]), _node_name(edge[1]))


def graph(name: str, pairs: Sequence[tuple[str, int]], concat: Sequence[int], keys: Sequence[str] = ()) -> Cell:
    """A cell in which every node is the sum of two edges; `pairs` as in `Genotype.normal`."""
    nodes = [_node_name(node) for node in range(len(pairs) // 2 + 2)]
    kinds = dict.fromkeys(nodes[:2], "input") | dict.fromkeys(nodes[2:], "node") | {"c_{k}": "output"}
    keys = keys or [edge_key(name, index // 2 + 2, source) for index, (_, source) in enumerate(pairs)]
    edges = [
        Edge(keys[index], nodes[source], nodes[index // 2 + 2], operation)
        for index, (operation, source) in enumerate(pairs)
    ]
    return Cell(kinds, edges, [nodes[node] for node in concat])


def _node_name(node: int) -> str:
    """The name of a node in pictures: for the two inputs as in the paper, then 0, 1, ..."""
    return f"c_{{k-{2 - node}}}" if node < 2 else str(node - 2)


def edge_of(key: str) -> tuple[str, int, int] | None:
    """(cell, node, source): the inverse of `edge_key`; None if `key` is not such a name."""
    match = re.fullmatch(r"(normal|reduce|recurrent)_n(\d{1,3})_p(\d{1,3})", key, re.ASCII)
    return (match[1], int(match[2]), int(match[3])) if match else None


def switch_key(cell: str, node: int) -> str:
    """The key of the choice between the inputs of a node."""
    return f"{cell}_n{node}_switch"


# ---- Checks


def check(normal: Any, normal_concat: Any, reduce: Any, reduce_concat: Any) -> Genotype:
    """A `Genotype` of these fields, whose edges may be in other notations (see `_in_pairs`). Raises `UserError` if one
    of its cells cannot be built, or if only `none` leads to its output."""
    try:
        return Genotype(*_checked("normal", normal, normal_concat), *_checked("reduce", reduce, reduce_concat))
    except (msgspec.ValidationError, TypeError) as error:
        raise UserError(
            f"a cell must be a list of pairs (operation, input node), and a list of nodes: {error}"
        ) from None


def _checked(cell: str, edges: Any, concat: Any) -> tuple[list[tuple[str, int]], list[int]]:
    """The edges and the concatenated nodes of a cell."""
    edges, concat = _in_pairs(cell, edges, list(concat))
    pairs, outputs = msgspec.convert(edges, list[tuple[str, int]]), msgspec.convert(concat, list[int])
    if not pairs or len(pairs) % 2:
        raise UserError(f"the {cell} cell has {len(pairs)} edges: it needs two for each node")
    reached = {0, 1}  # by a path from the cell's inputs that is not `none`
    for edge, (operation, source) in enumerate(pairs):
        node = edge // 2 + 2
        if operation not in OPERATIONS:
            raise UserError(
                f"unknown operation {shown(operation)} in the {cell} cell: known are {', '.join(OPERATIONS)}"
            )
        if not 0 <= source < node:
            raise UserError(
                f"edge {edge} of the {cell} cell takes node {shown(source)}; node {node} takes one of 0 to {node - 1}"
            )
        if operation != "none" and source in reached:
            reached.add(node)
    last = len(pairs) // 2 + 1
    if not outputs or sorted(outputs) != [node for node in range(2, last + 1) if node in outputs]:
        raise UserError(f"{cell}_concat must list nodes from 2 to {last}, each at most once, not {shown(outputs)}")
    if reached.isdisjoint(outputs):
        raise UserError(f"the {cell} cell's output is always 0: every path to it leads through the operation none")
    return pairs, outputs


# ---- Other notations


def _in_pairs(cell: str, edges: Any, concat: list[Any]) -> tuple[Any, list[Any]]:
    """`edges` as two pairs (operation, source) per node, and the nodes of `concat` that have edges.

    Other codes write pairs nested per node, or triples (operation, node, source). There, a node may have fewer than two
    edges: missing ones become `none`, edges from a node without any are dropped, and such nodes are not concatenated.
    """
    if triples := _read_as(list[tuple[str, int, int]], edges):
        last = max(head for _, head, _ in triples)
        nodes = [[(name, source) for name, head, source in triples if head == node] for node in range(2, last + 1)]
        if sum(map(len, nodes)) < len(triples):
            raise UserError(f"the {cell} cell has an edge (operation, node, source) to a node before 2, an input")
    elif not (nodes := _read_as(list[list[tuple[str, int]]], edges)):
        return edges, concat
    empty = [node for node, pairs in enumerate(nodes, 2) if not pairs]
    nodes = [[pair for pair in pairs if pair[1] not in empty] for pairs in nodes]
    if max(map(len, nodes)) > 2:
        raise UserError(f"the {cell} cell has nodes with more than two edges: each node takes two")
    pairs = [pair for pairs in nodes for pair in (pairs + [("none", 0), ("none", 1)][len(pairs) :])]
    return pairs, [node for node in concat if node not in empty]


def _read_as(kind: Any, edges: Any) -> Any:
    try:
        return msgspec.convert(edges, kind)
    except msgspec.ValidationError:
        return None


def to_nni(genotype: Genotype) -> dict[str, str | int]:
    """The dictionary of NNI's DARTS tutorial: `<cell>/op_<node>_<edge>` and `<cell>/input_<node>_<edge>`, nodes from 2,
    edges 0 and 1."""
    found: dict[str, str | int] = {}
    for cell, edges, _ in _whole(genotype):
        for edge, (operation, source) in enumerate(edges):
            found |= zip(_nni_keys(cell, edge), (operation, source), strict=True)
    return found


def _nni_keys(cell: str, edge: int) -> tuple[str, str]:
    """The keys of an edge's operation and source in NNI's dictionary."""
    place = f"{edge // 2 + 2}_{edge % 2}"
    return f"{cell}/op_{place}", f"{cell}/input_{place}"


def _from_nni(content: dict[str, Any]) -> Genotype:
    """The inverse of `to_nni`. NNI writes a single input with or without a list."""
    cells, read = {}, []
    for cell in CELLS:
        count = sum(str(key).startswith(f"{cell}/op_") for key in content)
        pairs = [_nni_keys(cell, edge) for edge in range(count)]
        cells[cell] = [[_only(content.get(key)) for key in pair] for pair in pairs]
        read += [key for pair in pairs for key in pair]
    return _all_read(cells, content, read)


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _from_choices(content: dict[str, Any]) -> Genotype:
    """The inverse of `Cells.choices`, where NNI 1's indices and masks may replace names (see `unmasked`)."""
    known = {NNI_NAMES.get(operation, operation): operation for operation in OPERATIONS if operation != "none"}
    cells: dict[str, list] = {cell: [] for cell in CELLS}
    read = []
    for cell, edges in cells.items():
        while (switch := switch_key(cell, len(edges) // 2 + 2)) in content:
            node = len(edges) // 2 + 2
            keys = [edge_key(cell, node, source) for source in range(node)]
            read += [switch, *keys]
            chosen = _picked(content[switch], keys)
            if [key in keys for key in chosen] != [True, True] or chosen[0] == chosen[1]:
                raise UserError(f"{switch} must name two of {', '.join(keys)}, not {shown(content[switch])}")
            for key in chosen:
                picked = _picked(content.get(key), list(CHOICES))
                if picked not in [[name] for name in known]:
                    raise UserError(f"{key} is {shown(content.get(key))}: known are {', '.join(known)}")
                edges.append((known[picked[0]], keys.index(key)))
    return _all_read(cells, content, read)


def _picked(chosen: Any, candidates: Sequence[str]) -> list[Any]:
    """The names of what was chosen: one or several names, indices, or a mask."""
    listed = unmasked(chosen if isinstance(chosen, list) else [chosen], len(candidates))
    return [candidates[entry] if is_index(entry, len(candidates)) else entry for entry in listed]


def _all_read(cells: dict[str, list], content: dict[str, Any], read: list[str]) -> Genotype:
    """The cells with these edges, all nodes concatenated, if there are no other keys than those that were read."""
    if unexpected := [str(key) for key in content if key not in read]:
        raise UserError(f"unexpected keys in NNI's architecture: {shorten(', '.join(unexpected))}")
    concat = {f"{cell}_concat": list(range(2, len(edges) // 2 + 2)) for cell, edges in cells.items()}
    return check(**cells, **concat)


def _whole(genotype: Genotype) -> list[tuple[str, Sequence[tuple[str, int]], list[int]]]:
    """(cell, edges, nodes) of both cells, which must concatenate all their nodes."""
    found = []
    for cell, edges, concat in zip(CELLS, genotype[::2], genotype[1::2], strict=True):
        nodes = list(range(2, len(edges) // 2 + 2))
        if sorted(concat) != nodes:
            raise UserError(
                f"choices and NNI's dictionary concatenate nodes {nodes} of the {cell} cell, this one concatenates "
                f"{list(concat)}"
            )
        found.append((cell, edges, nodes))
    return found
