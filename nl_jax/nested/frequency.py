r"""Update frequency as a gradient transformation (arXiv 2512.24695, eq. 71).

.. math:: \theta_{t+1} = \theta_t - \eta \sum_{i \le C} \nabla L(\theta_{t-C+i})
   \text{ every } C \text{ steps, else } \theta_t
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import optax

from nl_jax.checks import check_choice, check_count, check_real
from nl_jax.nested.level import Level, LevelState, fresh_level, keep_dtypes


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EveryPeriod:
    """Static description in a state; states are alike whatever it says."""

    calls: int = dataclasses.field(compare=False)
    """Calls between two updates."""


class EveryState(NamedTuple):
    """State of :func:`every`."""

    calls: jax.Array
    """Calls since the last update, int32 scalar."""
    gathered: optax.Updates
    """Sum of the gradients of these calls."""
    inner: optax.OptState
    """State of the inner transformation; moves only when it is due."""
    period: EveryPeriod
    """Of the transformation that has made the state."""


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
    real updates. ``period=1`` is the transformation itself. ``update`` takes
    states of other periods and keeps what they have gathered.

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
    period = check_count("period", period)
    check_choice("reduce", reduce, ("sum", "mean"))
    inner = optax.with_extra_args_support(transformation)

    def step(state, updates, params, extra):
        gathered = state.gathered
        if reduce == "mean":  # Of so many, if the period has changed.
            gathered = jax.tree.map(lambda g: g / state.since, gathered)
        gathered = optax.tree.cast_like(gathered, updates)
        out, after = inner.update(gathered, state.inner, params, **extra)
        return (
            optax.tree.cast_like(out, updates),
            keep_dtypes(after, state.inner),
        )

    def start(params):
        return fresh_level(params, inner.init(params), state_dtype=state_dtype)

    level = Level(start, step, period)
    described = EveryPeriod(period)

    def init(params):
        check_real(params)
        _, gathered, inner_state, calls = level.init(params)
        return EveryState(calls, gathered, inner_state, described)

    def own(state, like):
        if period > 1 or not isinstance(state, EveryState):
            return isinstance(state, EveryState)
        # It may also be that of an inner ``every``.
        return not isinstance(jax.eval_shape(inner.init, like), EveryState)

    def update(updates, state, params=None, **extra):
        # What the level changes are the updates, which are zero in between.
        waiting = optax.tree.zeros_like(updates)
        if own(state, updates):
            calls, gathered, inner_state, _ = state
            before = LevelState(waiting, gathered, inner_state, calls)
        elif period == 1:
            return inner.update(updates, state, params, **extra)
        else:  # The state is one of period 1, which is the inner one.
            before = fresh_level(waiting, state, state_dtype=state_dtype)
        out, gathered, inner_state, calls = level.update(
            before, updates, params, extra
        )
        return out, EveryState(calls, gathered, inner_state, described)

    return optax.GradientTransformationExtraArgs(
        inner.init if period == 1 else init, update
    )
