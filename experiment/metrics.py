"""Rows of metrics.jsonl: the types of their values, and the entries about classes. docs/metrics.md lists every key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Required, TypedDict

import msgspec

from experiment.errors import printable, shorten

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Epoch(TypedDict, total=False):
    """A row, without the numbers that are only drawn. In a run that diverges, losses are infinite or NaN."""

    epoch: Required[int]
    train_loss: float
    train_acc: float
    valid_loss: float
    valid_acc: float
    test_loss: float
    test_acc: float
    alphas: dict[str, dict[str, Share]]
    betas: dict[str, Share]
    class_acc: dict[str, float]
    confusion: dict[str, dict[str, int]]


def of_classes(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, Any]:
    """`class_acc`, in percent, and `confusion`, {class: {predicted class: images}}, for a row. Classes without images
    are left out.

    Args:
        confusion: the number of images of class i that were classified as class j.
        classes: the names of the classes.
    """
    rows = {
        name: {classes[index]: count for index, count in enumerate(counts) if count}
        for name, counts in zip(classes, confusion, strict=True)
        if any(counts)
    }
    return {
        "class_acc": {name: 100 * row.get(name, 0) / sum(row.values()) for name, row in rows.items()},
        "confusion": rows,
    }


MOST_LINES = 20


def class_lines(row: dict[str, Any]) -> list[str]:
    """Lines for the log: one per class, the least accurate first, at most `MOST_LINES`.

    Empty if the row has no `class_acc`.
    """
    lines = []
    for name, accuracy in sorted(row.get("class_acc", {}).items(), key=lambda item: item[1]):
        counts = row["confusion"][name]
        wrong = sorted(((count, other) for other, count in counts.items() if other != name), key=lambda pair: -pair[0])
        taken = ", ".join(f"{_short(other)} ({count})" for count, other in wrong[:3]) + ", ..." * (len(wrong) > 3)
        right = f"class {_short(name)}: {counts.get(name, 0)} of {sum(counts.values())} right, {accuracy:.2f}%"
        lines.append(right + f"; taken for {taken}" * bool(wrong))
    if (more := len(lines) - MOST_LINES) > 0:
        lines[MOST_LINES:] = [f"{more} more classes: see class_acc and confusion in metrics.jsonl"]
    return lines


def _short(name: str) -> str:
    """The name of a class, which may hold any characters but NUL and the slash, for a log line."""
    return shorten(printable(name), 60)
