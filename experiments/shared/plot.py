"""Figures of curves in panels, and of bars.

Matplotlib is imported only when a figure is drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Panel(NamedTuple):
    """The curves of one panel and the labels of its axes."""

    curves: Mapping[str, Sequence[Any]]
    """By label: x, y and, optionally, the spread of y."""
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
    """Returns a figure of panels side by side.

    Args:
        panels: from left to right.
        size: of the figure in inches.
        legend: index of the panel with the legend; ``None`` puts it beside the
            last panel.
        subplots: options of ``Figure.subplots``, such as ``sharey=True``.
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
    """Returns a figure with a bar for each name, from short to long."""
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
