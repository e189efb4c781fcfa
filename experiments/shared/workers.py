"""Runs of cells, in this process or in others, and what becomes of them."""

import concurrent.futures
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from etils import epath

from experiments.shared.processes import end_with
from nl_jax.errors import InputError
from nl_jax.training import cache_programs

Cell = dict[str, Any]
Run = Callable[..., Mapping[str, Any]]
_DIED = (
    "the process that ran it died; the system kills one that takes too much "
    "memory"
)


class StoppedError(Exception):
    """Raised by a run that was stopped before its end; it stops the sweep.

    No record of the run is kept, so a repeated sweep starts with it.
    """


class Outcome(NamedTuple):
    """What a run returned or why it failed, and how long it took."""

    result: Mapping[str, Any]
    error: str = ""
    """Empty if there is a result."""
    traceback: str = ""
    refused: bool = False
    """Whether the error says that the input is wrong."""
    seconds: float | None = None
    """By the clock."""
    processor_seconds: float | None = None
    """Of all threads."""


def in_turn(
    run: Run, cells: Sequence[Cell], start: Callable[[Cell], None]
) -> Iterator[tuple[Cell, Outcome]]:
    """Runs cells in this process, one after another."""
    for cell in cells:
        start(cell)
        yield cell, _attempt(run, cell)


def side_by_side(
    run: Run,
    cells: Sequence[Cell],
    start: Callable[[Cell], None],
    jobs: int,
    programs: epath.Path,
) -> Iterator[tuple[Cell, Outcome]]:
    """Runs cells in processes of their own; yields them as they finish.

    A process runs many cells, and all keep compiled programs in one folder.
    Where one dies, only its cell has failed.
    """
    waiting = list(cells)[::-1]
    pools = [_pool(programs) for _ in range(min(jobs, len(waiting)))]
    busy: dict[concurrent.futures.Future, tuple[int, Cell]] = {}

    def give(number):
        if waiting:
            cell = waiting.pop()
            start(cell)
            try:
                future = pools[number].submit(_attempt, run, cell)
            except BrokenProcessPool:  # It died after its last cell.
                pools[number] = _pool(programs)
                future = pools[number].submit(_attempt, run, cell)
            busy[future] = number, cell

    try:
        for number in range(len(pools)):
            give(number)
        while busy:
            done, _ = concurrent.futures.wait(
                busy, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                number, cell = busy.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    pools[number] = _pool(programs)
                    outcome = Outcome({}, _DIED)
                yield cell, outcome  # It is stored before another begins.
                give(number)
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


def _pool(programs):
    # JAX cannot run in a forked process.
    return concurrent.futures.ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(), programs),
    )


def _begin(parent, programs):
    # Ctrl-C reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    cache_programs(programs)


def _attempt(run, cell) -> Outcome:
    """Runs a cell; all errors but a stop become its outcome."""
    result, error, trace, refused = {}, "", "", False
    begun = _clocks()
    try:
        result = run(**cell)
    except StoppedError:
        raise
    except InputError as problem:
        error, refused = _line(problem), True
    except Exception as problem:  # noqa: BLE001 The other cells go on.
        error = f"{type(problem).__name__}: {_line(problem)}"
        trace = traceback.format_exc()
    times = (round(b - a, 2) for a, b in zip(begun, _clocks(), strict=True))
    return Outcome(result, error, trace, refused, *times)


def _line(error):
    return " ".join(str(error).split())[:500]


def _clocks():
    return time.perf_counter(), time.process_time()
