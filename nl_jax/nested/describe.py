"""Description of models, memories and optimizers as a level table.

Nothing here knows a model. An object that wants rows in the table answers
``levels()``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import optax
from flax import nnx

from nl_jax.errors import InputError
from nl_jax.nested.level import Level, NestedSystem
from nl_jax.nested.level_table import (
    LevelRow,
    LevelTable,
    SupportsLevels,
    count_bytes,
    count_parameters,
    shapes_of,
)
from nl_jax.nested.module_levels import module_levels, nnx_levels
from nl_jax.nested.optimizer_levels import optimizer_levels


def describe(
    *objects: Any, params: Any = None, inputs: Any = None
) -> LevelTable:
    """Lists the levels of models, memories, optimizers and their states.

    Beside an optimizer, the levels of a model that the optimizer moves have the
    period at which it moves them.

    Args:
        *objects: each answers ``levels()``, or is a ``Level``, a
            ``NestedSystem``, a Flax module (Linen or NNX), an optax
            transformation or the state of one, an ``nnx.Optimizer`` or a
            ``TrainState`` of Flax.
        params: parameters, or their shapes, that optimizers and levels among
            the objects are applied to, by default those of a model among them;
            without, levels have no sizes. Those of a system by level.
        inputs: argument of Linen modules, or a tuple of them, or their shapes.

    Raises:
        TypeError: for an object that is none of these.
        InputError: for an optimizer without ``params``, a module without
            ``inputs``, parameters that are not those of a system, or a state
            with leaves that are neither arrays nor numbers.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> print(describe(optax.adam(1e-3), params=jnp.ones(3)).rows[0].name)
        adam
    """
    models: list[LevelRow] = []
    others: list[LevelRow] = []
    optimizers = []
    if params is not None:
        params = shapes_of("params", params)
    given = params
    for item in objects:
        if isinstance(item, optax.MultiSteps):
            item = item.gradient_transformation()
        if hasattr(item, "tx") and hasattr(item, "opt_state"):
            optimizers.append((item.tx, item.opt_state))
            if params is None and hasattr(item, "params"):
                params = shapes_of("params", item.params)
        elif isinstance(item, SupportsLevels):
            if given is not None and hasattr(item, "levels_of"):
                models += item.levels_of(given)
            else:
                models += item.levels()
            if params is None and hasattr(item, "parameter_shapes"):
                params = item.parameter_shapes()
        elif isinstance(item, (nn.Module, nnx.Module)):
            if isinstance(item, nn.Module):
                rows, shapes = module_levels(item, inputs)
            else:
                rows, shapes = nnx_levels(item, inputs)
            models += rows
            params = shapes if params is None else params
        elif isinstance(item, Level):
            others.append(_level_row("level", item, params))
        elif isinstance(item, NestedSystem):
            others += _system_rows(item, params)
        elif isinstance(item, optax.GradientTransformation) or _is_state(item):
            transforms = isinstance(item, optax.GradientTransformation)
            optimizers.append((item, None) if transforms else (None, item))
        else:
            raise TypeError(
                f"{type(item).__name__} has no levels() and is no level, no "
                "system of them, no Flax module and no optax transformation "
                "or state"
            )
    periods: dict[tuple[str, ...], float] = {}
    for optimizer, state in optimizers:
        if optimizer is not None and params is not None:
            state = jax.eval_shape(optimizer.init, params)
        elif state is None:
            raise InputError("an optimizer is described with params=...")
        state = shapes_of("state", state)
        rows, own = optimizer_levels(state, params, optimizer)
        others += rows
        periods |= {at: n * periods.get(at, 1) for at, n in own.items()}
    rows = [*_as_moved(models, periods), *others]
    rows.sort(  # Unknown periods, which do not compare, are last.
        key=lambda row: (
            row.unit != "tokens",
            math.isnan(row.period),
            row.period,
        )
    )
    return LevelTable(tuple(rows))


def _is_state(item):
    node = jax.tree_util.default_registry.flatten_one_level(item)
    return bool(node and not isinstance(item, (dict, list, type(None))))


def _as_moved(rows, periods):
    """Gives levels that an optimizer moves the period at which it does."""
    named = tuple(row.moves for row in rows if row.moves)

    def owns(row, name):
        return name.startswith(row.moves or named) == bool(row.moves)

    for row in rows:
        own = {n for path, n in periods.items() if owns(row, path[-1])}
        if row.unit == "steps" and own:
            unknown = any(map(math.isnan, own))
            row = dataclasses.replace(
                row, period=math.nan if unknown else min(own)
            )
        yield row


def _system_rows(system, params):
    if params is not None:
        given = set(params) if isinstance(params, Mapping) else {type(params)}
        if given != set(system.members):
            raise InputError(
                f"params has levels {sorted(map(str, given))}; the system has "
                f"{sorted(system.members)}"
            )
    return [
        _level_row(name, system.members[name], params and params[name])
        for name in system.order
    ]


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
