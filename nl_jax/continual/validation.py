"""Checks of states, levels and rows."""

import functools
from collections.abc import Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.checks import is_integer, leaf_name
from nl_jax.models import LanguageModel

ALL_MIXERS = "mixers"
"""Name by which the memories of all sequence mixers count as a level."""


@functools.partial(jax.jit, static_argnums=(0, 2))
def fresh_state(model: LanguageModel, variables: Any, rows: int) -> Any:
    """Returns the learned initial state for ``rows`` streams."""
    return model.init_state(variables, rows)


def check_state(model: LanguageModel, state: Any) -> int:
    """Checks that a state is one of the model; returns its number of rows.

    Raises:
        ValueError: if a leaf is missing or has another shape.
    """
    leaves = jax.tree.leaves(state)
    if not leaves or not all(np.ndim(leaf) for leaf in leaves):
        _refuse(model, f"it is a {type(state).__name__} without rows")
    rows = leaves[0].shape[0]
    wanted = _shapes(model)
    structure: Any = jax.tree.structure(state)
    if structure != jax.tree.structure(wanted):
        _refuse(model, "its levels and memories are others")
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(wanted),
        strict=True,
    )
    for (path, leaf), expected in pairs:
        shape = (rows, *expected.shape[1:])
        if leaf.shape != shape:
            _refuse(
                model, f"{leaf_name(path)} has shape {leaf.shape}, not {shape}"
            )
    return rows


def check_level(model: LanguageModel, level: Any) -> None:
    """Checks that ``level`` names the mixers or a level that learns in context.

    Raises:
        ValueError: if it is not, or the model has no such level.
    """
    if level == ALL_MIXERS:
        return
    cms = model.config.cms
    if not model.learns_in_context:
        raise ValueError(
            f"level={level!r}: no MLP of this {model.config.name} learns in "
            f"context (cms.objective={cms.objective!r}, cms.rate={cms.rate}); "
            "build it with cms={'objective': 'next_token'}, or name "
            f"{ALL_MIXERS!r}"
        )
    count = len(cms.periods)
    if not is_integer(level) or not 1 <= level <= count:
        raise ValueError(
            f"level={level!r} must be from 1, the fastest, to {count}, or "
            f"{ALL_MIXERS!r}"
        )


def check_rows(rows: int | Iterable[int], count: int) -> np.ndarray:
    """Returns row numbers as a checked array.

    Raises:
        ValueError: if it is empty, or a row is not between 0 and ``count - 1``.

    Example:
        >>> check_rows([0, 2], 3)
        array([0, 2])
        >>> check_rows(3, 3)
        Traceback (most recent call last):
        ...
        ValueError: rows=[3] must be one or several of 0 to 2
    """
    found = np.atleast_1d(np.asarray(rows))
    whole = found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    if not whole or not found.size or found.min() < 0 or found.max() >= count:
        raise ValueError(
            f"rows={found.tolist()} must be one or several of 0 to {count - 1}"
        )
    return found


@functools.lru_cache(maxsize=64)
def _shapes(model):
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)

    def initial(rng, tokens):
        return model.init_state(model.init(rng, tokens), 1)

    return jax.eval_shape(initial, jax.random.key(0), tokens)


def _refuse(model, why) -> NoReturn:
    raise ValueError(
        f"state is not one of this {model.config.name} ({why}); take it from "
        "model.init_state, stream or load_state with the same configuration"
    )
