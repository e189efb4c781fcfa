"""How far a sweep is, and the time that it will still take."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class SweepProgress:
    """Counts finished cells and the work that is left.

    Args:
        cells: all of them.
        work: what a cell costs in comparison with others.
        jobs: cells that run at the same time.
        clock: returns the time in seconds.

    Example:
        >>> progress = SweepProgress([{"n": 1}, {"n": 3}], lambda c: c["n"], 1)
        >>> progress.add({"n": 1}, 20.0)
        >>> print(progress)
        1 of 2 cells are done after 0:00, about 1:00 left
    """

    def __init__(
        self,
        cells: Sequence[Mapping[str, Any]],
        work: Callable[[Any], float],
        jobs: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total = len(cells)
        self._work, self._jobs, self._clock = work, jobs, clock
        self._left = sum(map(work, cells))
        self._began = clock()
        self._done = 0
        # Of cells whose time is known.
        self._timed, self._seconds = 0.0, 0.0

    def add(self, cell: Mapping[str, Any], seconds: float | None) -> None:
        """Counts a finished cell and, if they are known, its seconds."""
        self._done += 1
        self._left -= self._work(cell)
        if isinstance(seconds, (int, float)):
            self._timed += self._work(cell)
            self._seconds += seconds

    def __str__(self) -> str:
        words = f"{self._done} of {self.total} cells are done"
        if self._done >= self.total or not self._timed:
            return words
        left = self._seconds / self._timed * self._left / self._jobs
        gone = self._clock() - self._began
        return f"{words} after {_span(gone)}, about {_span(left)} left"


def _span(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}"
