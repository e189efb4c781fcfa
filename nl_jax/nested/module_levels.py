"""Rows of the level table for Flax modules that contain memories."""

import dataclasses
import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from nl_jax.errors import InputError
from nl_jax.nested.level_table import LevelRow, count_parameters, shapes_of


def module_levels(module: nn.Module, inputs: Any) -> tuple[list[LevelRow], Any]:
    """Returns a module's rows and the shapes of its parameters.

    The modules in it whose ``config`` has ``levels(params, state)``, as the
    layers of this library have, are its memories; all other parameters are one
    row. A layer that is called several times is one memory, and copies of a
    layer that Flax scans or maps are counted together.

    Args:
        module: a Linen module.
        inputs: its argument, or a tuple of them, or their shapes; ``None`` for
            tokens ``[1, 1, d_model]``, if it has a ``d_model``.

    Raises:
        InputError: if there are no inputs.
    """
    if inputs is None:
        if not hasattr(module, "d_model"):
            raise InputError(
                f"the module {type(module).__name__} is described with "
                "inputs=..., arrays that it can be called with, or their shapes"
            )
        inputs = jax.ShapeDtypeStruct((1, 1, module.d_model), jnp.float32)
    found: dict[tuple[str, ...], tuple[int, list[LevelRow]]] = {}
    inside: list[nn.Module] = []

    def watch(call, args, options, context):
        layer = context.module
        levels = getattr(getattr(layer, "config", None), "levels", None)
        if context.method_name != "__call__" or levels is None or inside:
            return call(*args, **options)
        inside.append(layer)
        out = call(*args, **options)
        state = None
        if hasattr(layer, "initial_state"):
            state = _shapes(layer.initial_state(1))
        params = _shapes(layer.variables.get("params", {}))
        found[layer.path] = count_parameters(params), levels(params, state)
        inside.pop()
        return out

    def init(rng, inputs):
        with nn.intercept_methods(watch):
            return nn.meta.unbox(module.init(rng, *inputs))

    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    shapes = jax.eval_shape(init, jax.random.key(0), inputs).get("params", {})
    rows = []
    for path, (one, levels) in found.items():
        copies = 1
        if one:
            whole = functools.reduce(operator.getitem, path, shapes)
            copies = count_parameters(whole) // one
        rows += [_named(row, path, copies) for row in levels]
    return [*rows, _others(shapes, rows)], {"params": shapes}


def nnx_levels(module: nnx.Module, inputs: Any) -> tuple[list[LevelRow], Any]:
    """Returns an NNX module's rows and the shapes of its parameters.

    Its memories are those of Linen modules that Flax's bridge has put into it.
    """
    rows = []
    for path, part in nnx.iter_modules(module):
        linen = getattr(part, "to_nnx__module", None)
        if linen is not None:
            *inner, _ = module_levels(linen, inputs)[0]
            rows += [_named(row, path) for row in inner]
    params = shapes_of("module", nnx.state(module, nnx.Param))
    return [*rows, _others(params, rows)], params


def _named(row, path, copies=1):
    return dataclasses.replace(
        row,
        name=".".join((*map(str, path), row.name)),
        parameters=row.parameters * copies,
        state_bytes=row.state_bytes * copies,
    )


def _others(params, rows):
    return LevelRow(
        name="slow parameters",
        memory_of="the training data",
        architecture="all other parameters",
        objective="training loss",
        rule="outer optimizer",
        period=1,
        unit="steps",
        parameters=count_parameters(params) - sum(r.parameters for r in rows),
        state_bytes=0,
    )


def _shapes(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        nn.meta.unbox(tree),
    )
