"""All matrices at once: batched products on the smaller side."""

import jax
import jax.numpy as jnp

__all__ = ["newton_schulz_batched"]


def newton_schulz_batched(x, schedule, eps):
    """As :func:`newton_schulz`, with its coefficients as ``[steps, 3]``."""
    # The polynomial of the transpose is the transpose: square the small side.
    tall = x.shape[-2] > x.shape[-1]
    x = _divide_by_norm(x.mT if tall else x, eps)
    exact = jnp.finfo(x.dtype).bits >= 32
    wide = x.shape[-1] >= 2 * x.shape[-2]
    x = _through_gram(x, schedule) if wide and exact else _steps(x, schedule)
    return x.mT if tall else x


def _steps(x, schedule):
    for row in schedule:
        x = _polynomial(x @ x.mT, row) @ x
    return x


def _through_gram(x, schedule):
    """Iterates on ``X X^T``, with which every factor of ``X`` commutes.

    A step costs four products of the small side, none of the large one. In
    float32 singular values below 1e-3 of the norm come out a few percent off,
    nothing to an iteration that is content with 0.7 to 1.2; half precision
    would lose them.
    """
    gram = x @ x.mT
    product = None
    for index, row in enumerate(schedule):
        factor = _polynomial(gram, row)
        product = factor if product is None else factor @ product
        if index < len(schedule) - 1:
            gram = factor @ gram @ factor
    return product @ x


def _polynomial(gram, row):
    """``a I + b G + c G^2``."""
    a, b, c = row
    out = b * gram if c == 0 else b * gram + c * (gram @ gram)
    return out + a * jnp.eye(gram.shape[-1], dtype=gram.dtype)


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
