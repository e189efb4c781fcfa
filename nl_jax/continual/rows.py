"""Resetting and copying rows of a state, each the state of one stream."""

from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.continual.validation import check_rows, fresh_state
from nl_jax.models import LanguageModel
from nl_jax.models.model_state import check_state
from nl_jax.nested.level import select_rows

T = TypeVar("T")


def reset_rows(
    model: LanguageModel,
    variables: Any,
    state: T,
    rows: int | Iterable[int],
) -> T:
    """Resets rows to the initial state; all others stay bitwise the same.

    Rows may then be at different positions in a level's period, in which case
    the model reads token by token, which is exact but slower. After a whole
    number of periods they are not.

    Args:
        model: model from :func:`nl_jax.models.build`.
        variables: parameters of the model, with the learned initial state.
        state: state of the model.
        rows: rows to reset.

    Returns:
        The new state; ``state`` stays valid.

    Raises:
        ValueError: if the state is of another model, or a row does not exist.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.models import build
        >>> model = build("lstm", d_model=8, n_heads=1, n_layers=1)
        >>> tokens = jnp.ones((2, 3), int)
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> apply = jax.jit(model.apply)
        >>> _, state = apply(variables, tokens)
        >>> state = reset_rows(model, variables, state, 1)
        >>> logits, _ = apply(variables, tokens, state)
        >>> fresh, _ = apply(variables, tokens)
        >>> (jnp.abs(logits - fresh).max((1, 2)) < 1e-6).tolist()
        [False, True]
    """
    count = check_state(model, state)
    rows = check_rows(rows, count)
    fresh = fresh_state(model, variables, count)
    segment: Any = getattr(state, "segment", None)
    if segment is not None:
        fresh = fresh._replace(segment=jnp.zeros_like(segment))
    return replace_rows(state, fresh, rows)


def fork(state: T, rows: int | Iterable[int]) -> T:
    """Returns a state made of copies of rows of another.

    ``fork(state, [0] * 5)`` gives five independent streams what row 0 has
    learned. ``fork(state, [2])`` takes row 2 out of the batch.

    Args:
        state: any state whose leaves have rows as their first axis.
        rows: row of ``state`` to copy for each row of the result.

    Returns:
        The new state; ``state`` stays valid.

    Raises:
        ValueError: if a row does not exist.

    Example:
        >>> import jax.numpy as jnp
        >>> fork({"a": jnp.arange(3)}, [2, 2, 0])["a"].tolist()
        [2, 2, 0]
    """
    rows = check_rows(rows, len(jax.tree.leaves(state)[0]))
    return jax.tree.map(lambda leaf: leaf[rows], state)


def replace_rows(state: T, other: T, rows: np.ndarray) -> T:
    """Returns ``state`` with the given rows taken from ``other``."""
    taken = np.zeros(len(jax.tree.leaves(state)[0]), bool)
    taken[rows] = True
    return select_rows(taken, other, state)
