"""The five ways in which one level's knowledge reaches another.

Section 3.3 of arXiv 2512.24695. Block 0 is the slower one, block 1 the faster.
In direct transfer no gradient flows between the blocks; through
backpropagation, initialisation and generation it does. That difference is a
``stop_gradient`` here, and the tests hold it to exactly zero.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

Forward = Callable[..., Any]


def direct_parametric(forward: Forward) -> Forward:
    """Conditions block 0 on block 1's parameters or output (eq. 24-26).

    Returns ``forward``, ``(slow_params, fast, x) -> y``, with no gradient to
    ``fast``.

    Example:
        >>> import jax
        >>> f = direct_parametric(lambda slow, fast, x: slow * fast * x)
        >>> [float(g) for g in jax.grad(f, (0, 1))(2.0, 3.0, 1.0)]
        [3.0, 0.0]
    """
    return lambda slow, fast, x: forward(slow, jax.lax.stop_gradient(fast), x)


def direct_nonparametric(forward: Forward, solve: Forward) -> Forward:
    """Conditions block 0 on a solution that has no parameters (eq. 27).

    Returns ``(slow_params, context, x) -> y``, with no gradient through the
    solution.

    Args:
        forward: ``(slow_params, solution, x) -> y``.
        solve: ``(context, x) -> solution``, such as softmax attention to the
            context.
    """

    def conditioned(slow, context, x):
        return forward(slow, jax.lax.stop_gradient(solve(context, x)), x)

    return conditioned


def backpropagation(slow_forward: Forward, fast_forward: Forward) -> Forward:
    """Chains two blocks under one gradient flow.

    They differ in their update frequency alone, as the levels of a continuum
    memory do; give each its own with ``every``. Returns ``(slow_params,
    fast_params, x) -> y``.

    Args:
        slow_forward: ``(slow_params, h) -> y``.
        fast_forward: ``(fast_params, x) -> h``.
    """
    return lambda slow, fast, x: slow_forward(slow, fast_forward(fast, x))


def initialization(
    objective: Callable[[Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
) -> Callable[[Any, Any], Any]:
    """Lets the slower level learn where the faster one starts (eq. 28).

    As in MAML: gradients flow through every inner step into the start. Returns
    ``(start, contexts) -> fast_params``, which takes one inner step for each
    slice of ``contexts`` along its first axis.

    Args:
        objective: ``(fast_params, context) -> loss`` of the faster level.
        optimizer: its inner update rule.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> adapt = initialization(
        ...     lambda w, x: 0.5 * (w - x) ** 2, optax.sgd(0.5)
        ... )
        >>> float(jax.grad(adapt)(0.0, jnp.ones(2)))  # (1 - 0.5) ** 2
        0.25
    """

    def adapt(start, contexts):
        @jax.checkpoint
        def step(carry, context):
            params, state = carry
            grads = jax.grad(objective)(params, context)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (start, optimizer.init(start))
        (params, _), _ = jax.lax.scan(step, carry, contexts)
        return params

    return adapt


def generation(generate: Forward, forward: Forward) -> Forward:
    """Lets one block generate the other's weights or its context.

    Returns ``(slow_params, context, x) -> y``, with gradients to the generator.

    Args:
        generate: ``(slow_params, context) -> fast``, a hypernetwork that makes
            weights, or whatever makes the other block's data.
        forward: ``(fast, x) -> y``.
    """
    return lambda slow, context, x: forward(generate(slow, context), x)
