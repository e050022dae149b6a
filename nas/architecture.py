"""`Architecture`: the result of a search in any space, read from any of its forms.

    Architecture.read("DARTS_V2").cells["normal"].edges
    Architecture.read("search-EXP/").distance(Architecture.read("DARTS_V1"))

An architecture is given as the name of a published cell, a text or a file of it, or a run's folder. The text is `Genotype(...)`, JSON, or
a Python dictionary. There, the cells of DARTS are the fields of `Genotype`, NNI's flat dictionary, or choices; the architectures of other
spaces are {key of a choice: what was chosen}, and those of NAS-Bench-201 also the benchmark's strings.
This file does not import torch.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import genotypes
from experiment import files
from experiment.errors import UserError, shorten, shown
from genotypes import CELLS, PRIMITIVES, Genotype, edge_key, edge_of, to_nni
from nas import published
from rnn import genotypes as rnn

# Most intermediate nodes of a cell: more than in any published cell, but few enough to build a network in seconds.
MOST_NODES = 32

Alphas = dict[str, dict[str, float]]  # {edge: {operation: softmaxed alpha}}

# NNI's names for operations, which nas/spaces/darts.py also uses. Other operations have the same name in both.
CHOICES = {
    "maxpool": "max_pool_3x3",
    "avgpool": "avg_pool_3x3",
    "skipconnect": "skip_connect",
    "sepconv3x3": "sep_conv_3x3",
    "sepconv5x5": "sep_conv_5x5",
    "dilconv3x3": "dil_conv_3x3",
    "dilconv5x5": "dil_conv_5x5",
}

# The operations behind the numbers in architectures of nas/spaces/enas.py.
NUMBERED = {
    "enas_micro": ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "skip_connect"),
    "enas_macro": ("conv_3x3", "sep_conv_3x3", "conv_5x5", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3"),
}
NASBENCH201_EDGES = {"0_1", "0_2", "1_2", "0_3", "1_3", "2_3"}

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
    concat: list[str]  # nodes whose outputs are concatenated, or in a recurrent cell averaged
    fixed: tuple[tuple[str, str], ...] = ()  # (tail, head) of edges without an operation


class Architecture:
    """The cells of DARTS, its recurrent cell, or the choices of any other space.

    Args:
        found: a `Genotype` (of `genotypes.py` or `rnn/genotypes.py`), or {key of a choice: what was chosen} from
            `nas.mutators.Mutator.export`.
    """

    def __init__(self, found: Genotype | rnn.Genotype | Mapping[str, Any]) -> None:
        self._genotype = found if isinstance(found, Genotype | rnn.Genotype) else None
        self._choices = None if isinstance(found, Genotype | rnn.Genotype) else dict(found)

    @classmethod
    def read(cls, arch: str, space: str | None = None) -> Architecture:
        """The architecture that `arch` names.

        Args:
            arch: one of `names` in any spelling (see `canonical`), the folder of a run, or a text or a file of what `of` takes: in JSON, in
                Python's notation, or with other text around it, such as a log. Of several `Genotype(...)`, the last one is read.
            space: see `of`.

        Raises:
            UserError: `arch` is none of these, or not an architecture of the space.
        """
        cells, known = space in _CELL_SPACES, names(space)
        if arch in known or (arch := canonical(arch, space)) in known:
            return cls.of(known[arch]._asdict(), space)
        if re.match(r"\s*[{|]|.*Genotype\(", arch, re.DOTALL) and not os.path.lexists(arch):
            return cls.of(_decode(arch, arch, space), space)
        path = Path(arch)
        try:
            if path.is_dir():
                path = next((file for file in _files(path, space) if file.exists()), _files(path, space)[0])
            elif cells and path.suffix != ".json" and not path.is_file():
                raise UserError(f"unknown architecture {shorten(arch)}: name one of {', '.join(known)}, a JSON file, or Genotype(...)")
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the architecture {shorten(str(path))}: {error.strerror or error}") from None
        return cls.of(_decode(content.decode(json.detect_encoding(content), "replace"), str(path), space), space)

    @classmethod
    def recorded(cls, folder: str | Path, space: str | None = None) -> Architecture | None:
        """The latest architecture in a run's folder; None if there is none yet."""
        found = [file for file in _files(Path(folder), space) if file.exists()]
        return cls.read(str(found[0]), space) if found else None

    @classmethod
    def of(cls, content: Any, space: str | None = None) -> Architecture:
        """The architecture in decoded JSON, or in the result of a search model's `export`.

        Args:
            content: a `Genotype`; `{"recurrent": [["tanh", 0], ...], "concat": [1, ...]}`;
                `{"normal": [["sep_conv_3x3", 0], ...], "normal_concat": [2, ...], "reduce": [...], "reduce_concat":
                [...]}`; the flat dictionary of NNI's DARTS space, `{"normal/op_2_0": "sep_conv_3x3", "normal/input_2_0": 1, ...}`;
                the dictionary of NNI 2.0 and of `nas/spaces/darts.py`, `{"normal_n2_p0": "sepconv3x3", ..., "normal_n2_switch":
                ["normal_n2_p0", "normal_n2_p1"], ...}`, where edges that are in no switch may be `[]`, and NNI 1's indices or masks may
                replace names; or the choices of another space. For lists of edges in other notations, see `_in_pairs`.
            space: `darts` for cells, `rnn` for a recurrent cell, the name of another space for choices; None to detect it from the keys.

        Raises:
            UserError: `content` is not an architecture of the space.
        """
        if isinstance(content, Genotype):
            return cls(content)
        if not isinstance(content, dict):
            raise UserError(
                "an architecture must be an object in JSON, {key of a choice: what was chosen}, or with normal, normal_concat, reduce "
                "and reduce_concat"
            )
        keys = [str(key) for key in content]
        recurrent = set(keys) == set(rnn.Genotype._fields)
        if (space == "rnn" and set(keys) != set(Genotype._fields)) or (space in _CELL_SPACES and recurrent):
            return cls(_of_fields(rnn.Genotype, check_recurrent, content))
        if space is None and content and not any(key in Genotype._fields or key.startswith(_NNI_KEYS + _CHOICE_KEYS) for key in keys):
            return cls(content)
        if space not in _CELL_SPACES:
            return cls(content)
        if any(key.startswith(_NNI_KEYS) for key in keys):
            return cls(_from_nni(content))
        if any(key.startswith(_CHOICE_KEYS) for key in keys):
            return cls(_from_choices(content))
        return cls(_of_fields(Genotype, check, content))

    @classmethod
    def of_epoch(cls, row: Mapping[str, Any]) -> Architecture | None:
        """The architecture in an epoch's metrics that `metrics.check` has accepted; None for those of `train.py`.

        Raises:
            ValueError: it is not an architecture, or its edges are not those of the alphas.
        """
        choices = row.get("architecture")
        if choices is not None:
            _check_choices(choices)
        if "genotype" not in row:
            return None if choices is None else cls(choices)
        recurrent = isinstance(row["genotype"], dict) and "recurrent" in row["genotype"]
        architecture = cls.of(row["genotype"], "rnn" if recurrent else "darts")
        cells = architecture.cells
        first, per_node = (1, 1) if recurrent else (2, 2)  # first node that is searched; edges per node
        ends = {cell: first + len(cells[cell].edges) // per_node for cell in cells}
        edges = {edge_key(cell, node, source) for cell, end in ends.items() for node in range(first, end) for source in range(node)}
        alphas = row.get("alphas", {})
        if alphas and alphas.keys() != edges:
            raise ValueError("its alphas are not those of the edges of its genotype")
        return architecture

    # ---- Forms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.json == other.json

    def __str__(self) -> str:
        """A line for the log."""
        return f"architecture = {self._choices}" if self._genotype is None else f"genotype = {self._genotype}"

    @property
    def genotype(self) -> Genotype:
        """The cells of DARTS.

        Raises:
            UserError: it belongs to another space.
        """
        if self._genotype is None:
            raise UserError("this architecture is made of choices, not of the cells of DARTS: name its --space")
        if isinstance(self._genotype, rnn.Genotype):
            raise UserError("this is a recurrent cell, not the cells of a convolutional network: python -m rnn.train trains it")
        return self._genotype

    @property
    def recurrent(self) -> rnn.Genotype:
        """The recurrent cell. Raises `UserError` if it is not a recurrent cell."""
        if not isinstance(self._genotype, rnn.Genotype):
            raise UserError(f"this is not a recurrent cell: name one of {', '.join(names('rnn'))}, or the folder of a search by rnn/")
        return self._genotype

    @property
    def choices(self) -> dict[str, Any]:
        """{key of a choice: what was chosen}. For cells, the keys are those of `nas/spaces/darts.py`, with `[]` for unused edges.

        Raises:
            UserError: this space does not contain the cells: unknown operations, two edges from one node, or nodes not concatenated.
        """
        return _to_choices(self.genotype) if self._choices is None else self._choices

    @property
    def json(self) -> dict[str, Any]:
        """The JSON-ready form that `of` reads."""
        if self._genotype is None:
            return self.choices
        cells = (*CELLS, "recurrent")
        return {name: [list(edge) for edge in field] if name in cells else list(field) for name, field in self._genotype._asdict().items()}

    @property
    def file_name(self) -> str:
        """The name of the file for `json` in a run's folder."""
        return _CHOICES_FILE if self._genotype is None else _CELLS_FILE

    def files(self) -> dict[str, dict[str, Any]]:
        """{file name: JSON-ready content} that a search writes: the choices; for cells also the genotype, also in NNI's form.

        For recurrent cells, and for cells in which `none` replaces an edge (`--gate_threshold`), only the genotype.
        """
        if self._genotype is None:
            return {_CHOICES_FILE: self.choices}
        if isinstance(self._genotype, rnn.Genotype):
            return {_CELLS_FILE: self.json}
        if any(name == "none" for name, _ in [*self._genotype.normal, *self._genotype.reduce]):
            return {_CELLS_FILE: self.json}
        return {_CHOICES_FILE: self.choices, _CELLS_FILE: self.json, _NNI_FILE: to_nni(self._genotype)}

    def record(self) -> dict[str, dict[str, Any]]:
        """The entries of an epoch's metrics that `of_epoch` reads: `architecture`, the choices, and for cells `genotype`."""
        return {name.removesuffix(".json"): content for name, content in self.files().items() if name != _NNI_FILE}

    # ---- Properties

    @property
    def cells(self) -> dict[str, Cell]:
        """{name: cell} with the names "normal" and "reduce", "recurrent", or "" for a single cell. Empty for unknown spaces."""
        if isinstance(self._genotype, rnn.Genotype):
            return {"recurrent": _recurrent_cell(self._genotype)}
        if self._genotype is not None:
            normal, normal_concat, reduce, reduce_concat = self._genotype
            return {"normal": _cell("normal", normal, list(normal_concat)), "reduce": _cell("reduce", reduce, list(reduce_concat))}
        if set(self.choices) == NASBENCH201_EDGES and all(isinstance(operation, str) for operation in self.choices.values()):
            edges = [Edge(key, key[0], key[-1], operation) for key, operation in self.choices.items()]
            return {"": Cell({"0": "input", "1": "node", "2": "node", "3": "output"}, edges, [])}
        return _micro_cells(self.choices)

    @property
    def layers(self) -> list[tuple[str, list[int]]]:
        """(branch, layers that are added) for every layer of ENAS's macro space. Empty for other spaces.

        As in NNI, the label `layer_i` means the input of layer i.
        """
        if self._genotype is not None:
            return []
        values = [chosen if isinstance(chosen, list) else [chosen] for chosen in self.choices.values()]
        branches, skips = values[:1] + values[1::2], [[], *values[2::2]]
        labels = {f"layer_{layer}": layer for layer in range(len(branches))}
        names = NUMBERED["enas_macro"]
        known = all(len(branch) == 1 and _is_index(branch[0], len(names)) for branch in branches)
        earlier = all(isinstance(label, str) and labels.get(label, layer) < layer for layer, chosen in enumerate(skips) for label in chosen)
        if len(branches) != len(skips) or len(branches) < 3 or not known or not earlier:
            return []
        return [(names[branch[0]], [labels[label] for label in chosen]) for branch, chosen in zip(branches, skips, strict=True)]

    @property
    def chosen(self) -> dict[str, str]:
        """{edge: operation}, with the same names of edges as the alphas."""
        edges = {edge.key: edge.operation for cell in self.cells.values() for edge in cell.edges}
        return edges or {key: str(chosen) for key, chosen in self.choices.items()}

    def skips(self) -> dict[str, int]:
        """{cell: number of skip connections}; empty for a recurrent cell. In ENAS's macro space, the additional inputs are counted."""
        if isinstance(self._genotype, rnn.Genotype):
            return {}
        if layers := self.layers:
            return {"": sum(len(inputs) for _, inputs in layers)}
        if cells := self.cells:
            return {name: sum(edge.operation == "skip_connect" for edge in cell.edges) for name, cell in cells.items()}
        return {"": sum(chosen == "skip_connect" for chosen in self.choices.values())}

    def distance(self, other: Architecture) -> int | None:
        """The number of edges, with their operations, that `other` lacks, 0 to 16 for the cells of DARTS; or of choices that differ.

        None if the two belong to different spaces.
        """
        if (self._genotype is None) != (other._genotype is None):
            return None
        if self._genotype is None:
            ours, theirs = self.choices, other.choices
            return sum(ours[key] != theirs[key] for key in ours) if ours.keys() == theirs.keys() else None
        if self.cells.keys() != other.cells.keys():
            return None
        pairs = [(cell.edges, other.cells[name].edges) for name, cell in self.cells.items()]
        if any(len(ours) != len(theirs) for ours, theirs in pairs):
            return None
        return sum((Counter(ours) - Counter(theirs)).total() for ours, theirs in pairs)


# ---- Nodes and edges


def entropies(alphas: Alphas) -> dict[str, float]:
    """{cell: entropy of softmaxed alphas in nats, averaged over edges}, from 0 (one weight is 1) to ln(candidates) (all are equal)."""
    by_cell: dict[str, list[float]] = {}
    for edge, weights in alphas.items():
        by_cell.setdefault(cell_of(edge), []).append(-math.fsum(weight * math.log(weight) for weight in weights.values() if weight > 0))
    return {cell: math.fsum(values) / len(values) for cell, values in by_cell.items()}


def node_name(node: int) -> str:
    """The name of a node of a DARTS cell in pictures: for the two inputs as in the paper, then 0, 1, ..."""
    return f"c_{{k-{2 - node}}}" if node < 2 else str(node - 2)


def edge_ends(key: str) -> tuple[str, str] | None:
    """(tail, head) of the edge with this key, in cells of DARTS and NAS-Bench-201; None if it is not the key of an edge."""
    if key in NASBENCH201_EDGES:
        tail, head = key.split("_")
        return tail, head
    edge = edge_of(key)
    if edge is None:
        return None
    cell, node, source = edge
    return (str(source), str(node)) if cell == "recurrent" else (node_name(source), node_name(node))


def cell_of(key: str) -> str:
    """The cell of an edge or a choice, `normal`, `reduce` or `recurrent`, by its key; empty if it belongs to none of them."""
    kind = key.partition("_")[0]
    return kind if kind in TITLES else ""


def switch_key(cell: str, node: int) -> str:
    """The key of the choice between the inputs of a node."""
    return f"{cell}_n{node}_switch"


def choice_of(operation: str) -> str:
    """The name of an operation in `nas/spaces/darts.py`: NNI's name, if NNI has one."""
    return _NNI_NAMES.get(operation, operation)


_NNI_NAMES = {operation: choice for choice, operation in CHOICES.items()}


def operation_of(choice: str) -> str:
    """The inverse of `choice_of`."""
    return CHOICES.get(choice, choice)


def check_candidates() -> None:
    """Checks `genotypes.PRIMITIVES`, which users may edit.

    Raises:
        UserError: a name occurs twice, or is NNI's name of another operation; or there are no operations.
    """
    for name in PRIMITIVES:
        if PRIMITIVES.count(name) > 1:
            raise UserError(f"PRIMITIVES in genotypes.py names {name} twice: delete one of them")
        if name in CHOICES:
            raise UserError(f"PRIMITIVES in genotypes.py names {name}, which is NNI's name of {CHOICES[name]}: choose another name")
    if not set(PRIMITIVES) - {"none"}:
        raise UserError("PRIMITIVES in genotypes.py names no operation besides none: there is nothing to choose from")


def _cell(name: str, pairs: Any, concat: list[int], keys: list[str] | None = None) -> Cell:
    """A cell in which every node is the sum of two edges; `pairs` as in `Genotype.normal`."""
    nodes = [node_name(node) for node in range(len(pairs) // 2 + 2)]
    kinds = dict.fromkeys(nodes[:2], "input") | dict.fromkeys(nodes[2:], "node") | {"c_{k}": "output"}
    keys = keys or [edge_key(name, index // 2 + 2, source) for index, (_, source) in enumerate(pairs)]
    edges = [Edge(keys[index], nodes[source], nodes[index // 2 + 2], operation) for index, (operation, source) in enumerate(pairs)]
    return Cell(kinds, edges, [nodes[node] for node in concat])


def _recurrent_cell(genotype: rnn.Genotype) -> Cell:
    """A recurrent cell: every node but the first has one edge. Inputs and output have the names of the paper's Figure 6."""
    nodes = [str(node) for node in range(len(genotype.recurrent) + 1)]
    kinds = dict.fromkeys(("x_{t}", "h_{t-1}"), "input") | dict.fromkeys(nodes, "node") | {"h_{t}": "output"}
    edges = [
        Edge(edge_key("recurrent", node, source), nodes[source], nodes[node], activation)
        for node, (activation, source) in enumerate(genotype.recurrent, 1)
    ]
    return Cell(kinds, edges, [nodes[node] for node in genotype.concat], (("x_{t}", "0"), ("h_{t-1}", "0")))


def _micro_cells(choices: dict[str, Any]) -> dict[str, Cell]:
    """The cells of an architecture of ENAS's micro space; empty for other spaces."""
    cells, names = {}, NUMBERED["enas_micro"]
    remaining = dict(choices)
    for name in CELLS:
        pairs: list[tuple[str, int]] = []
        keys: list[str] = []
        while (node := f"{name}_node_{len(pairs) // 2}_{'xy'[len(pairs) % 2]}") + "_op" in remaining:
            operation, source = remaining.pop(f"{node}_op"), remaining.pop(f"{node}_input", None)
            if not _is_index(operation, len(names)) or not _is_index(source, len(pairs) // 2 + 2):
                return {}
            pairs.append((names[operation], source))
            keys.append(f"{node}_op")
        if len(pairs) % 2:
            return {}
        if pairs:
            used = {source for _, source in pairs}
            cells[name] = _cell(name, pairs, [node for node in range(len(pairs) // 2 + 2) if node not in used], keys)
    return {} if remaining else cells


def _check_choices(choices: Any) -> None:
    if not isinstance(choices, dict):
        raise ValueError("its architecture is not an object")
    for key, chosen in choices.items():
        names = chosen if isinstance(chosen, list) else [chosen]
        if not isinstance(key, str) or not all(type(name) in (str, int) for name in names):
            raise ValueError(f"its architecture has chosen {shown(chosen)} for {shown(key)}")


def _is_index(chosen: Any, length: int) -> bool:
    return type(chosen) is int and 0 <= chosen < length


# ---- Reading and writing cells

_CELL_SPACES = ("darts", "rnn", None)


def names(space: str | None = None) -> Mapping[str, Any]:
    """{name: published cell} for this space; for None those of both, with the prefix `rnn.` for recurrent cells.

    These are all genotypes in `genotypes.py` and `nas/published.py`, or in `rnn/genotypes.py`.
    """
    cells = {name: value for name, value in [*vars(genotypes).items(), *vars(published).items()] if isinstance(value, Genotype)}
    recurrent = {name: value for name, value in vars(rnn).items() if isinstance(value, rnn.Genotype)}
    both = cells | {f"rnn.{name}": value for name, value in recurrent.items()}
    spaces: dict[str | None, Mapping[str, Any]] = {"darts": cells, "rnn": recurrent, None: both}
    return spaces.get(space, {})


# All operations that a genotype may contain: the candidates, and others that the named cells use.
OPERATIONS = list(
    dict.fromkeys(
        [
            *PRIMITIVES,
            *(edge[0] for cells in names("darts").values() for edge in [*cells.normal, *cells.reduce] if isinstance(edge[0], str)),
        ]
    )
)


def canonical(arch: str, space: str | None = None) -> str:
    """The name of the published cell that `arch` names, in upper or lower case, with `-` or `_`: `DARTS_V2` for `darts-v2`.

    Everything else is returned unchanged, also `arch` if a file or a folder has this name.
    """
    spelt = {_spelling(name): name for name in names(space)}.get(_spelling(arch))
    return arch if spelt is None or os.path.lexists(arch) else spelt


def _spelling(name: str) -> str:
    return name.casefold().replace("-", "_")


def _of_fields(kind: Any, check: Callable[..., Any], content: dict[Any, Any]) -> Any:
    """`check` applied to the fields in `content`, which must be those of `kind`."""
    missing = [field for field in kind._fields if field not in content]
    unknown = [key for key in content if key not in kind._fields]
    if missing or unknown:
        fields = ", ".join(kind._fields)
        raise UserError(f"an architecture needs {fields}; missing: {missing}, unknown: {shorten(str(unknown))}")
    return check(**(_in_pairs(content) if kind is Genotype else content))


_CELLS_FILE, _CHOICES_FILE, _NNI_FILE = "genotype.json", "architecture.json", "nni.json"
_NNI_KEYS = tuple(f"{cell}/" for cell in CELLS)
_CHOICE_KEYS = tuple(f"{cell}_n2" for cell in CELLS)


def _files(folder: Path, space: str | None) -> list[Path]:
    """The files in which a run of this space may have written its architecture."""
    return [folder / name for name in ([_CELLS_FILE, _CHOICES_FILE] if space in _CELL_SPACES else [_CHOICES_FILE])]


def _in_pairs(fields: dict[str, Any]) -> dict[str, Any]:
    """These fields of a `Genotype` with two pairs (operation, source) per node, as `check` takes them.

    Other codes write pairs nested per node, or triples (operation, node, source). There, a node may have fewer than two edges: missing ones
    become `none`, edges from a node without any are dropped, and such nodes are not concatenated.
    """
    found = dict(fields)
    for cell in CELLS:
        edges, concat = fields[cell], fields[f"{cell}_concat"]
        if not (_is_list(edges) and edges and _is_list(concat)):
            continue  # `check` says what is wrong
        if all(_is_list(edge) and len(edge) == 3 and type(edge[1]) is int for edge in edges):
            nodes = [[(name, source) for name, head, source in edges if head == node] for node in range(2, MOST_NODES + 2)]
            if sum(map(len, nodes)) < len(edges):
                raise UserError(f"the {cell} cell has an edge (operation, node, source) to no node from 2 to {MOST_NODES + 1}")
            while not nodes[-1]:
                nodes.pop()
        elif all(_is_list(node) and all(_is_list(edge) and len(edge) == 2 for edge in node) for node in edges):
            nodes = [list(map(tuple, node)) for node in edges]
        else:
            continue
        empty = [node for node, pairs in enumerate(nodes, 2) if not pairs]
        nodes = [[pair for pair in pairs if not (type(pair[1]) is int and pair[1] in empty)] for pairs in nodes]
        if crowded := [node for node, pairs in enumerate(nodes, 2) if len(pairs) > 2]:
            raise UserError(f"node {crowded[0]} of the {cell} cell has {len(nodes[crowded[0] - 2])} edges: each node takes two")
        found[cell] = [pair for pairs in nodes for pair in (pairs + [("none", 0), ("none", 1)][len(pairs) :])]
        found[f"{cell}_concat"] = [node for node in concat if node not in empty]
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | range)


def _decode(text: str, name: str, space: str | None) -> Any:
    """What `text` holds: a string of NAS-Bench-201, JSON, or the last `Genotype(...)` or the first dictionary in Python's notation.

    Args:
        name: of the text, for messages.
    """
    if space in ("nasbench201", None) and (strings := re.findall(r"\|\w+~\d[\w~|+]*", text)):
        from nas.spaces import nasbench201  # imports torch

        return nasbench201.from_string(strings[-1])
    start = text.rfind("Genotype(")
    if start < 0:
        try:
            return files.parse_json(text.removeprefix("\ufeff"))
        except ValueError as error:
            broken, start = f"{shorten(name)} does not hold JSON: {error}", text.find("{")
    else:
        broken = f"cannot read {shorten(text[start:])}: a bracket, a quote or a comma is missing or too many, or quotes are not straight"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about "\\d" for example: the error is enough
            return _value(ast.parse(_bracketed(text[max(start, 0) :]), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise UserError(broken) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"cannot read {shorten(text[max(start, 0) :])}: {error}") from None


def _bracketed(text: str) -> str:
    """`text` up to the bracket that closes its first one; all of it if none does."""
    depth = 0
    for bracket in re.finditer(r"[()\[\]{}]", text):
        depth += 1 if bracket[0] in "([{" else -1
        if depth == 0:
            return text[: bracket.end()]
    return text


_WRAPPERS = {"array", "int", "int32", "int64", "list", "str_", "tuple"}  # as in np.int64(0) and list(range(2, 6))


def _value(node: ast.AST | None) -> Any:
    """The value of a literal, of `range` of integers, or of `Genotype(...)` as the dictionary of its fields. Nothing is evaluated."""
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [_value(element) for element in node.elts]
        case ast.Dict():
            return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
        case ast.Call(func=ast.Name(id="Genotype")):
            given = len(node.args) + len(node.keywords)
            fields = rnn.Genotype._fields if given == 2 else Genotype._fields
            found = dict(zip(fields, map(_value, node.args), strict=False))
            found |= {keyword.arg or "**": _value(keyword.value) for keyword in node.keywords}
            if given != len(fields) or set(found) != set(fields):
                raise ValueError(f"it needs {', '.join(Genotype._fields)}, or {', '.join(rnn.Genotype._fields)}, each once")
            return found
        case ast.Call(func=ast.Name(id="range"), keywords=[]):
            bounds = [_value(argument) for argument in node.args]
            if not all(type(bound) is int and abs(bound) <= 1000 for bound in bounds):
                raise ValueError("range() takes small integers")
            return list(range(*bounds))
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[only], keywords=[]) if name in _WRAPPERS:
            return _value(only)
        case ast.Name():
            raise ValueError(f"{shorten(node.id)} has no quotes: write '{shorten(node.id)}'")
    raise ValueError("it may contain only names in quotes, numbers, lists and range()")


def _from_nni(content: dict[str, Any]) -> Genotype:
    """NNI's flat dictionary: `<cell>/op_<node>_<edge>` and `<cell>/input_<node>_<edge>`, nodes from 2, edges 0 and 1; all concatenated."""
    remaining = dict(content)
    cells: dict[str, list] = {}
    for cell in CELLS:
        edges: list[tuple[Any, Any]] = []
        while f"{cell}/op_{len(edges) // 2 + 2}_{len(edges) % 2}" in remaining:
            suffix = f"{len(edges) // 2 + 2}_{len(edges) % 2}"
            operation = remaining.pop(f"{cell}/op_{suffix}")
            node = remaining.pop(f"{cell}/input_{suffix}", None)
            if isinstance(node, list) and len(node) == 1:  # NNI writes a single input with or without a list
                node = node[0]
            edges.append((operation, node))
        cells[cell] = edges
        cells[f"{cell}_concat"] = list(range(2, len(edges) // 2 + 2))
    if remaining:
        raise UserError(f"unexpected keys in NNI's architecture: {shorten(', '.join(map(str, remaining)))}")
    return check(**cells)


def _from_choices(content: dict[str, Any]) -> Genotype:
    """NNI 2.0's choices: an operation for every edge, `<cell>_n<node>_p<source>`, and two edges per node, `<cell>_n<node>_switch`."""
    remaining, known = dict(content), {choice_of(operation): operation for operation in OPERATIONS if operation != "none"}
    cells: dict[str, list] = {}
    for cell in CELLS:
        edges: list[tuple[Any, int]] = []
        node = 2
        while (switch := switch_key(cell, node)) in remaining:
            if node > MOST_NODES + 1:
                raise UserError(f"the {cell} cell has more nodes than a cell can have, {MOST_NODES}")
            keys = [edge_key(cell, node, source) for source in range(node)]
            operations = [remaining.pop(key, None) for key in keys]
            given = remaining.pop(switch)
            chosen = _picked(given, keys)
            if len(chosen) != 2 or not all(key in keys for key in chosen) or chosen[0] == chosen[1]:
                raise UserError(f"{switch} must name two of {', '.join(keys)}, not {shown(given)}")
            for source in map(keys.index, chosen):
                picked = _picked(operations[source], list(CHOICES))
                if len(picked) != 1 or not isinstance(picked[0], str) or picked[0] not in known:
                    raise UserError(f"{keys[source]} is {shown(operations[source])}: known are {', '.join(known)}")
                edges.append((known[picked[0]], source))
            node += 1
        cells[cell] = edges
        cells[f"{cell}_concat"] = list(range(2, node))
    if remaining:
        raise UserError(f"unexpected keys in NNI's architecture: {shorten(', '.join(map(str, remaining)))}")
    return check(**cells)


def _picked(chosen: Any, candidates: Sequence[str]) -> list[Any]:
    """The names of what was chosen: one or several names, indices as NNI 1 writes them, or a mask (see `unmasked`)."""
    listed = unmasked(chosen if isinstance(chosen, list) else [chosen], len(candidates))
    return [candidates[entry] if _is_index(entry, len(candidates)) else entry for entry in listed]


def unmasked(values: list[Any], count: int) -> list[Any]:
    """The indices in a mask over `count` candidates, as NNI 1 writes it: all booleans, or all floats. Other `values` are returned."""
    if len(values) == count and {type(on) for on in values} in ({bool}, {float}):
        return [index for index, on in enumerate(values) if on]
    return values


def _to_choices(genotype: Genotype) -> dict[str, str | list[str]]:
    """The inverse of `_from_choices`."""
    candidates = [primitive for primitive in PRIMITIVES if primitive != "none"]
    choices: dict[str, str | list[str]] = {}
    for cell, edges, concat in zip(CELLS, genotype[::2], genotype[1::2], strict=True):
        nodes = range(2, len(edges) // 2 + 2)
        if sorted(concat) != list(nodes):
            raise UserError(f"the DARTS space concatenates nodes {list(nodes)} of the {cell} cell, not {list(concat)}")
        for node in nodes:
            used = {source: operation for operation, source in edges[2 * node - 4 : 2 * node - 2]}
            if len(used) < 2:
                raise UserError(f"node {node} of the {cell} cell takes one node twice: in the DARTS space, it takes two")
            unknown = [operation for operation in used.values() if operation not in candidates]
            if unknown:
                raise UserError(f"{unknown[0]} is not an operation of the DARTS space: known are {', '.join(candidates)}")
            choices |= {edge_key(cell, node, source): choice_of(used[source]) if source in used else [] for source in range(node)}
            choices[switch_key(cell, node)] = [edge_key(cell, node, source) for source in sorted(used)]
    return choices


def check(normal: Any, normal_concat: Any, reduce: Any, reduce_concat: Any) -> Genotype:
    """A `Genotype` of these fields, if both cells can be built.

    Raises:
        UserError: an unknown operation, a node that does not exist yet, an odd number of edges, more nodes than `MOST_NODES`, no edges or
            no outputs, or an output that only `none` leads to.
    """

    def edges(cell: str, pairs: Any) -> list[tuple[str, int]]:
        if not _is_list(pairs) or not pairs or not all(_is_list(pair) and len(pair) == 2 for pair in pairs):
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
        if not _is_list(nodes) or not nodes or not all(type(node) is int and 2 <= node <= last for node in nodes):
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


def check_recurrent(recurrent: Any, concat: Any) -> rnn.Genotype:
    """A recurrent `Genotype` of these fields, if the cell can be built.

    Raises:
        UserError: an unknown activation, a node that does not exist yet, no nodes or more than `MOST_NODES`, or no outputs.
    """
    if not isinstance(recurrent, list | tuple) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in recurrent):
        raise UserError("the recurrent cell of a Genotype must be a list of pairs (activation, input node)")
    if not 1 <= len(recurrent) <= MOST_NODES:
        raise UserError(f"the recurrent cell has {len(recurrent)} edges: it can have 1 to {MOST_NODES}, one for each node")
    for node, (activation, source) in enumerate(recurrent, 1):
        if not isinstance(activation, str) or activation not in rnn.ACTIVATIONS:
            raise UserError(f"unknown activation {shown(activation)} in the recurrent cell: known are {', '.join(rnn.ACTIVATIONS)}")
        if type(source) is not int or not 0 <= source < node:
            raise UserError(f"node {node} of the recurrent cell takes node {shown(source)}; it can only take nodes 0 to {node - 1}")
    known = range(len(recurrent) + 1)
    if not _is_list(concat) or not concat or not all(type(node) is int and node in known for node in concat):
        raise UserError(f"concat must list nodes from 0 to {len(recurrent)}, not {shown(concat)}")
    if len(set(concat)) != len(concat):
        raise UserError(f"concat names a node twice: {shown(concat)}")
    return rnn.Genotype([(activation, source) for activation, source in recurrent], list(concat))
