"""The cells of DARTS as an `Architecture`: reads published names, the notations of other codes and NNI's dictionaries.

This file does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import msgspec

import genotypes
from architectures import Architecture, Cell, Edge
from experiment.errors import UserError, shown
from genotypes import CELLS, PRIMITIVES, Edges, Genotype, edge_key, triples

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
        return str(self.of(self.json).genotype)  # the same for lists, tuples and ranges

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
    NOTATIONS = ("normal/", "reduce/", "normal_n2", "reduce_n2")  # NNI's: of its tutorial, and of its choices
    NETWORK = "nas.spaces.darts:DartsNetwork"
    genotype: Genotype

    @classmethod
    def names(cls) -> Mapping[str, Genotype]:
        return names()

    @classmethod
    def of(cls, content: Any) -> Self:
        """The cells in the result of a search model's `export`, or in decoded JSON.

        Args:
            content: a `Genotype`; a dictionary of its fields, where edges may be in the notations of
                `notation.per_node`; the flat dictionary of NNI's DARTS space, `{"normal/op_2_0": "sep_conv_3x3",
                "normal/input_2_0": 1, ...}`; or choices of NNI 2.0 and of `nas/spaces/darts.py`, `{"normal_n2_p0":
                "sepconv3x3", ..., "normal_n2_switch": ["normal_n2_p0", "normal_n2_p1"], ...}`, where edges that are in
                no switch may be `[]`, and NNI 1's indices or masks may replace names.
        """
        if isinstance(content, Genotype):
            return cls(content)
        if isinstance(content, dict) and any(str(key).startswith(cls.NOTATIONS) for key in content):
            from architectures.notation import from_nni

            return cls(from_nni(content))
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
        """Choices, genotype and NNI's form; only the genotype for cells with more or fewer than two edges into a node
        (`--gate_threshold`)."""
        if any(edge[0] == "none" or len(edge) == 3 for edge in [*self.genotype.normal, *self.genotype.reduce]):
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


def graph(name: str, edges: Edges, concat: Sequence[int], keys: Sequence[str] = ()) -> Cell:
    """A cell in which every node is the sum of its edges; `edges` as in `Genotype.normal`."""
    found = triples(edges)
    nodes = [_node_name(node) for node in range(found[-1][1] + 1)]
    kinds = dict.fromkeys(nodes[:2], "input") | dict.fromkeys(nodes[2:], "node") | {"c_{k}": "output"}
    keys = keys or [edge_key(name, node, source) for _, node, source in found]
    named = [
        Edge(key, nodes[source], nodes[node], operation)
        for key, (operation, node, source) in zip(keys, found, strict=True)
    ]
    return Cell(kinds, named, [nodes[node] for node in concat])


def of_nodes(nodes: Sequence[Sequence[tuple[str, int]]]) -> Edges:
    """The edges of a cell whose nodes 2, 3, ... have these edges: pairs if no node has more than two, else triples.
    Missing ones of two become `none`."""
    filled = []
    for node in nodes:
        pairs = sorted([*node, *[("none", 0), ("none", 1)][len(node) :]], key=lambda pair: pair[0] == "none")
        filled.append(pairs[: max(2, sum(operation != "none" for operation, _ in pairs))])
    if all(len(pairs) == 2 for pairs in filled):
        return [pair for pairs in filled for pair in pairs]
    return [(operation, node, source) for node, pairs in enumerate(filled, 2) for operation, source in pairs]


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
    """A `Genotype` of these fields, whose edges may be in other notations (see `notation.per_node`). Raises `UserError`
    if one of its cells cannot be built, or if only `none` leads to its output."""
    try:
        return Genotype(*_checked("normal", normal, normal_concat), *_checked("reduce", reduce, reduce_concat))
    except (msgspec.ValidationError, TypeError) as error:
        raise UserError(
            f"a cell must be a list of pairs (operation, input node), and a list of nodes: {error}"
        ) from None


def _checked(cell: str, edges: Any, concat: Any) -> tuple[Edges, list[int]]:
    """The edges and the concatenated nodes of a cell."""
    try:
        checked: Edges = msgspec.convert(edges, list[tuple[str, int]])
    except msgspec.ValidationError:
        from architectures.notation import per_node

        if (found := per_node(cell, edges, list(concat))) is None:
            raise
        checked, concat = found
    outputs = msgspec.convert(list(concat), list[int])
    if not checked or (len(checked[0]) == 2 and len(checked) % 2):
        raise UserError(f"the {cell} cell has {len(checked)} edges: it needs two for each node")
    reached = {0, 1}  # by a path from the cell's inputs that is not `none`
    for edge, (operation, node, source) in enumerate(triples(checked)):
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
    if not outputs or sorted(outputs) != [other for other in range(2, node + 1) if other in outputs]:
        raise UserError(f"{cell}_concat must list nodes from 2 to {node}, each at most once, not {shown(outputs)}")
    if reached.isdisjoint(outputs):
        raise UserError(f"the {cell} cell's output is always 0: every path to it leads through the operation none")
    return checked, outputs


# ---- NNI's dictionary


def to_nni(genotype: Genotype) -> dict[str, str | int]:
    """The dictionary of NNI's DARTS tutorial: `<cell>/op_<node>_<edge>` and `<cell>/input_<node>_<edge>`, nodes from 2,
    edges 0 and 1."""
    found: dict[str, str | int] = {}
    for cell, edges, _ in _whole(genotype):
        for edge, (operation, source) in enumerate(edges):
            found |= zip(nni_keys(cell, edge), (operation, source), strict=True)
    return found


def nni_keys(cell: str, edge: int) -> tuple[str, str]:
    """The keys of an edge's operation and source in NNI's dictionary."""
    place = f"{edge // 2 + 2}_{edge % 2}"
    return f"{cell}/op_{place}", f"{cell}/input_{place}"


def _whole(genotype: Genotype) -> list[tuple[str, list[tuple[str, int]], list[int]]]:
    """(cell, edges, nodes) of both cells, which must have two edges into each node and concatenate all nodes."""
    found = []
    for cell, edges, concat in zip(CELLS, genotype[::2], genotype[1::2], strict=True):
        named = triples(edges)
        nodes = list(range(2, named[-1][1] + 1))
        if sorted(concat) != nodes or len(named) != 2 * len(nodes):
            raise UserError(
                f"choices and NNI's dictionary concatenate nodes {nodes} of the {cell} cell, with two edges each; this "
                f"one has {len(named)} edges and concatenates {list(concat)}"
            )
        found.append((cell, [(operation, source) for operation, _, source in named], nodes))
    return found
