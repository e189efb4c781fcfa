"""Rows of the level table for the states of optimizers.

Whatever arrays the state of any optimizer keeps, they are a memory of
gradients. States that answer ``levels()`` describe themselves, and
:data:`STATES` has the words for those of optax; all others have their type's
name.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax.nested.frequency import EveryState
from nl_jax.nested.level import LevelState
from nl_jax.nested.level_table import LevelRow, SupportsLevels, count_bytes

STATES: dict[str, tuple[str, str, str]] = {
    "ScaleByAdamState": ("adam", "vector", "closed form (101-105)"),
    "TraceState": ("momentum", "vector", "gradient descent on dot product"),
    "ScaleByRssState": ("adagrad", "vector", "sum of squares (106-111)"),
    "MuonState": ("muon", "matrix", "momentum, orthogonalised (42-44)"),
    "EmaState": ("mean", "vector", "mean of gradients"),
    "ScaleByLionState": ("lion", "vector", "mean of gradients, sign"),
    "ScaleByRmsState": ("rmsprop", "vector", "mean of squares"),
    "ScaleByRStdDevState": ("rmsprop", "vector", "mean and variance"),
    "FactoredState": ("adafactor", "row and column", "mean of squares"),
    "ScaleByAmsgradState": ("amsgrad", "vector", "Adam, largest square"),
    "ScaleByBeliefState": ("adabelief", "vector", "mean, error of the mean"),
    "ScaleByAdaDeltaState": ("adadelta", "vector", "squares of both"),
    "ScheduleFreeState": ("schedule-free", "vector", "steps without mean"),
    "EveryState": ("gathered gradients", "vector", "sum over a period"),
    "MultiStepsState": ("gathered gradients", "vector", "mean over a period"),
}
"""Words for states by their type: name, architecture and rule."""


def optimizer_levels(
    state: Any, params: Any = None, accumulations: Iterable[float] = ()
) -> tuple[list[LevelRow], dict[tuple[str, ...], float]]:
    """Returns the rows of an optimizer and the period of each parameter.

    Args:
        state: state of the optimizer, or its shapes.
        params: parameters that it is applied to, or their shapes.
        accumulations: calls per step of each ``optax.MultiSteps``, in order.
    """
    reader = _StateReader(params, iter(accumulations))
    reader.read(state, 1, "")
    return reader.rows, dict(zip(reader.paths, reader.periods, strict=True))


def accumulations(optimizer: Any) -> Iterator[float]:
    """Yields the calls per step of each ``optax.MultiSteps`` in an optimizer.

    States do not hold this number. It is what the object says before its first
    step, and is found by way of the functions that refer to it.

    Example:
        >>> chain = optax.chain(optax.MultiSteps(optax.sgd(1.0), 4))
        >>> list(accumulations(chain))
        [4]
    """

    def parts(item):
        if isinstance(item, optax.MultiSteps):
            return [item._opt]
        if isinstance(item, optax.GradientTransformation):
            return [item.init]
        if isinstance(item, functools.partial):
            return [item.func, *item.args, *item.keywords.values()]
        if isinstance(item, dict):  # Keys of pytrees are sorted.
            return [item[key] for key in sorted(item, key=str)]
        if isinstance(item, (list, tuple)):
            return item
        cells = getattr(item, "__closure__", None) or ()
        return [getattr(item, "__self__", None), *map(_content, cells)]

    def walk(item, *above):
        if any(item is other for other in above):
            return
        if isinstance(item, optax.MultiSteps):
            yield int(item._every_k_schedule(0))
        for part in parts(item):
            yield from walk(part, item, *above)

    return walk(optimizer)


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # It is empty as yet.
        return None


class _StateReader:
    """Collects the rows of a state."""

    def __init__(self, params, accumulations):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        self.paths = [tuple(map(_key, path)) for path, _ in leaves]
        self.periods: list[float] = [1] * len(leaves)
        self.rows: list[LevelRow] = []
        self._treedef = jax.tree.structure(params)
        self._shape = leaves[0][1].shape if leaves else None
        self._accumulations = accumulations

    def read(self, node, period, label):
        own, states = self._split(node)
        covered = next(filter(None, map(self._covered, own)), None)
        kind = type(node).__name__
        if isinstance(node, SupportsLevels):
            rows = [
                dataclasses.replace(row, period=row.period * period)
                for row in node.levels()
            ]
            return self._add(rows, covered, label)
        if covered or any(map(_is_memory, jax.tree.leaves(own))):
            name, architecture, rule = STATES.get(
                kind, (kind, "like the parameters", "its own")
            )
            row = LevelRow(
                name=name,
                memory_of="gradients",
                architecture=architecture,
                objective="compress gradients",
                rule=rule,
                period=period,
                unit="steps",
                parameters=0,
                state_bytes=count_bytes(own),
            )
            self._add([row], covered, label)
        factor: float = 1
        if isinstance(node, EveryState):
            factor = node.period.calls
        elif isinstance(node, optax.MultiStepsState):
            factor = next(self._accumulations, float("nan"))
        if factor != 1:
            for index, own in enumerate(covered or ()):
                self.periods[index] *= factor if own else 1
        for key, state in states:
            self.read(state, period * factor, key or label)

    def _split(self, node):
        """Returns the arrays of a state, and the states in it with labels."""
        if self._covered(node):
            return [node], []
        own, states = [], []
        for key, child in _children(node):
            if self._covered(child) or not _children(child):
                own.append(child)
            elif type(child) in (dict, list, tuple, LevelState):
                inner, deeper = self._split(child)
                own += inner
                states += [(k or key, state) for k, state in deeper]
            else:
                states.append((key, child))
        return own, states

    def _covered(self, tree):
        """Which parameters a tree like them has an entry for, else ``None``."""
        if not self.paths:
            return None
        if jax.tree_util.treedef_is_leaf(self._treedef):
            alike = getattr(tree, "shape", None) == self._shape
            return [True] if alike and tree.dtype.kind != "i" else None
        try:
            parts = self._treedef.flatten_up_to(tree)
        except (ValueError, TypeError, KeyError):
            return None
        covered = [not isinstance(part, optax.MaskedNode) for part in parts]
        arrays = all(
            _children(leaf) == []
            for part in parts
            for leaf in jax.tree.leaves(part, is_leaf=_is_state)
        )
        return covered if arrays and any(covered) else None

    def _add(self, rows, covered, label):
        """Adds rows, with the part of the parameters that they belong to."""
        part, share = "", ""
        if covered and not all(covered):
            part = _part(self.paths, covered) or label or "others"
            share = f" of {sum(covered)} of {len(covered)} leaves"
        elif not covered:
            part = label
        part = "" if any(part == row.name for row in rows) else part
        names = {row.name for row in self.rows}
        for row in rows:
            name = first = f"{part} {row.name}".strip()
            number = 2
            while name in names:
                name, number = f"{first} {number}", number + 1
            row = dataclasses.replace(
                row, name=name, memory_of=row.memory_of + share
            )
            self.rows.append(row)


def _part(paths, covered):
    """What the names of some parameters have in common, and others lack."""
    inside = [p for p, own in zip(paths, covered, strict=True) if own]
    outside = [p for p, own in zip(paths, covered, strict=True) if not own]
    common = _common(inside)
    for end in range(1, len(common) + 1):
        if all(path[:end] != common[:end] for path in outside):
            return common[end - 1]
    at = len(common)
    word = "".join(_common([path[at] for path in inside if path[at:]]))
    near = [p[at] for p in outside if p[:at] == common and p[at:]]
    if all(name.startswith(word) for name in near):
        return ""
    return word.strip("_")


def _common(sequences):
    """The longest beginning that all sequences have."""
    common = []
    for entries in zip(*sequences, strict=False):
        if len({*entries}) > 1:
            break
        common.append(entries[0])
    return tuple(common)


def _children(node):
    """Returns the parts of a node with their keys; none for an array."""
    if type(node) is dict:
        return [(str(key), node[key]) for key in sorted(node, key=str)]
    found = jax.tree_util.default_registry.flatten_one_level(node)
    return [] if found is None else [("", child) for child in found[0]]


def _is_memory(leaf):
    """Whether an array is neither a number nor a random key."""
    return bool(leaf.ndim) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_state(node):
    return not isinstance(node, (dict, list, optax.MaskedNode)) and (
        type(node) is not tuple
    )


def _key(entry):
    for name in ("key", "name", "idx"):
        if hasattr(entry, name):
            return str(getattr(entry, name))
    return str(entry)
