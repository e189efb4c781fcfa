"""What kernels with a memory share: their derivative.

The forward pass saves its inputs and the state at the start of each block of
tokens, whatever runs; the backward pass starts over from those. Kernels have no
second derivative, so that of the backward pass is taken from plain code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Arrays = Any


def restartable(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Arrays, Any, Any], Arrays],
    plain: Callable[[Arrays], Any],
) -> Callable[[Arrays], Any]:
    """Makes a function that JAX differentiates, twice too.

    Args:
        forward: ``(arrays, save=) -> (out, starts)``; ``starts`` are the saved
            states if ``save``, else anything.
        backward: ``(arrays, starts, cotangents of out) -> cotangents of
            arrays``, of their structure.
        plain: ``arrays -> out``, the same in code that JAX differentiates.

    Returns:
        ``arrays -> out``. Forward-mode differentiation is not for it.

    Example:
        >>> def forward(x, save):
        ...     return x**3, x
        >>> def backward(x, start, cotangent):
        ...     return 3 * start**2 * cotangent
        >>> run = restartable(forward, backward, lambda x: x**3)
        >>> slope = jax.grad(run)
        >>> float(slope(2.0)), float(jax.grad(slope)(2.0))
        (12.0, 12.0)
    """

    @jax.custom_vjp
    def run(arrays):
        return forward(arrays, save=False)[0]

    @jax.custom_vjp
    def saving(arrays):
        return forward(arrays, save=True)

    @jax.custom_vjp
    def restart(arrays, starts, cotangents):
        return backward(arrays, starts, cotangents)

    def save(arrays):
        out, starts = saving(arrays)
        return out, (arrays, starts)

    def save_and_show(arrays):
        # A second derivative looks into the forward pass of the first.
        out, starts = saving(arrays)
        return (out, starts), (arrays, starts)

    def save_again(arrays, starts, cotangents):
        out = restart(arrays, starts, cotangents)
        return out, (arrays, starts, cotangents)

    def second_order(residuals, cotangent):
        arrays, starts, cotangents = residuals

        def gradient(arrays, cotangents):
            return jax.vjp(plain, arrays)[1](cotangents)[0]

        _, pull = jax.vjp(gradient, arrays, cotangents)
        arrays, cotangents = pull(cotangent)
        # The saved states follow from the arrays, which got all of it.
        return arrays, jax.tree.map(jnp.zeros_like, starts), cotangents

    run.defvjp(save, lambda residuals, out: (restart(*residuals, out),))
    # Nothing is asked of the saved states, see second_order.
    saving.defvjp(
        save_and_show, lambda residuals, out: (restart(*residuals, out[0]),)
    )
    restart.defvjp(save_again, second_order)
    return run
