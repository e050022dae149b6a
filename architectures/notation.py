"""Reads architectures as other codes write them: as text, `Genotype(...)` or a Python dictionary; as pairs nested per
node, as triples; and NNI's dictionaries."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from architectures import is_index, unmasked
from architectures.cells import CHOICES, NNI_NAMES, OPERATIONS, check, nni_keys, of_nodes, switch_key
from experiment import files
from experiment.errors import UserError, shorten, shown
from genotypes import CELLS, Edges, Genotype, edge_key


def decode(text: str, name: str, fields: Sequence[str]) -> Any:
    """The content of `text`: JSON, the last `Genotype(...)` as a dictionary of its `fields`, or the first dictionary.
    `name` is for messages."""
    start = text.rfind("Genotype(")
    broken = "a bracket, a quote or a comma is missing or too many, or quotes are not straight"
    if start < 0:
        try:
            return files.parse_json(text.removeprefix("\ufeff"))
        except ValueError as error:
            broken, start = f"{shorten(name)} does not hold JSON: {error}", max(text.find("{"), 0)
    else:
        broken = f"cannot read {shorten(text[start:])}: {broken}"
    try:
        return _value(ast.parse(_bracketed(text[start:]), mode="eval").body, fields)
    except (SyntaxError, RecursionError, MemoryError):
        raise UserError(broken) from None
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"cannot read {shorten(text[start:])}: {error}") from None


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
    """The value of a literal, of `range` of integers, or of `Genotype(...)` as the dictionary of its `fields`. Nothing
    is evaluated."""
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [_value(element, fields) for element in node.elts]
        case ast.Dict():
            return {
                _value(key, fields): _value(value, fields) for key, value in zip(node.keys, node.values, strict=True)
            }
        case ast.Call(func=ast.Name(id="Genotype")):
            found = dict(zip(fields, (_value(argument, fields) for argument in node.args), strict=False))
            return found | {keyword.arg: _value(keyword.value, fields) for keyword in node.keywords}
        case ast.Call(func=ast.Name(id="range"), keywords=[]):
            return list(range(*(_value(argument, fields) for argument in node.args)))
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[only], keywords=[]) if name in _WRAPPERS:
            return _value(only, fields)
    raise ValueError("it may contain only names in quotes, numbers, lists and range()")


# ---- Edges of cells


def per_node(cell: str, edges: Any, concat: list[Any]) -> tuple[Edges, list[Any]] | None:
    """`edges` as in a `Genotype`, and the nodes of `concat` that have edges; None for an unknown notation.

    Other codes write pairs nested per node, or triples (operation, node, source). There, a node may have fewer than two
    edges: missing ones become `none`, edges from a node without any are dropped, and such nodes are not concatenated.
    """
    if triples := _read_as(list[tuple[str, int, int]], edges):
        last = max(head for _, head, _ in triples)
        nodes = [[(name, source) for name, head, source in triples if head == node] for node in range(2, last + 1)]
        if sum(map(len, nodes)) < len(triples):
            raise UserError(f"the {cell} cell has an edge (operation, node, source) to a node before 2, an input")
    elif not (nodes := _read_as(list[list[tuple[str, int]]], edges)):
        return None
    empty = [node for node, pairs in enumerate(nodes, 2) if not pairs]
    nodes = [[pair for pair in pairs if pair[1] not in empty] for pairs in nodes]
    return of_nodes(nodes), [node for node in concat if node not in empty]


def _read_as(kind: Any, edges: Any) -> Any:
    try:
        return msgspec.convert(edges, kind)
    except msgspec.ValidationError:
        return None


# ---- NNI's dictionaries


def from_nni(content: dict[str, Any]) -> Genotype:
    """The cells in the dictionary of NNI's DARTS tutorial, or in one of choices; see `cells.Cells.of`."""
    of_tutorial = any(str(key).startswith(tuple(f"{cell}/" for cell in CELLS)) for key in content)
    return (_from_tutorial if of_tutorial else _from_choices)(content)


def _from_tutorial(content: dict[str, Any]) -> Genotype:
    """The inverse of `cells.to_nni`. NNI writes a single input with or without a list."""
    cells, read = {}, []
    for cell in CELLS:
        count = sum(str(key).startswith(f"{cell}/op_") for key in content)
        pairs = [nni_keys(cell, edge) for edge in range(count)]
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
