"""Batched Newton-Schulz with few products, on the smaller side of matrices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.newton_schulz.norm import divide_by_norm

_LARGE = 128
"""Rows from which a CPU is faster with one matrix after another: a third as
fast at 16, equally fast at 64."""


def multiply(left, right, precision=None):
    """Product accumulated in float32: TPUs do not accumulate in bfloat16."""
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
    """Matrix products of an iteration; the first three are symmetric."""

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
    """:func:`newton_schulz` with coefficients ``[steps, 3]``."""

    def at_once(x):
        return iterate(x, schedule, eps)

    def one_by_one(x):
        flat = x.reshape(-1, *x.shape[-2:])
        return jax.lax.map(at_once, flat).reshape(x.shape)

    if x.ndim == 2 or min(x.shape[-2:]) < _LARGE:
        return at_once(x)
    # XLA's batched products use the cores of a CPU less well than single ones.
    return jax.lax.platform_dependent(x, cpu=one_by_one, default=at_once)


def iterate(x, schedule, eps, products=PLAIN):
    """Runs all steps on matrices ``[..., m, n]``.

    This defines the operation: the kernels run it, too.
    """
    # The polynomial commutes with transposition: use the smaller Gram matrix.
    tall = x.shape[-2] > x.shape[-1]
    exact = jnp.finfo(x.dtype).bits >= 32
    x = divide_by_norm(x.mT if tall else x, (-2, -1), eps)
    wide = x.shape[-1] >= 2 * x.shape[-2]
    run = _through_gram if wide and exact else _steps
    x = run(x, schedule, products)
    return x.mT if tall else x


def _steps(x, schedule, products):
    for row in schedule:
        x = products.plain(products.polynomial(products.gram(x), row), x)
    return x


def _through_gram(x, schedule, products):
    """Iterates on ``X X^T``, with which all factors of ``X`` commute.

    A step takes four products on the small side and none on the large one. In
    float32, singular values below 1e-3 of the norm have errors of a few
    percent, which is small for an iteration that ends between 0.7 and 1.2; in
    half precision they would be lost.
    """
    gram = products.gram(x)
    whole = None
    for index, row in enumerate(schedule):
        factor = products.polynomial(gram, row)
        whole = factor if whole is None else products.commuting(factor, whole)
        if index < len(schedule) - 1:
            gram = products.commuting(products.commuting(factor, gram), factor)
    return products.plain(whole, x)
