"""Markdown tables and the contents of their cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Returns the lines of a Markdown table, with numbers aligned right.

    Example:
        >>> markdown(["run", "steps"], [["hope", 3]])
        ['| run | steps |', '|---|---:|', '| hope | 3 |']
    """
    body = [[str(cell) for cell in row] for row in rows]
    rules = ["---"] + ["---:"] * (len(head) - 1)
    return [
        _line(head),
        "|" + "|".join(rules) + "|",
        *map(_line, body),
    ]


def spread(values: Sequence[float]) -> str:
    """Returns mean and standard deviation for a cell.

    Example:
        >>> spread([1.0, 3.0])
        '2.0 +- 1.0'
    """
    return f"{np.mean(values):.1f} +- {np.std(values):.1f}"


def _line(cells):
    return "| " + " | ".join(cells) + " |"
