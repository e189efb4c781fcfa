"""Runs the cells of a grid, each only once, even if a command is repeated."""

import concurrent.futures
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.shared.records import Records, Row

Cell = dict[str, Any]


class StoppedError(Exception):
    """Raised by a run that was stopped before its end; it stops the sweep.

    No record of the run is kept, so a repeated sweep starts with it.
    """


def grid(**axes: Iterable[Any]) -> list[Cell]:
    """Returns a cell for each combination; the last axis changes fastest.

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
    jobs: int = 1,
) -> list[Row]:
    """Runs the cells without a record and returns the rows of all cells.

    A row contains the cell, the result of ``run``, and its ``seconds``.

    Args:
        records: of this command.
        cells: keys by which rows are found.
        run: takes the cell as keyword arguments.
        before: is formatted with the cell and printed before it runs.
        after: is formatted with the row and printed once the row is on disk.
        prepare: is called before each run and not timed.
        clock: returns the time in seconds.
        jobs: processes that run cells at the same time. With more than one,
            ``run`` must be picklable, and ``prepare`` is not called.

    Example:
        >>> import tempfile
        >>> records = Records(f"{tempfile.mkdtemp()}/runs.jsonl", {})
        >>> square = lambda x: {"y": x * x}
        >>> rows = sweep(records, grid(x=[3]), square, after="{x}: {y}")
        3: 9
        >>> [row["y"] for row in sweep(records, grid(x=[2, 3]), square)]
        [4, 9]
    """
    cells, rows = list(cells), []
    if jobs > 1:
        _run_ahead(records, cells, run, before, after, jobs)
    for cell in cells:
        row = records.find(**cell)
        if row is None:
            if before:
                print(before.format_map(cell), flush=True)
            prepare()
            row = records.add(_timed(run, cell, clock))
            if after:
                print(after.format_map(row), flush=True)
        rows.append(row)
    return rows


def _timed(run, cell, clock=time.perf_counter):
    begun = clock()
    found = run(**cell)
    return {**cell, "seconds": round(clock() - begun, 2), **found}


def _run_ahead(records, cells, run, before, after, jobs):
    """Runs the cells without a record in processes of their own."""
    # JAX cannot run in a forked process.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, spawn) as pool:
        runs = []
        for cell in cells:
            if records.find(**cell) is None:
                if before:
                    print(before.format_map(cell), flush=True)
                runs.append(pool.submit(_timed, run, cell))
        try:
            for done in concurrent.futures.as_completed(runs):
                row = records.add(done.result())
                if after:
                    print(after.format_map(row), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def half_decades(middle: float, count: int) -> list[float]:
    """Returns ``count`` learning rates around ``middle``, half a decade apart.

    Example:
        >>> half_decades(0.01, 3)
        [0.00316, 0.01, 0.0316]
    """
    return [
        float(f"{middle * 10 ** ((i - count // 2) / 2):.3g}")
        for i in range(count)
    ]


def grouped(rows: Sequence[Row], *names: str) -> dict[Any, list[Row]]:
    """Groups rows by the value of a field, or by the values of several fields.

    Example:
        >>> grouped([{"a": 1, "b": 2}, {"a": 1, "b": 3}], "a")
        {1: [{'a': 1, 'b': 2}, {'a': 1, 'b': 3}]}
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        groups.setdefault(key if len(names) > 1 else key[0], []).append(row)
    return groups
