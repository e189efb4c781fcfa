"""A model's memory of a stream, and checks that it is that of a model."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from nl_jax.checks import leaf_name
from nl_jax.errors import InputError
from nl_jax.layers.continuum.steps import CMSState
from nl_jax.nested.level import select_rows


class ModelState(NamedTuple):
    """A model's memory of a stream, batch first."""

    mixers: Any
    """State of every block's mixer, ``[B, n_layers, ...]``."""
    cms: CMSState | None
    """Fast weights of the levels that learn in context, if any."""
    segment: jax.Array | None = None
    """Segment id of each row's last document, int32 ``[B]``, 0 before the
    first, and -1 if it was read without; ``None`` if no call had any."""

    def begin_anew(self, initial: Any, starts: jax.Array) -> "ModelState":
        """Returns rows of ``initial`` where ``starts``, ``[B]``, is true.

        Blocks let go of a document by multiplying with 0, from which values
        that are not finite come back as NaN.
        """
        return select_rows(starts, initial, self._replace(segment=None))


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
    segment = getattr(state, "segment", None)
    if segment is not None:
        state = state._replace(segment=None)
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
    if segment is not None:
        kind: Any = type(segment).__name__
        shape = jnp.shape(segment)
        if shape != (rows,):
            _refuse(model, f"segment has shape {shape}, not {(rows,)}")
        if hasattr(segment, "dtype"):
            kind = jnp.result_type(segment)
        if kind != jnp.int32:
            _refuse(model, f"segment is {kind}, not int32")
    return rows


def check_given(model: Any, variables: Any, state: Any, rows: int) -> None:
    """Checks a state that is given to a model with ``rows`` rows of tokens.

    Raises:
        InputError: if it is not one of the model, or has other rows.
    """
    if not isinstance(state, ModelState | None):
        raise InputError(
            f"state is a {type(state).__name__}; needs a ModelState, from "
            "init_state or apply"
        )
    if jax.tree.leaves(state):
        one = jax.eval_shape(lambda v: model.init_state(v, 1), variables)
        found = check_state(model, state, one)
        if found != rows:
            raise InputError(f"tokens has {rows} rows, but state {found}")


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
