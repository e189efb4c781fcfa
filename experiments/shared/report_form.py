"""How the cells of an experiment become a table and plots.

A script has a ``REPORT`` of this kind, or several in a tuple, which
``experiments.report`` reads. Without one, all numbers of its cells are shown.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Field = str | Callable[[Row], Any]
"""Name of a value, with dots for one inside another, or a function of the row.

A row holds the settings, the cell and its results.
"""


class Column(NamedTuple):
    """A number, of which the table has the mean ± standard error."""

    field: Field
    form: str = ".3f"
    scale: float = 1.0
    """Factor, such as 100 for percent."""


class Plot(NamedTuple):
    """Curves, or a bar for each row of the table if there is no ``x``."""

    y: Field
    """A number, or a list of them."""
    ylabel: str
    x: Field | None = None
    """A number, or a list as long as that of ``y``."""
    xlabel: str = ""
    series: tuple[str, ...] = ()
    """Fields that tell curves apart; by default those of the table."""
    scales: tuple[str, str] = ("linear", "linear")
    """Of x and y, as matplotlib names them."""
    scale: float = 1.0
    """Factor of ``y``."""


class Paper(NamedTuple):
    """What the paper reports, and with which setting."""

    source: str
    """Such as ``Table 4``."""
    setting: Mapping[str, Any]
    """Fields of rows with the values that the paper has, or functions of the
    row. Only where all are equal, its numbers are shown; else what differs."""
    figures: Mapping[tuple, Mapping[str, float]] = MappingProxyType({})
    """By the values of ``by``, then by the column's head."""


class Report(NamedTuple):
    """The table and plots of an experiment."""

    title: str
    by: tuple[str, ...]
    """Fields of which each combination is a line of the table."""
    columns: Mapping[str, Column]
    """By head."""
    plots: Sequence[Plot] = ()
    paper: Paper | None = None
    best: tuple[str, ...] | None = None
    """Fields that were tuned, such as a rate, and the number that is lowest at
    their best values, in the mean of the seeds that ran at all values."""
    base: Callable[[Row], Any] | None = None
    """Returns of a row the first value of ``by`` of the line with which the
    first column is compared, over seeds that both have."""
    extra: Callable[[Sequence[Row]], tuple[list[str], list[list]]] | None = None
    """Returns head and lines of another table, from the rows that are shown."""
    only: Callable[[Row], bool] = lambda row: True
    """Whether a cell, with its settings, is shown."""
    note: str = ""


def value_of(row: Row, field: Field) -> Any:
    """Returns a value of a row, ``None`` if it is missing.

    A function has none where the row lacks what it needs, such as a result that
    diverged.

    Example:
        >>> value_of({"a": {"b": 2}}, "a.b")
        2
    """
    if callable(field):
        try:
            return field(row)
        except (KeyError, IndexError, TypeError):
            return None
    found: Any = row
    for name in field.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return row.get(field)
        found = found[name]
    return found


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def numbers_of(rows: Sequence[Row], column: Column) -> list[float]:
    """Returns a column's finite numbers."""
    found = [value_of(row, column.field) for row in rows]
    return [column.scale * value for value in found if is_number(value)]
