"""A search for the best rate and decay, with as many tries for everyone."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from experiments.shared.records import Records, Row
from experiments.shared.sweep import Cell, sweep

Place = tuple[int, int]
"""Quarters of a decade of the rate, and doublings of the decay's horizon."""
# Half a decade first, which is refined once both sides are worse.
_STEPS = ((2, 0), (-2, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
_DIAGONALS = ((1, 1), (-1, -1), (1, -1), (-1, 1))


def next_place(tried: Mapping[Place, float]) -> Place:
    """Returns the first place beside the best one that was not tried.

    Example:
        >>> next_place({(0, 0): 3.0, (2, 0): 4.0})
        (-2, 0)
        >>> next_place({(0, 0): 3.0, (2, 0): 4.0, (-2, 0): 2.0})
        (-4, 0)
    """
    if not tried:
        return 0, 0
    i, j = min(tried, key=tried.__getitem__)
    beside = [(i + a, j + b) for a, b in (*_STEPS, *_DIAGONALS)]
    return next((p for p in beside if p not in tried), (i, j))


def setting_at(place: Place, rate: float, beta: float) -> dict[str, float]:
    """Returns rate and decay at a place, given those in the middle.

    Example:
        >>> setting_at((-2, 1), 0.01, 0.9)
        {'rate': 0.00316, 'beta': 0.95}
    """
    i, j = place
    return {
        "rate": float(f"{rate * 10 ** (i / 4):.3g}"),
        "beta": round(max(1 - (1 - beta) / 2**j, 0.0), 4),
    }


def search(
    records: Records,
    middles: Mapping[Hashable, tuple[float, float]],
    run: Callable[..., Mapping[str, Any]],
    *,
    tries: int,
    seeds: Sequence[int],
    **options: Any,
) -> None:
    """Tries settings with the first seed, and runs all seeds at the best.

    A setting whose run fails ends the search of its optimizer.

    Args:
        records: of this command.
        middles: rate and decay that each optimizer begins with.
        run: takes ``optimizer``, ``rate``, ``beta`` and ``seed``; its result
            has ``score``, lower is better, ``None`` if training diverged.
        tries: number of settings of each.
        seeds: of the runs.
        **options: of ``sweep``.
    """
    first, *more = seeds
    tried: dict[Hashable, dict[Place, float]] = {name: {} for name in middles}
    cells: list[Cell] = []

    def row_at(name: Hashable, place: Place) -> tuple[Cell, Row | None]:
        setting = setting_at(place, *middles[name])
        cell = {"optimizer": name, **setting, "seed": first}
        return cell, records.find(**cell)

    def run_all(new: list[Cell], rounds: int) -> None:
        cells.extend(new)
        unknown = {"rate": None, "beta": None}
        later = [
            {"optimizer": name, **unknown, "seed": seed}
            for name in tried
            for seed in [first] * rounds + (more if rounds >= 0 else [])
        ]
        sweep(records, cells, run, later=later, **options)

    for number in range(tries):
        places = {name: next_place(own) for name, own in tried.items()}
        new = [row_at(name, place)[0] for name, place in places.items()]
        run_all(new, tries - 1 - number)
        for name, place in places.items():
            _, row = row_at(name, place)
            if row is None:
                del tried[name]
            else:
                score = row["score"]
                tried[name][place] = float("inf") if score is None else score
    best = {name: min(own, key=own.__getitem__) for name, own in tried.items()}
    new = [
        {**row_at(name, place)[0], "seed": seed}
        for name, place in best.items()
        for seed in more
    ]
    run_all(new, -1)
