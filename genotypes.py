"""What a cell is: `Genotype`, the primitives of the search, the published cells, and reading and writing genotypes.

A cell has two inputs (nodes 0 and 1: the outputs of the two cells before it) and intermediate nodes 2, 3, ... Node i adds up the results of
two edges; edges 2(i - 2) and 2(i - 2) + 1 of the list are its own, each an operation and the earlier node that it is applied to. The
outputs of the nodes in `*_concat` are concatenated along the channels (DARTS, section 2.1). This file needs no torch.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import untrusted
from cli import UserError, shorten, shown


class Genotype(NamedTuple):
    """A normal and a reduction cell: lists of (operation, input node), and the nodes that are concatenated."""

    normal: Sequence[tuple[str, int]]
    normal_concat: Sequence[int]
    reduce: Sequence[tuple[str, int]]
    reduce_concat: Sequence[int]


# The candidates of every edge in the search, in the order of the alphas' columns (DARTS, section 3.1).
PRIMITIVES = [
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
]

# All that a genotype may name: the keys of `operations.OPS`.
OPERATIONS = [*PRIMITIVES, "sep_conv_7x7", "conv_7x1_1x7"]

# Intermediate nodes of a cell, at most: more than any published cell has, and few enough that a network of them is built in seconds.
MOST_NODES = 32

# What NNI, and so nas/spaces/darts.py, calls the candidates of an edge.
CHOICES = {
    "maxpool": "max_pool_3x3",
    "avgpool": "avg_pool_3x3",
    "skipconnect": "skip_connect",
    "sepconv3x3": "sep_conv_3x3",
    "sepconv5x5": "sep_conv_5x5",
    "dilconv3x3": "dil_conv_3x3",
    "dilconv5x5": "dil_conv_5x5",
}

# Zoph et al. 2018 (1707.07012), the cell NASNet-A.
NASNet = Genotype(
    normal=[
        ("sep_conv_5x5", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_5x5", 0),
        ("sep_conv_3x3", 0),
        ("avg_pool_3x3", 1),
        ("skip_connect", 0),
        ("avg_pool_3x3", 0),
        ("avg_pool_3x3", 0),
        ("sep_conv_3x3", 1),
        ("skip_connect", 1),
    ],
    normal_concat=[2, 3, 4, 5, 6],
    reduce=[
        ("sep_conv_5x5", 1),
        ("sep_conv_7x7", 0),
        ("max_pool_3x3", 1),
        ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1),
        ("sep_conv_5x5", 0),
        ("skip_connect", 3),
        ("avg_pool_3x3", 2),
        ("sep_conv_3x3", 2),
        ("max_pool_3x3", 1),
    ],
    reduce_concat=[4, 5, 6],
)

# Real et al. 2019 (1802.01548), the cell AmoebaNet-A.
AmoebaNet = Genotype(
    normal=[
        ("avg_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0),
        ("avg_pool_3x3", 3),
        ("sep_conv_3x3", 1),
        ("skip_connect", 1),
        ("skip_connect", 0),
        ("avg_pool_3x3", 1),
    ],
    normal_concat=[4, 5, 6],
    reduce=[
        ("avg_pool_3x3", 0),
        ("sep_conv_3x3", 1),
        ("max_pool_3x3", 0),
        ("sep_conv_7x7", 2),
        ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("conv_7x1_1x7", 0),
        ("sep_conv_3x3", 5),
    ],
    reduce_concat=[3, 4, 6],
)

# Liu et al. 2019 (1806.09055), first order.
DARTS_V1 = Genotype(
    normal=[
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("skip_connect", 2),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("avg_pool_3x3", 0),
    ],
    reduce_concat=[2, 3, 4, 5],
)

# The same, second order: the cell of the paper's 2.76% test error (Figures 4 and 5).
DARTS_V2 = Genotype(
    normal=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ],
    reduce_concat=[2, 3, 4, 5],
)

DARTS = DARTS_V2

# The two cells of NNI's DARTS tutorial: from its plain evaluator, and from the paper's recipe (97.12% after 600 epochs, by its authors).
NNI_BASIC = Genotype(
    normal=[
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 2),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("max_pool_3x3", 0),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("dil_conv_5x5", 2),
        ("sep_conv_3x3", 0),
        ("dil_conv_5x5", 2),
        ("sep_conv_5x5", 1),
        ("sep_conv_5x5", 4),
        ("dil_conv_5x5", 2),
    ],
    reduce_concat=[2, 3, 4, 5],
)

NNI_FULL = Genotype(
    normal=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 0),
        ("max_pool_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("sep_conv_5x5", 1),
        ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 0),
        ("sep_conv_3x3", 2),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
    ],
    reduce_concat=[2, 3, 4, 5],
)

KNOWN = {
    "NASNet": NASNet,
    "AmoebaNet": AmoebaNet,
    "DARTS_V1": DARTS_V1,
    "DARTS_V2": DARTS_V2,
    "DARTS": DARTS,
    "NNI_BASIC": NNI_BASIC,
    "NNI_FULL": NNI_FULL,
}


def read(arch: str) -> Genotype:
    """The genotype that `arch` stands for, whatever its form.

    Args:
        arch: a name in `KNOWN`; a JSON file (see `from_json`) or the folder of a run that holds `genotype.json`; or the text
            `Genotype(normal=[...], ...)`, as a search logs it, with or without what stands before it on its line.

    Raises:
        UserError: `arch` is none of these, or not a valid genotype.
    """
    if arch in KNOWN:
        return KNOWN[arch]
    if "Genotype(" in arch:
        return parse(arch[arch.index("Genotype(") :])
    path = Path(arch)
    try:
        if path.is_dir():
            path = path / "genotype.json"
        if path.suffix != ".json" and not path.is_file():
            raise UserError(f"unknown architecture {shorten(arch)}: name one of {', '.join(KNOWN)}, a JSON file, or Genotype(...)")
        content = untrusted.read_json(path)
    except OSError as error:
        raise UserError(f"cannot read the architecture {shorten(arch)}: {error.strerror or error}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{shorten(arch)} does not hold JSON: {error}") from None
    return from_json(content)


def parse(text: str) -> Genotype:
    """The genotype that `repr` prints, parsed as a literal, never evaluated.

    Args:
        text: `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=[2, 3, 4, 5])`.

    Raises:
        UserError: anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of "\\d" and the like: the error says enough
            call = ast.parse(text.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"):
            raise ValueError("it is not one Genotype(...)")
        fields = dict(zip(Genotype._fields, map(_literal, call.args), strict=False))
        fields |= {keyword.arg or "**": _literal(keyword.value) for keyword in call.keywords}
        if len(call.args) + len(call.keywords) != 4 or set(fields) != set(Genotype._fields):
            raise ValueError(f"it needs {', '.join(Genotype._fields)}, each once")
    except UserError:
        raise
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"cannot parse the genotype {shorten(text)}: {error}") from None
    return check(**fields)


def _literal(node: ast.expr) -> Any:
    """A Python literal, or `range` of integers, which is how the original prints `*_concat`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        bounds = [ast.literal_eval(argument) for argument in node.args]
        if not all(type(bound) is int and abs(bound) <= 1000 for bound in bounds):
            raise ValueError("range() takes small integers")
        return list(range(*bounds))
    return ast.literal_eval(node)


_NNI_KEYS = ("normal/", "reduce/")
_CHOICE_KEYS = ("normal_n2", "reduce_n2")


def is_meant(content: dict[str, Any]) -> bool:
    """Whether decoded JSON is meant as a genotype, in any of the forms that `from_json` reads, be it right or wrong."""
    return any(key in Genotype._fields or key.startswith(_NNI_KEYS + _CHOICE_KEYS) for key in map(str, content))


def from_json(content: Any) -> Genotype:
    """The genotype in decoded JSON.

    Args:
        content: `{"normal": [["sep_conv_3x3", 0], ...], "normal_concat": [2, ...], "reduce": [...], "reduce_concat": [...]}`, or the
            flat dictionary of NNI's DARTS space, `{"normal/op_2_0": "sep_conv_3x3", "normal/input_2_0": 1, ...}`, or that of NNI 2.0
            and of `nas/`, `{"normal_n2_p0": "sepconv3x3", ..., "normal_n2_switch": ["normal_n2_p0", "normal_n2_p1"], ...}`.

    Raises:
        UserError: `content` is no valid genotype.
    """
    if not isinstance(content, dict):
        raise UserError("an architecture's JSON must be an object, with normal, normal_concat, reduce and reduce_concat")
    if any(key.startswith(_NNI_KEYS) for key in map(str, content)):
        return _from_nni(content)
    if any(key.startswith(_CHOICE_KEYS) for key in map(str, content)):
        return _from_choices(content)
    missing = [field for field in Genotype._fields if field not in content]
    unknown = [key for key in content if key not in Genotype._fields]
    if missing or unknown:
        raise UserError(f"an architecture's JSON needs {', '.join(Genotype._fields)}; missing: {missing}, unknown: {shorten(str(unknown))}")
    return check(**content)


def to_json(genotype: Genotype) -> dict[str, list]:
    """The JSON-ready form of `genotype`, which `from_json` reads."""
    return {
        "normal": [[operation, node] for operation, node in genotype.normal],
        "normal_concat": list(genotype.normal_concat),
        "reduce": [[operation, node] for operation, node in genotype.reduce],
        "reduce_concat": list(genotype.reduce_concat),
    }


def _from_nni(content: dict[str, Any]) -> Genotype:
    """NNI's flat dictionary: `<cell>/op_<node>_<edge>` and `<cell>/input_<node>_<edge>`, nodes from 2, edges 0 and 1; all concatenated."""
    remaining = dict(content)
    cells: dict[str, list] = {}
    for cell in ("normal", "reduce"):
        edges: list[tuple[Any, Any]] = []
        while f"{cell}/op_{len(edges) // 2 + 2}_{len(edges) % 2}" in remaining:
            suffix = f"{len(edges) // 2 + 2}_{len(edges) % 2}"
            operation = remaining.pop(f"{cell}/op_{suffix}")
            node = remaining.pop(f"{cell}/input_{suffix}", None)
            if isinstance(node, list) and len(node) == 1:  # NNI writes a choice of one input either way
                node = node[0]
            edges.append((operation, node))
        cells[cell] = edges
        cells[f"{cell}_concat"] = list(range(2, len(edges) // 2 + 2))
    if remaining:
        raise UserError(f"unexpected keys in NNI's architecture: {shorten(', '.join(map(str, remaining)))}")
    return check(**cells)


def _from_choices(content: dict[str, Any]) -> Genotype:
    """NNI 2.0's: an operation for every edge, `<cell>_n<node>_p<source>`, and the two that are used, `<cell>_n<node>_switch`."""
    remaining = dict(content)
    cells: dict[str, list] = {}
    for cell in ("normal", "reduce"):
        edges: list[tuple[Any, int]] = []
        node = 2
        while (switch := f"{cell}_n{node}_switch") in remaining:
            if node > MOST_NODES + 1:
                raise UserError(f"the {cell} cell has more nodes than a cell can have, {MOST_NODES}")
            keys = [f"{cell}_n{node}_p{source}" for source in range(node)]
            operations = [remaining.pop(key, None) for key in keys]
            chosen = remaining.pop(switch)
            if not isinstance(chosen, list) or len(chosen) != 2 or not all(key in keys for key in chosen) or chosen[0] == chosen[1]:
                raise UserError(f"{switch} must name two of {', '.join(keys)}, not {shown(chosen)}")
            for source in map(keys.index, chosen):
                operation = operations[source]
                if not isinstance(operation, str) or operation not in CHOICES:
                    raise UserError(f"{keys[source]} is {shown(operation)}: known are {', '.join(CHOICES)}")
                edges.append((CHOICES[operation], source))
            node += 1
        cells[cell] = edges
        cells[f"{cell}_concat"] = list(range(2, node))
    if remaining:
        raise UserError(f"unexpected keys in NNI's architecture: {shorten(', '.join(map(str, remaining)))}")
    return check(**cells)


def to_choices(genotype: Genotype) -> dict[str, str | list[str]]:
    """The architecture of the space `nas/spaces/darts.py` that is `genotype`; an edge that it does not use gets a skip connection.

    Raises:
        UserError: the space lacks it: another operation, a node that takes one node twice, or not all nodes concatenated.
    """
    names = {operation: name for name, operation in CHOICES.items()}
    architecture: dict[str, str | list[str]] = {}
    for cell, edges, concat in (
        ("normal", genotype.normal, genotype.normal_concat),
        ("reduce", genotype.reduce, genotype.reduce_concat),
    ):
        nodes = range(2, len(edges) // 2 + 2)
        if sorted(concat) != list(nodes):
            raise UserError(f"the DARTS space concatenates nodes {list(nodes)} of the {cell} cell, not {list(concat)}")
        for node in nodes:
            used = {source: operation for operation, source in edges[2 * node - 4 : 2 * node - 2]}
            if len(used) < 2:
                raise UserError(f"node {node} of the {cell} cell takes one node twice: in the DARTS space, it takes two")
            unknown = [operation for operation in used.values() if operation not in names]
            if unknown:
                raise UserError(f"{unknown[0]} is no operation of the DARTS space: known are {', '.join(names)}")
            architecture |= {f"{cell}_n{node}_p{source}": names[used.get(source, "skip_connect")] for source in range(node)}
            architecture[f"{cell}_n{node}_switch"] = [f"{cell}_n{node}_p{source}" for source in sorted(used)]
    return architecture


def check(normal: Any, normal_concat: Any, reduce: Any, reduce_concat: Any) -> Genotype:
    """A `Genotype` of these parts, if they make two cells that can be built.

    Raises:
        UserError: an unknown operation, a node that does not exist yet, an odd number of edges, more nodes than `MOST_NODES`, no edges or
            outputs at all, or an output that nothing but `none` leads to.
    """

    def edges(cell: str, pairs: Any) -> list[tuple[str, int]]:
        if not isinstance(pairs, list | tuple) or not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise UserError(f"the {cell} cell must be a list of pairs (operation, input node)")
        if len(pairs) > 2 * MOST_NODES:
            raise UserError(f"the {cell} cell has {len(pairs)} edges: it can have {2 * MOST_NODES}, two for each of {MOST_NODES} nodes")
        if len(pairs) % 2:
            raise UserError(f"the {cell} cell has {len(pairs)} edges: each node takes two, so their number must be even")
        for edge, (operation, node) in enumerate(pairs):
            if not isinstance(operation, str) or operation not in OPERATIONS:
                raise UserError(f"unknown operation {shown(operation)} in the {cell} cell: known are {', '.join(OPERATIONS)}")
            newest = edge // 2 + 1
            if type(node) is not int or not 0 <= node <= newest:
                raise UserError(
                    f"edge {edge} of the {cell} cell takes node {shown(node)}; node {newest + 1} can only take nodes 0 to {newest}"
                )
        return [(operation, node) for operation, node in pairs]

    def concat(cell: str, nodes: Any, edge_count: int) -> list[int]:
        last = edge_count // 2 + 1
        if not isinstance(nodes, list | tuple) or not nodes or not all(type(node) is int and 2 <= node <= last for node in nodes):
            raise UserError(f"{cell}_concat must list nodes from 2 to {last}, not {shown(nodes)}")
        if len(set(nodes)) != len(nodes):
            raise UserError(f"{cell}_concat names a node twice: {shown(nodes)}")
        return list(nodes)

    def alive(cell: str, pairs: list[tuple[str, int]], outputs: Sequence[int]) -> None:
        reached = {0, 1}  # by a path from the cell's inputs that is not `none`
        for edge, (operation, node) in enumerate(pairs):
            if operation != "none" and node in reached:
                reached.add(edge // 2 + 2)
        if reached.isdisjoint(outputs):
            raise UserError(f"the {cell} cell's output is always 0: every path to it leads through the operation none")

    normal, reduce = edges("normal", normal), edges("reduce", reduce)
    genotype = Genotype(normal, concat("normal", normal_concat, len(normal)), reduce, concat("reduce", reduce_concat, len(reduce)))
    alive("normal", normal, genotype.normal_concat)
    alive("reduce", reduce, genotype.reduce_concat)
    return genotype
