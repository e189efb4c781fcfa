"""Checks that states and variables are those of a model."""

import functools
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from nl_jax.checks import leaf_name
from nl_jax.errors import InputError


def params_of(variables: Any) -> Any:
    """Returns the parameters themselves.

    Raises:
        InputError: if ``variables`` are not those of a model.
    """
    params = variables.get("params") if isinstance(variables, Mapping) else None
    if not isinstance(params, Mapping) or "blocks" not in params:
        raise InputError(
            "variables are not those of a model, {'params': {'blocks': ...}}, "
            "which init returns"
        )
    return params


def check_state(model: Any, state: Any, one: Any = None) -> int:
    """Checks that a state is one of the model; returns its number of rows.

    Args:
        model: the model.
        state: the state.
        one: shapes of the model's state for one row, if they are known.

    Raises:
        InputError: if a leaf is missing or has another shape.
    """
    wanted = one or _shapes(model)
    structure: Any = jax.tree.structure(state)
    if structure != jax.tree.structure(wanted):
        _refuse(model, "its levels and memories are others")
    found = jax.tree_util.tree_leaves_with_path(state)
    rows = next((leaf.shape[0] for _, leaf in found if jnp.ndim(leaf)), 1)
    for (path, leaf), expected in zip(
        found, jax.tree.leaves(wanted), strict=True
    ):
        shape = (rows, *expected.shape[1:])
        if jnp.shape(leaf) != shape:
            _refuse(
                model,
                f"{leaf_name(path)} has shape {jnp.shape(leaf)}, not {shape}",
            )
    return rows


@functools.lru_cache(maxsize=64)
def _shapes(model):
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def initial(rng, tokens):
        return model.init_state(model.init(rng, tokens), 1)

    return jax.eval_shape(initial, jax.random.key(0), tokens)


def _refuse(model, why) -> NoReturn:
    raise InputError(
        f"state is not one of this {model.config.name} ({why}); take it from "
        "model.init_state, stream or load_state with the same configuration"
    )
