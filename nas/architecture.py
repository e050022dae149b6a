"""`Architecture`: the result of a search in any space, read from any of its forms.

    Architecture.read("DARTS_V2").cells["normal"].edges
    Architecture.read("search-EXP/").distance(Architecture.read("DARTS_V1"))

An architecture is given as the name of a published cell, the text `Genotype(...)`, JSON or a JSON file, or a run's folder. In JSON, the
cells of DARTS are the fields of `Genotype`, NNI's flat dictionary, or choices; in other spaces, JSON is {key of a choice: what was chosen}.
This file does not import torch.
"""

from __future__ import annotations

import ast
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiment import files
from experiment.errors import UserError, shorten, shown
from genotypes import CELLS, KNOWN, OPERATIONS, PRIMITIVES, Genotype, edge_key, edge_of, to_nni
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
            arch: JSON or a JSON file (see `of`), or the folder of a run. For cells, also one of `names` in any spelling (see `canonical`),
                or a line of a log with `Genotype(normal=[...], ...)`.
            space: see `of`.

        Raises:
            UserError: `arch` is none of these, or not an architecture of the space.
        """
        cells, known = space in _CELL_SPACES, names(space)
        if arch in known or (arch := canonical(arch, space)) in known:
            return cls(known[arch])
        if arch[:1] + arch[-1:] == "{}":
            return cls.of(_json(arch, arch), space)
        if cells and "Genotype(" in arch:
            return cls(parse(arch[arch.index("Genotype(") :]))
        path = Path(arch)
        try:
            if path.is_dir():
                path = next((file for file in _files(path, space) if file.exists()), _files(path, space)[0])
            elif cells and path.suffix != ".json" and not path.is_file():
                raise UserError(f"unknown architecture {shorten(arch)}: name one of {', '.join(known)}, a JSON file, or Genotype(...)")
            content = files.read(path)
        except OSError as error:
            raise UserError(f"cannot read the architecture {shorten(str(path))}: {error.strerror or error}") from None
        return cls.of(_json(content, str(path)), space)

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
                ["normal_n2_p0", "normal_n2_p1"], ...}`, where edges that are in no switch may be `[]`; or the choices of another space.
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
        if space == "rnn" or (space is None and set(keys) == set(rnn.Genotype._fields)):
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
            raise UserError(f"this is not a recurrent cell: name one of {', '.join(rnn.KNOWN)}, or the folder of a search by rnn/")
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


def names(space: str | None = None) -> Mapping[str, Genotype | rnn.Genotype]:
    """{name: published cell} for this space; for None those of both, with the prefix `rnn.` for recurrent cells."""
    recurrent = {f"rnn.{name}": genotype for name, genotype in rnn.KNOWN.items()}
    spaces: dict[str | None, Mapping[str, Genotype | rnn.Genotype]] = {"darts": KNOWN, "rnn": rnn.KNOWN, None: {**KNOWN, **recurrent}}
    return spaces.get(space, {})


def canonical(arch: str, space: str | None = None) -> str:
    """The name of the published cell that `arch` names, in upper or lower case, with `-` or `_`: `DARTS_V2` for `darts-v2`.

    Everything else is returned unchanged, also `arch` if a file or a folder has this name.
    """
    spelt = {_spelling(name): name for name in names(space)}.get(_spelling(arch))
    return arch if spelt is None or os.path.lexists(arch) else spelt


def _json(content: str | bytes, name: str) -> Any:
    try:
        return files.parse_json(content)
    except ValueError as error:
        raise UserError(f"{shorten(name)} does not hold JSON: {error}") from None


def _spelling(name: str) -> str:
    return name.casefold().replace("-", "_")


def _of_fields(kind: Any, check: Callable[..., Any], content: dict[Any, Any]) -> Any:
    """`check` applied to the fields in `content`, which must be those of `kind`."""
    missing = [field for field in kind._fields if field not in content]
    unknown = [key for key in content if key not in kind._fields]
    if missing or unknown:
        fields = ", ".join(kind._fields)
        raise UserError(f"an architecture's JSON needs {fields}; missing: {missing}, unknown: {shorten(str(unknown))}")
    return check(**content)


_CELLS_FILE, _CHOICES_FILE, _NNI_FILE = "genotype.json", "architecture.json", "nni.json"
_NNI_KEYS = tuple(f"{cell}/" for cell in CELLS)
_CHOICE_KEYS = tuple(f"{cell}_n2" for cell in CELLS)


def _files(folder: Path, space: str | None) -> list[Path]:
    """The files in which a run of this space may have written its architecture."""
    return [folder / name for name in ([_CELLS_FILE, _CHOICES_FILE] if space in _CELL_SPACES else [_CHOICES_FILE])]


def parse(text: str) -> Genotype | rnn.Genotype:
    """The genotype in the text that `repr` prints. The text is parsed as a literal, never evaluated.

    Args:
        text: `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=[2, 3, 4, 5])`, or
            `Genotype(recurrent=[('tanh', 0), ...], concat=range(1, 9))`.

    Raises:
        UserError: `text` is not of this form.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about "\\d" for example: the error is enough
            call = ast.parse(text.strip(), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"):
            raise ValueError("it is not one Genotype(...)")
        given = len(call.args) + len(call.keywords)
        names, checked = (rnn.Genotype._fields, check_recurrent) if given == 2 else (Genotype._fields, check)
        fields = dict(zip(names, map(_literal, call.args), strict=False))
        fields |= {keyword.arg or "**": _literal(keyword.value) for keyword in call.keywords}
        if given != len(names) or set(fields) != set(names):
            raise ValueError(f"it needs {', '.join(Genotype._fields)}, or {', '.join(rnn.Genotype._fields)}, each once")
    except UserError:
        raise
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"cannot parse the genotype {shorten(text)}: {error}") from None
    return checked(**fields)


def _literal(node: ast.expr) -> Any:
    """A Python literal, or `range` of integers, as the original prints `*_concat`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        bounds = [ast.literal_eval(argument) for argument in node.args]
        if not all(type(bound) is int and abs(bound) <= 1000 for bound in bounds):
            raise ValueError("range() takes small integers")
        return list(range(*bounds))
    return ast.literal_eval(node)


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
            chosen = remaining.pop(switch)
            if not isinstance(chosen, list) or len(chosen) != 2 or not all(key in keys for key in chosen) or chosen[0] == chosen[1]:
                raise UserError(f"{switch} must name two of {', '.join(keys)}, not {shown(chosen)}")
            for source in map(keys.index, chosen):
                operation = operations[source]
                if isinstance(operation, list) and len(operation) == 1:
                    operation = operation[0]
                if not isinstance(operation, str) or operation not in known:
                    raise UserError(f"{keys[source]} is {shown(operation)}: known are {', '.join(known)}")
                edges.append((known[operation], source))
            node += 1
        cells[cell] = edges
        cells[f"{cell}_concat"] = list(range(2, node))
    if remaining:
        raise UserError(f"unexpected keys in NNI's architecture: {shorten(', '.join(map(str, remaining)))}")
    return check(**cells)


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
    if not isinstance(concat, list | tuple) or not concat or not all(type(node) is int and node in known for node in concat):
        raise UserError(f"concat must list nodes from 0 to {len(recurrent)}, not {shown(concat)}")
    if len(set(concat)) != len(concat):
        raise UserError(f"concat names a node twice: {shown(concat)}")
    return rnn.Genotype([(activation, source) for activation, source in recurrent], list(concat))
