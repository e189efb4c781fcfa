"""Seconds of things that are timed in turn, round by round, and their ratios.

What disturbs a machine for a while disturbs all that is timed in a round, so
that ratios within rounds tell more than ratios of medians.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Seconds = dict[str, list[float]]
"""Seconds per call of each thing that was timed, one per round."""


def in_turn(
    steps: Mapping[str, Callable[[], Any]],
    rounds: int,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Times each step in every round, ``calls`` of it in a row."""
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
    """Median of the ratios of rounds.

    Example:
        >>> ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        2.0
    """
    return statistics.median(x / y for x, y in zip(a, b, strict=True))
