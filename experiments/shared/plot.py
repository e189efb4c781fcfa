"""Figures of curves in panels, and of bars; matplotlib is imported late."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Panel(NamedTuple):
    """The curves of one panel and what its axes say."""

    curves: Mapping[str, Sequence[Any]]
    """By label: x and y, and where there is a spread, that of y."""
    xlabel: str
    ylabel: str = ""
    title: str = ""
    scales: tuple[str, str] = ("linear", "linear")
    """Of x and y, as matplotlib names them."""
    style: str = "-"
    """As matplotlib's ``fmt``."""


def curves(
    *panels: Panel,
    size: tuple[float, float] = (7, 4),
    legend: int | None = 0,
    **subplots: Any,
) -> Any:
    """Returns the figure of panels beside each other.

    Args:
        panels: from left to right.
        size: of the figure, inches.
        legend: the panel that has it; ``None`` puts it beside the last one.
        subplots: for ``Figure.subplots``, as ``sharey=True``.
    """
    figure, all_axes = axes(size, len(panels), **subplots)
    for own, panel in zip(all_axes, panels, strict=True):
        for label, (x, y, *spread) in panel.curves.items():
            own.errorbar(
                x,
                y,
                *spread,
                fmt=panel.style,
                markersize=3,
                capsize=2,
                label=label,
            )
        own.set(xlabel=panel.xlabel, ylabel=panel.ylabel, title=panel.title)
        own.set(xscale=panel.scales[0], yscale=panel.scales[1])
    if not any(panel.curves for panel in panels):
        return figure
    if legend is None:
        all_axes[-1].legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        all_axes[legend].legend(fontsize=7)
    return figure


def bars(lengths: Mapping[str, float], xlabel: str) -> Any:
    """Returns the figure of a bar for each name, from short to long."""
    figure, (own,) = axes((8, max(0.3 * len(lengths) + 1, 3)))
    order = sorted(lengths, key=lambda name: lengths[name])
    own.barh(order, [lengths[name] for name in order])
    own.set_xlabel(xlabel)
    return figure


def axes(size: tuple[float, float], count: int = 1, **subplots: Any):
    """Returns a figure and the axes of its panels, from left to right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(1, count, squeeze=False, **subplots)[0]
