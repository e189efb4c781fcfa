"""The level table: what of a model and its optimizer learns, and how often."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx

from nl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LevelRow:
    """One level: parameters that share an objective and a frequency."""

    name: str
    """Where it is."""
    memory_of: str
    """What its context is: the pairs it compresses."""
    architecture: str
    """What function it is."""
    objective: str
    """What it minimises."""
    rule: str
    """How it steps."""
    period: float
    """Distance between updates in ``unit``; 0 is every moment
    (non-parametric), infinity is never."""
    unit: str
    """``"tokens"``, ``"steps"`` of the outer optimizer, or the ``"ticks"`` of a
    loop."""
    parameters: int
    """Slow parameters that define it."""
    state_bytes: int
    """Fast state: of one batch row, or of the optimizer."""
    runs: str = ""
    """What computes a long sequence on the devices here, out of its
    operation's ``IMPLEMENTATIONS``; empty where there is no choice."""
    moves: str = ""
    """How the names of its parameters begin that an optimizer moves, so that
    the optimizer's period is known; empty for those of no other row."""


@runtime_checkable
class SupportsLevels(Protocol):
    """What an object needs in order to appear in the table."""

    def levels(self) -> Sequence[LevelRow]:
        """Returns the object's levels."""
        ...


@dataclasses.dataclass(frozen=True)
class LevelTable:
    """Rows from the fastest level to the slowest; ``str`` gives the text."""

    rows: tuple[LevelRow, ...]

    def __str__(self) -> str:
        head = (
            "level",
            "memory of",
            "architecture",
            "objective",
            "rule",
            "period",
            "parameters",
            "state",
            "runs",
        )
        body = [_cells(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(head, *body)]  # noqa: B905
        lines = [
            "  ".join(map(str.ljust, cells, widths)).rstrip()
            for cells in (head, tuple("-" * w for w in widths), *body)
        ]
        return "\n".join(lines)

    def figure(self, path: str | pathlib.Path) -> None:
        """Draws the levels against their period and writes an image."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 0.55 * len(self.rows) + 1.2))
        axes = figure.subplots()
        finite = [r.period for r in self.rows if 0 < r.period < math.inf]
        most = max(finite, default=1)
        tokens = [r for r in self.rows if r.unit == "tokens"]
        for index, row in enumerate(self.rows):
            x = min(max(row.period, 0.5), 4 * most)
            color = "tab:orange" if row in tokens else "tab:blue"
            axes.plot([0.5, x], [index, index], color="0.85", zorder=1)
            axes.scatter([x], [index], s=60, color=color, zorder=2)
            axes.annotate(
                f"{row.architecture}, {row.rule}",
                (x, index),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.4, 64 * most)
        axes.set_yticks(
            range(len(self.rows)),
            [f"{row.name}  ({row.memory_of})" for row in self.rows],
            fontsize=8,
        )
        axes.invert_yaxis()
        axes.set_xlabel(
            "update period: tokens (orange), optimizer steps (blue)"
        )
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, dpi=120)


def shapes_of(name: str, tree: Any) -> Any:
    """Returns the shapes of a tree of arrays, numbers or NNX variables.

    Raises:
        InputError: for any other leaf, naming it and the tree.
    """

    def shape(path, leaf):
        if isinstance(leaf, nnx.Variable):
            (leaf,) = jax.tree.leaves(leaf)
        try:
            return jax.eval_shape(lambda x: x, leaf)
        except TypeError:
            where = name + jax.tree_util.keystr(path)
            kind = type(leaf).__name__
            raise InputError(
                f"{where} is a {kind}, not an array or a number"
            ) from None

    return jax.tree_util.tree_map_with_path(
        shape, tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )


def count_parameters(tree: Any) -> int:
    """Returns the number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Any) -> int:
    """Returns the bytes that a tree of arrays or shapes takes."""
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _cells(row: LevelRow) -> tuple[str, ...]:
    period = {0: "continuous", math.inf: "never"}.get(row.period)
    if period is None and math.isnan(row.period):
        period = "unknown"
    if period is None:
        unit = row.unit if row.period != 1 else row.unit.removesuffix("s")
        period = f"{row.period:g} {unit}"
    return (
        row.name,
        row.memory_of,
        row.architecture,
        row.objective,
        row.rule,
        period,
        f"{row.parameters:,}",
        _human(row.state_bytes),
        row.runs,
    )


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.4g} {unit}"
