"""Markdown tables and the contents of their cells."""

import statistics
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


def mean_error(values: Sequence[float], form: str = ".4f") -> str:
    """Returns mean and standard error, of more than one value, for a cell.

    Example:
        >>> mean_error([1.0, 3.0], "+.2f"), mean_error([1.0])
        ('+2.00 ± 1.00', '1.0000')
    """
    shown = f"{statistics.fmean(values):{form}}"
    if len(values) < 2:
        return shown
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{shown} ± {error:{form.lstrip('+')}}"


def _line(cells):
    return "| " + " | ".join(cells) + " |"
