"""Streams in one batch: begin some anew, copy one for many users."""

from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import numpy as np

from nl_jax.continual.validation import check_rows, check_state, fresh_state
from nl_jax.models import LanguageModel
from nl_jax.nested.level import select_rows

T = TypeVar("T")


def reset_rows(
    model: LanguageModel,
    variables: Any,
    state: T,
    rows: int | Iterable[int],
) -> T:
    """Lets rows begin anew; all others keep every bit of theirs.

    Rows may then stand at different places of a level's period. Where that is
    so, the model reads token by token, which is exact and slower; after a
    whole number of periods it is not.

    Args:
        model: from :func:`nl_jax.models.build`.
        variables: its parameters, with the learned initial state.
        state: the model's state.
        rows: which rows.

    Returns:
        The new state; ``state`` stays valid.

    Raises:
        ValueError: for a state of another model or rows that it does not have.

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
    return replace_rows(state, fresh_state(model, variables, count), rows)


def fork(state: T, rows: int | Iterable[int]) -> T:
    """Returns a state whose rows are copies of rows of another.

    ``fork(state, [0] * 5)`` gives five users what row 0 has learned; each goes
    on alone. ``fork(state, [2])`` takes one of them out of the batch.

    Args:
        state: any state that is batch first.
        rows: for each row of the result, which one it is a copy of.

    Returns:
        The new state; ``state`` stays valid.

    Raises:
        ValueError: for rows that the state does not have.

    Example:
        >>> import jax.numpy as jnp
        >>> fork({"a": jnp.arange(3)}, [2, 2, 0])["a"].tolist()
        [2, 2, 0]
    """
    rows = check_rows(rows, len(jax.tree.leaves(state)[0]))
    return jax.tree.map(lambda leaf: leaf[rows], state)


def replace_rows(state: T, other: T, rows: np.ndarray) -> T:
    """Returns ``state`` with some rows of ``other``, of the same shapes."""
    taken = np.zeros(len(jax.tree.leaves(state)[0]), bool)
    taken[rows] = True
    return select_rows(taken, other, state)
