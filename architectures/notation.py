"""Reads architectures as JSON or as other codes print them: `Genotype(...)` or a Python dictionary."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from experiment import files
from experiment.errors import UserError, shorten


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
