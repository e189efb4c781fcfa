"""How long stored cells took."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = [
    "experiment",
    "cells",
    "processor hours",
    "longest cell, processor minutes",
]


def lines_of(cells: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a line for each experiment that has times, and one for all.

    Time by the clock, which depends on what else ran, is not shown.

    Example:
        >>> lines_of([{"experiment": "mad", "processor_seconds": 180.0}])
        [['mad', '1', '0.05', '3.0'], ['all', '1', '0.05', '3.0']]
    """
    groups = collections.defaultdict(list)
    for cell in cells:
        if cell["processor_seconds"] is not None:
            groups[cell["experiment"]].append(cell["processor_seconds"])
    every = [seconds for own in groups.values() for seconds in own]
    return [
        [name, str(len(own)), f"{sum(own) / 3600:.2f}", f"{max(own) / 60:.1f}"]
        for name, own in (*sorted(groups.items()), ("all", every))
        if own
    ]
