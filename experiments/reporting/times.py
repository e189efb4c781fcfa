"""How long stored cells took."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ["experiment", "cells", "processor hours", "longest cell, minutes"]


def lines_of(cells: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a line for each experiment that has times, and one for all.

    The longest cell is the one that took most time by the clock.

    Example:
        >>> cell = {"experiment": "mad", "seconds": 90.0}
        >>> lines_of([{**cell, "processor_seconds": 180.0}])
        [['mad', '1', '0.05', '1.5'], ['all', '1', '0.05', '1.5']]
    """
    groups = collections.defaultdict(list)
    for cell in cells:
        if cell["seconds"] is not None:
            groups[cell["experiment"]].append(cell)
    timed = [cell for own in groups.values() for cell in own]
    return [
        [
            name,
            str(len(own)),
            f"{sum(c['processor_seconds'] or 0 for c in own) / 3600:.2f}",
            f"{max(c['seconds'] for c in own) / 60:.1f}",
        ]
        for name, own in (*sorted(groups.items()), ("all", timed))
        if own
    ]
