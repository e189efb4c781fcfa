"""All matrices at once: products on the smaller side, and as few as can be."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.newton_schulz.norm import divide_by_norm

_LARGE = 128
"""Rows from which single products are faster on a CPU; a third as fast at 16,
as fast at 64."""


def multiply(left, right, precision=None):
    """Rounded once: TPU kernels have no sums in half precision."""
    dtype = left.dtype
    acc = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(
        left, right, precision=precision, preferred_element_type=acc
    ).astype(dtype)


def _gram(x):
    return multiply(x, x.mT)


def _polynomial(gram, row):
    a, b, c = row
    out = b * gram if c == 0 else b * gram + c * multiply(gram, gram)
    return out + a * jnp.eye(gram.shape[-1], dtype=gram.dtype)


class Products(NamedTuple):
    """What an iteration is made of; the first three are symmetric."""

    gram: Callable = _gram
    """``X X^T``."""
    polynomial: Callable = _polynomial
    """``a I + b G + c G^2``, given ``G`` and ``(a, b, c)``."""
    commuting: Callable = multiply
    """``L R`` of two polynomials of the same ``G``."""
    plain: Callable = multiply
    """``L R`` of any two matrices."""


PLAIN = Products()


def newton_schulz_batched(x, schedule, eps):
    """As :func:`newton_schulz`, with its coefficients as ``[steps, 3]``."""

    def at_once(x):
        return iterate(x, schedule, eps)

    def one_by_one(x):
        flat = x.reshape(-1, *x.shape[-2:])
        return jax.lax.map(at_once, flat).reshape(x.shape)

    if x.ndim == 2 or min(x.shape[-2:]) < _LARGE:
        return at_once(x)
    # XLA's batched products use a CPU's cores worse than its single ones.
    return jax.lax.platform_dependent(x, cpu=one_by_one, default=at_once)


def iterate(x, schedule, eps, products=PLAIN):
    """All steps on matrices ``[..., m, n]``; the meaning of the operation."""
    # The polynomial of the transpose is the transpose: square the small side.
    tall = x.shape[-2] > x.shape[-1]
    dtype = x.dtype
    exact = jnp.finfo(dtype).bits >= 32
    x = x if exact else x.astype(jnp.float32)  # A sum of many squares.
    x = divide_by_norm(x.mT if tall else x, (-2, -1), eps).astype(dtype)
    wide = x.shape[-1] >= 2 * x.shape[-2]
    run = _through_gram if wide and exact else _steps
    x = run(x, schedule, products)
    return x.mT if tall else x


def _steps(x, schedule, products):
    for row in schedule:
        x = products.plain(products.polynomial(products.gram(x), row), x)
    return x


def _through_gram(x, schedule, products):
    """Iterates on ``X X^T``, with which every factor of ``X`` commutes.

    A step costs four products of the small side, none of the large one. In
    float32 singular values below 1e-3 of the norm come out a few percent off,
    nothing to an iteration that is content with 0.7 to 1.2; half precision
    would lose them.
    """
    gram = products.gram(x)
    whole = None
    for index, row in enumerate(schedule):
        factor = products.polynomial(gram, row)
        whole = factor if whole is None else products.commuting(factor, whole)
        if index < len(schedule) - 1:
            gram = products.commuting(products.commuting(factor, gram), factor)
    return products.plain(whole, x)
