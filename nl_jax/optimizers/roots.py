"""Inverse square roots of symmetric matrices, from matrix products alone.

Decompositions inside a scan are slow on accelerators, and batched triangular
solves in a scan have deadlocked on CPUs.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.newton_schulz import safe_norm

_STEPS = 30
"""Enough for condition numbers up to ``1e8``."""


def inverse_root(h, eps):
    """Returns ``(H + eps I)^{-1/2}`` for positive definite ``H``.

    The coupled Newton iteration of Denman, Beavers and Higham.

    Args:
        h: ``H``, ``[..., m, m]``.
        eps: added to the diagonal, or the norm's rounding error if larger.

    Example:
        >>> import jax.numpy as jnp
        >>> inverse_root(jnp.diag(jnp.array([4.0, 0.25])), 0.0).round(
        ...     3
        ... ).tolist()
        [[0.5, 0.0], [0.0, 2.0]]
    """
    identity = jnp.eye(h.shape[-1], dtype=h.dtype)
    # Rounding hides eigenvalues below this share of the norm.
    share = 4 * jnp.finfo(h.dtype).eps
    h = h + jnp.maximum(eps, share * safe_norm(h, (-2, -1))) * identity
    size = safe_norm(h, (-2, -1))

    def step(_, roots):
        y, z = roots
        t = 0.5 * (3 * identity - z @ y)
        return y @ t, t @ z

    # Not unrolled: compile time would grow with leaves times steps.
    start = h / size, jnp.broadcast_to(identity, h.shape)
    _, z = jax.lax.fori_loop(0, _STEPS, step, start)
    return z / jnp.sqrt(size)
