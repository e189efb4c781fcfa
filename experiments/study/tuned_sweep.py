"""Sweeps whose every model runs at its own best learning rate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.shared import flags
from experiments.shared.records import Records, Row
from experiments.shared.sweep import Cell, grouped, sweep

TUNING = {
    "rates": flags.numbers(
        [4e-3, 8e-3, 1.6e-2],
        "Learning rates to choose from.",
        lambda rate: rate > 0,
        "must be positive numbers",
    ),
    "seeds": flags.seeds([0, 1, 2], "The first one chooses the rates."),
    "jobs": flags.jobs(),
}
"""Flags of such a sweep."""


def tuned_sweep(
    records: Records,
    subjects: Sequence[Cell],
    run: Callable[..., Mapping[str, Any]],
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    jobs: int,
    work: Callable[[Cell], float] = lambda cell: 1.0,
) -> list[Row]:
    """Runs all rates with the first seed, and the best with all seeds.

    Args:
        records: of this command.
        subjects: what is compared, a cell each without rate and seed.
        run: takes a subject's values, ``rate`` and ``seed``; its result has
            ``bits_per_byte``, ``None`` if training diverged.
        rates: to choose from.
        seeds: of the runs.
        jobs: processes that run cells at the same time.
        work: what a cell costs in comparison with others.
    """
    first, *more = seeds
    # A rate at a time, so that all subjects can be compared early.
    order = sorted(rates, key=lambda rate: abs(np.log(rate / np.median(rates))))
    cells = [
        {**subject, "rate": rate, "seed": first}
        for rate in order
        for subject in subjects
    ]
    later = [
        {**subject, "rate": None, "seed": seed}
        for seed in more
        for subject in subjects
    ]
    names = " ".join(f"{{{name}}}" for name in subjects[0])
    options: dict[str, Any] = {
        "before": names + ", rate {rate:g}, seed {seed}",
        "after": "{bits_per_byte} bits per byte after {seconds} s",
        "jobs": jobs,
        "work": work,
    }
    rows = sweep(records, cells, run, later=later, **options)
    best = best_rates(rows, *subjects[0])
    # With those that are done, so that progress is that of all.
    cells = [cell for cell in cells if records.find(**cell)]
    for cell in later:
        key = tuple(cell[name] for name in subjects[0])
        rate = best.get(key if len(key) > 1 else key[0])
        if rate is not None:
            cells.append({**cell, "rate": rate})
    return sweep(records, cells, run, **options)


def best_rates(rows: Sequence[Row], *names: str) -> dict[Any, float]:
    """Returns each subject's rate of the lowest loss; none if all diverged."""
    best = {}
    for key, group in grouped(rows, *names).items():
        finite = [row for row in group if row["bits_per_byte"] is not None]
        if finite:
            best[key] = min(finite, key=lambda r: r["bits_per_byte"])["rate"]
    return best
