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
_FURTHER = 2
"""Steps beyond the edge of what was tried."""


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


def beyond(tried: Mapping[Place, float]) -> Place | None:
    """Returns the next place if the best one is at the edge of those tried.

    Example:
        >>> beyond({(0, 0): 3.0, (2, 0): 4.0, (-2, 0): 5.0, (0, 1): 2.0})
        (0, 2)
        >>> beyond({(0, 0): 3.0, (2, 0): 4.0, (-2, 0): 5.0}) is None
        True
    """
    best = min(tried, key=tried.__getitem__)
    for axis, step in enumerate((2, 1)):
        values = {place[axis] for place in tried}
        for edge, sign in ((max(values), 1), (min(values), -1)):
            if len(values) > 1 and best[axis] == edge:
                move = [0, 0]
                move[axis] = sign * step
                return best[0] + move[0], best[1] + move[1]
    return None


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

    Where the best one is at the edge of those tried, the next one is tried too,
    and once more. A setting whose run fails ends the search of its optimizer.

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

    def run_all(new: list[Cell], later: int) -> None:
        cells.extend(new)
        unknown = {"rate": None, "beta": None}
        names = [name for name in tried for _ in range(later)]
        coming = [{"optimizer": name, **unknown} for name in names]
        sweep(records, cells, run, later=coming, **options)

    def try_all(places: Mapping[Hashable, Place], later: int) -> None:
        run_all([row_at(name, at)[0] for name, at in places.items()], later)
        for name, place in places.items():
            cell, row = row_at(name, place)
            if row is None:
                del tried[name]
                cells.remove(cell)
            else:
                score = row["score"]
                tried[name][place] = float("inf") if score is None else score

    for number in range(1, tries + 1):
        places = {name: next_place(own) for name, own in tried.items()}
        try_all(places, tries - number + len(more))
    for _ in range(_FURTHER):
        found = {name: beyond(own) for name, own in tried.items()}
        places = {name: at for name, at in found.items() if at is not None}
        try_all(places, len(more))
    best = {name: min(own, key=own.__getitem__) for name, own in tried.items()}
    new = [
        {**row_at(name, place)[0], "seed": seed}
        for name, place in best.items()
        for seed in more
    ]
    run_all(new, 0)
