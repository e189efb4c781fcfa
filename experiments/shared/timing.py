"""Times of functions in interleaved rounds, and their ratios.

A temporary load on the machine affects everything that is timed in the same
round, so ratios within rounds are more reliable than ratios of medians.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Seconds = dict[str, list[float]]
"""Seconds per call of each timed function, one number per round."""


def in_turn(
    steps: Mapping[str, Callable[[], Any]],
    rounds: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Times each step in every round, with ``calls`` calls in a row."""
    seconds: Seconds = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            begun = clock()
            for _ in range(calls):
                out = step()
            jax.block_until_ready(out)
            seconds[label].append((clock() - begun) / calls)
    return seconds


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the median of the ratios within rounds.

    Example:
        >>> ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        2.0
    """
    return statistics.median(x / y for x, y in zip(a, b, strict=True))
