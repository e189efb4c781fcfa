"""Rows of the level table for the states of optimizers.

Whatever arrays the state of any optimizer keeps, they are a memory of
gradients. States that answer ``levels()`` describe themselves, and
:data:`STATES` has the words for those of optax; all others have their type's
name.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax.nested.frequency import EveryState
from nl_jax.nested.level import LevelState
from nl_jax.nested.level_table import LevelRow, SupportsLevels, count_bytes
from nl_jax.nested.optimizer_functions import accumulations, still_parameters

STATES: dict[str, tuple[str, str, str]] = {
    "ScaleByAdamState": ("adam", "vector", "closed form (101-105)"),
    "TraceState": ("momentum", "vector", "gradient descent on dot product"),
    "ScaleByRssState": ("adagrad", "vector", "sum of squares (106-111)"),
    "NeuronState": ("neurons", "row", "mean of squares"),
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
    "ApplyEvery": ("gathered updates", "vector", "sum over a period"),
}
"""Words for states by their type: name, architecture and rule."""

_RARE = {"ApplyEvery", "ConditionallyMaskState"}
"""States of what moves parameters at times that the state does not tell."""


def optimizer_levels(
    state: Any,
    params: Any = None,
    optimizer: optax.GradientTransformation | None = None,
) -> tuple[list[LevelRow], dict[tuple[str, ...], float]]:
    """Returns the rows of an optimizer and the period of each parameter.

    Args:
        state: state of the optimizer, or its shapes.
        params: parameters that it is applied to, or their shapes.
        optimizer: the optimizer, if known.
    """
    reader = _StateReader(params, iter(accumulations(optimizer)))
    reader.read(state, 1, "")
    periods = dict(zip(reader.paths, reader.periods, strict=True))
    if optimizer is not None and params is not None:
        still = still_parameters(optimizer, state, params)
        stay = zip(reader.paths, still, strict=True)
        periods |= {path: math.inf for path, never in stay if never}
    return reader.rows, periods


class _StateReader:
    """Collects the rows of a state."""

    def __init__(self, params, accumulations):
        leaves = jax.tree_util.tree_leaves_with_path(params)
        self.paths = [tuple(map(_key, path)) for path, _ in leaves]
        self.periods: list[float] = [1] * len(leaves)
        self.rows: list[LevelRow] = []
        self._params = params
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
            factor = next(self._accumulations, math.nan)
        moves = math.nan if kind in _RARE else factor
        if moves != 1:
            for index, own in enumerate(covered or [True] * len(self.paths)):
                self.periods[index] *= moves if own else 1
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
            elif isinstance(child, Mapping) or (
                type(child) in (list, tuple, LevelState)
            ):
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
        if _flatten(self._params) is None:
            alike = getattr(tree, "shape", None) == self._shape
            counts = alike and not tree.shape and tree.dtype.kind == "i"
            return [True] if alike and not counts else None
        try:
            parts = list(_parts(tree, self._params))
        except ValueError:
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
    found = _flatten(node)
    return [] if found is None else [("", child) for child in found[0]]


def _parts(tree, params):
    """Yields what a tree like the parameters has in place of each of them.

    A masked node in place of a subtree stands for all parameters in it.
    """
    if isinstance(tree, optax.MaskedNode):
        yield from [tree] * len(jax.tree.leaves(params))
        return
    like, own = _flatten(params), _flatten(tree)
    if like is None:
        yield tree
        return
    if type(tree) is not type(params) or own is None or own[1] != like[1]:
        raise ValueError("not like the parameters")
    for part, below in zip(own[0], like[0], strict=True):
        yield from _parts(part, below)


def _flatten(node):
    return jax.tree_util.default_registry.flatten_one_level(node)


def _is_memory(leaf):
    """Whether an array is neither a number, a count nor a random key."""
    kinds = jnp.inexact if leaf.dtype.itemsize >= 4 else jnp.generic
    return bool(leaf.ndim) and jnp.issubdtype(leaf.dtype, kinds)


def _is_state(node):
    return not isinstance(node, (dict, list, optax.MaskedNode)) and (
        type(node) is not tuple
    )


def _key(entry):
    for name in ("key", "name", "idx"):
        if hasattr(entry, name):
            return str(getattr(entry, name))
    return str(entry)
