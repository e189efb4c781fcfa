"""The level table: what of a model and its optimizer learns, and how often.

Nothing here knows a model. An object that wants rows in the table, the state of
an optimizer too, answers ``levels()``; optax's own states are listed in one
table.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import optax

from nl_jax.nested.frequency import EveryState
from nl_jax.nested.level import Level, NestedSystem


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


@runtime_checkable
class SupportsLevels(Protocol):
    """What an object needs in order to appear in the table."""

    def levels(self) -> Sequence[LevelRow]:
        """Returns the object's levels."""
        ...


OPTAX_STATES: dict[str, tuple[str, str, str]] = {
    "ScaleByAdamState": (
        "gradients",
        "vector",
        "closed form (101-105)",
    ),
    "TraceState": ("gradients", "vector", "gradient descent on dot product"),
    "ScaleByRssState": ("gradients", "vector", "sum of squares (106-111)"),
    "MuonState": ("gradients", "matrix", "momentum, orthogonalised (42-44)"),
}
"""Optax states that are memories: what of, architecture, rule."""


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


def describe(*objects: Any, params: Any = None) -> LevelTable:
    """Lists the levels of models, optimizers and their states.

    Args:
        *objects: each answers ``levels()``, or is a ``Level``, a
            ``NestedSystem``, an optax transformation or the state of one.
        params: parameters, or their shapes, that optimizers and levels among
            the objects are applied to; without, levels have no sizes.

    Raises:
        TypeError: for an object that is none of these.
        ValueError: for an optimizer without ``params``.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> print(describe(optax.adam(1e-3), params=jnp.ones(3)).rows[0].name)
        ScaleByAdamState
    """
    rows: list[LevelRow] = []
    for item in objects:
        if isinstance(item, SupportsLevels):
            rows += item.levels()
        elif isinstance(item, Level):
            rows.append(_level_row("level", item, params))
        elif isinstance(item, NestedSystem):
            of = params or {}
            rows += [
                _level_row(name, item.members[name], of.get(name))
                for name in item.order
            ]
        elif isinstance(item, optax.GradientTransformation):
            if params is None:
                raise ValueError("an optimizer is described with params=...")
            state = jax.eval_shape(item.init, params)
            rows += _optimizer_rows(state, 1)
        elif isinstance(item, tuple):
            rows += _optimizer_rows(item, 1)
        else:
            raise TypeError(
                f"{type(item).__name__} has no levels() and is no level, no "
                "system of them and no optax transformation or state"
            )
    rows.sort(key=lambda row: (row.unit != "tokens", row.period))
    return LevelTable(tuple(rows))


def _level_row(name, level, params):
    size = 0
    if params is not None:
        state = jax.eval_shape(level.init, params)
        size = count_bytes((state.gathered, state.inner))
    return LevelRow(
        name=name,
        memory_of="its context",
        architecture="parameters",
        objective="its own",
        rule=level.rule if level.period else "none",
        period=level.period or math.inf,
        unit="ticks",
        parameters=count_parameters(params),
        state_bytes=size,
    )


def _optimizer_rows(state, period):
    name = type(state).__name__
    if isinstance(state, EveryState):
        return _optimizer_rows(state.inner, period * int(state.period))
    if isinstance(state, SupportsLevels):
        return [
            dataclasses.replace(row, period=row.period * period)
            for row in state.levels()
        ]
    if name in OPTAX_STATES:
        memory_of, architecture, rule = OPTAX_STATES[name]
        row = LevelRow(
            name=name,
            memory_of=memory_of,
            architecture=architecture,
            objective="compress gradients",
            rule=rule,
            period=period,
            unit="steps",
            parameters=0,
            state_bytes=count_bytes(state),
        )
        return [row]
    if isinstance(state, dict):
        children = list(state.values())
    elif isinstance(state, tuple):
        children = list(state)
    else:
        children = []
    return [row for child in children for row in _optimizer_rows(child, period)]


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
