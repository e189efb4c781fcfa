r"""Update frequency as a gradient transformation (arXiv 2512.24695, eq. 71).

.. math:: \theta_{t+1} = \theta_t - \eta \sum_{i \le C} \nabla L(\theta_{t-C+i})
   \text{ every } C \text{ steps, else } \theta_t
"""

from typing import Any, Literal, NamedTuple

import jax
import optax

from nl_jax.checks import check_choice, check_count, check_real
from nl_jax.nested.level import Level, LevelState, fresh_level, keep_dtypes


class EveryState(NamedTuple):
    """State of :func:`every`."""

    calls: jax.Array
    """Calls since the last update, int32 scalar."""
    gathered: optax.Updates
    """Sum of the gradients of these calls."""
    inner: optax.OptState
    """State of the inner transformation; moves only when it is due."""
    period: int
    """Calls between two updates."""


def every(
    period: int,
    transformation: optax.GradientTransformation,
    *,
    reduce: Literal["sum", "mean"] = "sum",
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gathers gradients and applies a transformation every ``period`` calls.

    In between, updates are zero and the inner transformation does not run at
    all (``optax.MultiSteps`` runs it at every step and masks the result), so
    what it costs is paid at its own frequency, and schedules inside it count
    real updates. ``period=1`` is the transformation itself.

    Args:
        period: calls between two updates, at least 1.
        transformation: what receives the gathered gradients.
        reduce: hand on their ``"sum"`` (eq. 71) or ``"mean"``, in the dtype of
            the gradients.
        state_dtype: dtype in which they are gathered, for instance
            ``"bfloat16"``; ``None`` is the parameters', at least float32.

    Raises:
        ValueError: if ``period`` or ``reduce`` is not as described; and at
            ``init`` for a leaf that is not of real numbers, naming it.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = every(2, optax.sgd(1.0))
        >>> state = tx.init(jnp.zeros(()))
        >>> first, state = tx.update(jnp.array(1.0), state)
        >>> second, state = tx.update(jnp.array(2.0), state)
        >>> float(first), float(second)
        (0.0, -3.0)
    """
    check_count("period", period)
    check_choice("reduce", reduce, ("sum", "mean"))
    inner = optax.with_extra_args_support(transformation)
    if period == 1:
        return inner
    divisor = period if reduce == "mean" else 1

    def step(state, updates, params, extra):
        gathered = jax.tree.map(lambda g: g / divisor, state.gathered)
        gathered = optax.tree.cast_like(gathered, updates)
        out, after = inner.update(gathered, state.inner, params, **extra)
        return (
            optax.tree.cast_like(out, updates),
            keep_dtypes(after, state.inner),
        )

    def start(params):
        return fresh_level(params, inner.init(params), state_dtype=state_dtype)

    level = Level(start, step, period)

    def init(params):
        check_real(params)
        _, gathered, inner_state, calls = level.init(params)
        return EveryState(calls, gathered, inner_state, _Static(period))

    def update(updates, state, params=None, **extra):
        # What the level changes are the updates, which are zero in between.
        waiting = optax.tree.zeros_like(updates)
        before = LevelState(waiting, state.gathered, state.inner, state.calls)
        out, gathered, inner_state, calls = level.update(
            before, updates, params, extra
        )
        return out, EveryState(calls, gathered, inner_state, state.period)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.tree_util.register_static
class _Static(int):
    """An integer that is part of a tree's structure, not one of its leaves."""
