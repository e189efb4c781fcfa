"""Runs the cells of a grid, each only once, even if a command is repeated."""

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from experiments.shared import workers
from experiments.shared.progress import SweepProgress
from experiments.shared.records import Records, Row
from nl_jax.errors import InputError
from nl_jax.training import cache_programs

Cell = dict[str, Any]
_FAILED: contextvars.ContextVar[list[str]] = contextvars.ContextVar("failed")


class FailedCellsError(Exception):
    """Raised by a sweep none of whose cells has a result."""


@contextlib.contextmanager
def collect_failures() -> Iterator[list[str]]:
    """Yields a list that takes a line for each cell that fails inside."""
    token = _FAILED.set([])
    try:
        yield _FAILED.get()
    finally:
        _FAILED.reset(token)


def note_failure(line: str) -> None:
    """Adds a line to those that :func:`collect_failures` collects."""
    _FAILED.get([]).append(line)


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
    jobs: int = 1,
    work: Callable[[Cell], float] = lambda cell: 1.0,
    later: Sequence[Cell] = (),
) -> list[Row]:
    """Runs the cells without a record and returns the rows of all cells.

    A row contains the cell, the result of ``run``, and its ``seconds`` and
    ``processor_seconds``. A cell whose ``run`` raises an error is stored with
    the reason and has no row; the others go on, and a repeated command tries it
    again. After each cell a line says how far the sweep is. Compiled programs
    are kept beside the records.

    Args:
        records: of this command.
        cells: keys by which rows are found; each counts once.
        run: takes the cell as keyword arguments.
        before: is formatted with the cell and printed before it runs.
        after: is formatted with the row and printed once the row is on disk.
        prepare: is called once before the runs, if there are any.
        jobs: processes that run cells at the same time. With more than one,
            ``run`` must be picklable.
        work: what a cell costs in comparison with others, for the time left.
        later: cells, of the same costs, that the command runs after these.

    Raises:
        workers.StoppedError: if a run was stopped before its end.
        InputError: if a run refuses its input before any cell has a row.
        FailedCellsError: if no cell has a row.

    Example:
        >>> import tempfile
        >>> records = Records(f"{tempfile.mkdtemp()}/squares", {})
        >>> square = lambda x: {"y": x * x}
        >>> rows = sweep(records, grid(x=[3]), square, after="{x}: {y}")
        3: 9
        >>> rows = sweep(records, grid(x=[2, 3]), square)
        2 of 2 cells are done
        >>> [row["y"] for row in rows]
        [4, 9]
    """
    every = list(cells)
    cells = [c for n, c in enumerate(every) if c not in every[:n]]
    missing = [cell for cell in cells if records.find(**cell) is None]
    progress = SweepProgress([*cells, *later], work, jobs)
    for cell in (*cells, *later):
        if (row := records.find(**cell)) is not None:
            progress.add(cell, row.get("seconds"))

    def start(cell):
        if before:
            print(before.format_map(cell), flush=True)

    programs = epath.Path(records.folder.parent / "compilation_cache")
    if missing:
        cache_programs(programs)
        prepare()
    outcomes = (
        workers.in_turn(run, missing, start)
        if jobs == 1
        else workers.side_by_side(run, missing, start, jobs, programs)
    )
    failed = []
    for cell, outcome in outcomes:
        times = outcome.seconds, outcome.processor_seconds
        clocks = dict(zip(("seconds", "processor_seconds"), times, strict=True))
        if outcome.refused and not records.rows:
            raise InputError(outcome.error)
        if outcome.error:
            records.add_failure(
                outcome.error, cell, **clocks, traceback=outcome.traceback
            )
            words = " ".join(f"{k}={v}" for k, v in cell.items())
            failed.append(f"{words}: {outcome.error}")
            print(f"FAILED {failed[-1]}", flush=True)
        else:
            row = records.add(outcome.result, cell, **clocks)
            if after:
                print(after.format_map(row), flush=True)
        progress.add(cell, outcome.seconds)
        if progress.total > 1:
            print(progress, flush=True)
    _FAILED.get([]).extend(failed)
    rows = [records.find(**cell) for cell in cells]
    found = [row for row in rows if row is not None]
    if failed and not found:
        raise FailedCellsError("; ".join(failed))
    return found


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
