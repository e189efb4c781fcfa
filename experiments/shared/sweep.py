"""Runs the cells of a grid, each once, whenever the command is repeated."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.shared.records import Records, Row

Cell = dict[str, Any]


class StoppedError(Exception):
    """A run was stopped before its end, and so is the sweep; nothing is kept.

    A sweep that is repeated begins with that run.
    """


def grid(**axes: Iterable[Any]) -> list[Cell]:
    """Returns a cell for each combination; the last axis turns fastest.

    Example:
        >>> grid(seed=[0, 1], run=["a"])
        [{'seed': 0, 'run': 'a'}, {'seed': 1, 'run': 'a'}]
    """
    return [
        dict(zip(axes, point, strict=True))
        for point in itertools.product(*axes.values())
    ]


def sweep(
    records: Records,
    cells: Iterable[Cell],
    run: Callable[..., Mapping[str, Any]],
    *,
    before: str = "",
    after: str = "",
    prepare: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Runs the cells that have no record yet; returns the rows of all.

    A row is the cell, what ``run`` returned, and its ``seconds``.

    Args:
        records: of this command.
        cells: what a row is found by.
        run: takes the cell as keyword arguments.
        before: is formatted with the cell and printed before it runs.
        after: is formatted with the row and printed when it is on disk.
        prepare: is called before a run, outside of what is timed.
        clock: by which seconds are counted.

    Example:
        >>> import tempfile
        >>> records = Records(f"{tempfile.mkdtemp()}/runs.jsonl", {})
        >>> square = lambda x: {"y": x * x}
        >>> rows = sweep(records, grid(x=[3]), square, after="{x}: {y}")
        3: 9
        >>> [row["y"] for row in sweep(records, grid(x=[2, 3]), square)]
        [4, 9]
    """
    rows = []
    for cell in cells:
        row = records.find(**cell)
        if row is None:
            if before:
                print(before.format_map(cell), flush=True)
            prepare()
            begun = clock()
            found = run(**cell)
            seconds = round(clock() - begun, 2)
            row = records.add({**cell, "seconds": seconds, **found})
            if after:
                print(after.format_map(row), flush=True)
        rows.append(row)
    return rows


def half_decades(middle: float, count: int) -> list[float]:
    """Returns learning rates around one, each half a decade from the next.

    Example:
        >>> half_decades(0.01, 3)
        [0.00316, 0.01, 0.0316]
    """
    return [
        float(f"{middle * 10 ** ((i - count // 2) / 2):.3g}")
        for i in range(count)
    ]


def grouped(rows: Sequence[Row], *names: str) -> dict[Any, list[Row]]:
    """Returns the rows of each value of a field, or of each tuple of values.

    Example:
        >>> grouped([{"a": 1, "b": 2}, {"a": 1, "b": 3}], "a")
        {1: [{'a': 1, 'b': 2}, {'a': 1, 'b': 3}]}
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        groups.setdefault(key if len(names) > 1 else key[0], []).append(row)
    return groups
