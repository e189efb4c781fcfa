"""The derivative that kernels of memories share.

The forward pass saves its inputs and the state at the start of each block of
tokens, from which the backward pass recomputes the rest. Kernels cannot be
differentiated: second derivatives are those of equivalent plain code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Arrays = Any

SAVED = "kernel"
"""Name of what a derivative needs, for policies of ``jax.checkpoint``: where it
is kept, nothing runs again forwards."""


def restartable(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Arrays, Any, Any], Arrays],
    plain: Callable[[Arrays], Any],
) -> Callable[[Arrays], Any]:
    """Returns a function with first and second derivatives in reverse mode.

    Args:
        forward: ``(arrays, save=) -> (out, starts)``, where ``starts`` are the
            saved states if ``save``, else anything.
        backward: ``(arrays, starts, cotangents of out) -> cotangents of
            arrays``, with the structure of ``arrays``.
        plain: ``arrays -> out``, the same function in code that JAX can
            differentiate.

    Returns:
        The function ``arrays -> out``, without forward-mode derivatives.

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
        out, starts = checkpoint_name(saving(arrays), SAVED)
        return out, (_apart(arrays), starts)

    def save_and_show(arrays):
        # A second derivative differentiates the first one's forward pass.
        out, starts = saving(arrays)
        return (out, starts), (_apart(arrays), starts)

    def save_again(*operands):
        return restart(*operands), _apart(operands)

    def second_order(residuals, cotangent):
        arrays, starts, cotangents = residuals

        def gradient(arrays, cotangents):
            return jax.vjp(plain, arrays)[1](cotangents)[0]

        _, pull = jax.vjp(gradient, arrays, cotangents)
        arrays, cotangents = pull(cotangent)
        # The saved states are functions of the arrays, whose cotangents
        # already contain their part.
        return arrays, jax.tree.map(jnp.zeros_like, starts), cotangents

    run.defvjp(save, lambda residuals, out: (restart(*residuals, out),))
    # The saved states have zero cotangents, see second_order.
    saving.defvjp(
        save_and_show, lambda residuals, out: (restart(*residuals, out[0]),)
    )
    restart.defvjp(save_again, second_order)
    return run


def _apart(arrays):
    """Returns the arrays as others than the arguments that they are.

    When a scan is differentiated twice, JAX (0.10 to 0.12) may put constants in
    front of the arguments of a ``custom_vjp``. It then mistakes these constants
    for the residuals that it knows to be arguments.
    """
    return jax.tree.map(jnp.copy, arrays)
