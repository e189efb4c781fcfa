"""All matrices at once: batched products on the smaller side."""

import jax
import jax.numpy as jnp

__all__ = ["newton_schulz_batched"]


def newton_schulz_batched(x, schedule, eps):
    """As :func:`newton_schulz`, with its coefficients as ``[steps, 3]``."""
    # The polynomial of the transpose is the transpose: square the small side.
    tall = x.shape[-2] > x.shape[-1]
    x = _divide_by_norm(x.mT if tall else x, eps)
    for a, b, c in schedule:
        gram = x @ x.mT
        # b G + c G^2 first: its products are of the small side alone.
        polynomial = b * gram if c == 0 else b * gram + c * (gram @ gram)
        x = a * x + polynomial @ x
    return x.mT if tall else x


def _divide_by_norm(x, eps):
    """``x / (|x| + eps)``, also where ``|x|^2`` is no float any more."""
    largest = jax.lax.stop_gradient(
        jnp.max(jnp.abs(x), (-2, -1), keepdims=True, initial=0)
    )
    unit = jnp.where(largest > 0, largest, 1)
    x = x / unit
    square = jnp.sum(jnp.square(x), (-2, -1), keepdims=True)
    size = jnp.sqrt(jnp.where(largest > 0, square, 1))  # sqrt'(0) is no float.
    return x / (size + eps / unit)
