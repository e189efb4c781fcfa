r"""Generalized gradient descent (Def. 5, eq. 59-60).

arXiv 2512.24695. One step minimises an objective whose target the current
weights define:

.. math:: W_{t+1} = \arg\min_W \tilde L(W; x, u)
   + \text{Ret}(W, W_{t-c+1}, \ldots, W_t), \qquad u = f_{W_t}(x)

with the target :math:`u` held constant. Gradient descent is
:math:`\tilde L = \langle W, \nabla L \rangle` with retention
:math:`\|W - W_t\|^2 / 2 \eta`; delta gradient descent replaces
:math:`\tilde L` by a squared error. The minimum is approximated by a number of
steps of any optax transformation; prefer a closed form where there is one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import NO_PARAMS, check_real, default_count
from nl_jax.optimizers.matrices import widen
from nl_jax.optimizers.sharding import keep_shardings


class GeneralizedGradientDescentState(NamedTuple):
    """State of :func:`generalized_gradient_descent`."""

    history: Any
    """The ``window - 1`` parameters before the current ones on a new leading
    axis, newest last, initially copies of the first; ``None`` for 1."""


def generalized_gradient_descent(
    objective: Callable[[Any, Any, Any], jax.Array],
    target: Callable[[Any, Any, Any], Any],
    retention: Callable[[Any, Any], jax.Array],
    inner: optax.GradientTransformation,
    *,
    steps: int | None = None,
    window: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Generalized gradient descent for a given objective and retention.

    ``update`` takes the extra argument ``context``, which is passed to
    ``objective`` and ``target``, for instance the layer's input; ``None`` by
    default.

    Args:
        objective: :math:`\tilde L`, ``(params, u, context) -> scalar``.
        target: ``(params, grads, context) -> u``, at the current parameters.
        retention: ``(params, history) -> scalar``, where leaves of ``history``
            are like the parameters with a leading axis of length ``window``,
            newest last.
        inner: optax transformation that minimises, initialised at every step.
        steps: number of steps of ``inner``; ``None`` is 20.
        window: ``c``, the number of past parameters in ``history``; ``None``
            is 1.

    Raises:
        ValueError: for ``steps`` or ``window`` below 1, or in ``update``
            without ``params``.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = generalized_gradient_descent(  # gradient descent, rate 2
        ...     lambda w, u, x: jnp.vdot(w, u),
        ...     lambda w, g, x: g,
        ...     lambda w, history: jnp.sum((w - history[-1]) ** 2) / 4,
        ...     optax.sgd(1.0),
        ... )
        >>> w, g = jnp.array([1.0, 1.0]), jnp.array([1.0, -0.5])
        >>> tx.update(g, tx.init(w), w)[0].round(3).tolist()
        [-2.0, 1.0]
    """
    steps = default_count("steps", steps, 20)
    window = default_count("window", window, 1)

    def init(params):
        check_real(params)
        return GeneralizedGradientDescentState(
            jax.tree.map(lambda p: jnp.stack([p] * (window - 1)), params)
            if window > 1
            else None
        )

    def update(updates, state, params=None, *, context=None, **extra):
        del extra
        if params is None:
            raise ValueError(NO_PARAMS)
        if window == 1:
            history = jax.tree.map(lambda p: p[None], params)
        else:
            history = jax.tree.map(
                lambda h, p: jnp.concatenate([h, p[None]]),
                state.history,
                params,
            )
        start = widen(params)
        u = jax.lax.stop_gradient(target(start, updates, context))

        def loss(w):
            return objective(w, u, context) + retention(w, history)

        # Not as the difference of two parameters, which may be much larger.
        def step(carry, _):
            moved, inner_state = carry
            w = optax.apply_updates(start, moved)
            change, inner_state = inner.update(
                jax.grad(loss)(w), inner_state, w
            )
            return (optax.apply_updates(moved, change), inner_state), None

        moved = optax.tree.zeros_like(start)
        (moved, _), _ = jax.lax.scan(
            step, (moved, inner.init(start)), length=steps
        )
        out = optax.tree.cast_like(moved, updates)
        kept = None
        if window > 1:
            kept = jax.tree.map(lambda h: h[1:], history)
        return out, GeneralizedGradientDescentState(kept)

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))
