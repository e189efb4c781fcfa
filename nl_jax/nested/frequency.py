r"""Update frequency as a gradient transformation (arXiv 2512.24695, eq. 71).

.. math:: \theta_{t+1} = \theta_t - \eta \sum_{i \le C} \nabla L(\theta_{t-C+i})
   \text{ every } C \text{ steps, else } \theta_t
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_choice, check_count, check_real


def when_due(
    due: jax.Array, updates: Any, gathered: Any, act: Callable, held: tuple
) -> tuple[Any, tuple]:
    """Gathers updates, and acts on their sum when it is time.

    Args:
        due: whether it is, a boolean scalar.
        updates: this call's, a tree of arrays.
        gathered: the sum of those since the last act, in its own dtypes.
        act: ``(gathered, *held) -> held``; does not run when not due.
        held: what ``act`` changes.

    Returns:
        ``(gathered, held)``; after an act nothing is gathered any more.

    Example:
        >>> import jax.numpy as jnp
        >>> gathered, (total,) = when_due(
        ...     True, 2.0, jnp.array(1.0), lambda g, t: (t + g,), (10.0,)
        ... )
        >>> float(gathered), float(total)
        (0.0, 13.0)
    """
    # Gradients of another dtype must not change the state's.
    gathered = jax.tree.map(
        lambda a, g: a + jnp.asarray(g, a.dtype), gathered, updates
    )

    def run(gathered, held):
        return jax.tree.map(jnp.zeros_like, gathered), act(gathered, *held)

    def wait(gathered, held):
        return gathered, held

    return jax.lax.cond(due, run, wait, gathered, held)


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
) -> optax.GradientTransformationExtraArgs:
    """Gathers gradients and applies a transformation every ``period`` calls.

    In between, updates are zero and the inner transformation does not run at
    all (``optax.MultiSteps`` runs it at every step and masks the result), so
    what it costs is paid at its own frequency, and schedules inside it count
    real updates. ``period=1`` is the transformation itself.

    Args:
        period: calls between two updates, at least 1.
        transformation: what receives the gathered gradients.
        reduce: hand on their ``"sum"`` (eq. 71) or ``"mean"``.

    Raises:
        ValueError: if ``period`` or ``reduce`` is not as described; and at
            ``init`` for integers, naming the leaf.

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

    def init(params):
        check_real(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        count = jnp.zeros((), jnp.int32)
        return EveryState(count, zeros, inner.init(params), _Static(period))

    def update(updates, state, params=None, **extra):
        def apply(gathered, waiting, inner_state):
            gathered = jax.tree.map(lambda g: g / divisor, gathered)
            out, inner_state = inner.update(
                gathered, inner_state, params, **extra
            )
            return optax.tree.cast_like(out, waiting), inner_state

        due = state.calls == period - 1
        gathered, (out, inner_state) = when_due(
            due,
            updates,
            state.gathered,
            apply,
            (optax.tree.zeros_like(updates), state.inner),
        )
        count = jnp.where(due, 0, state.calls + 1)
        return out, EveryState(count, gathered, inner_state, state.period)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.tree_util.register_static
class _Static(int):
    """An integer that is part of a tree's structure, not one of its leaves."""
