"""Arithmetic that TPU kernels can differentiate."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns ``a / b``, with a derivative made of divisions.

    JAX's own derivative contains a power of -2, which kernels do not support.

    Example:
        >>> float(jax.grad(divide, 1)(3.0, 2.0))
        -0.75
    """
    return a / b


@divide.defjvp
def _divide_jvp(primals, tangents):
    a, b = primals
    da, db = tangents
    out = divide(a, b)
    return out, divide(da - out * db, b)


def one_minus_exp(x: jax.Array) -> jax.Array:
    """Returns ``1 - exp(x)``, as accurately as ``-expm1(x)``.

    Kernels do not support ``expm1``.

    Example:
        >>> float(one_minus_exp(-jnp.inf))
        1.0
        >>> round(1e9 * float(one_minus_exp(-1e-9)), 4)
        1.0
    """
    half = jnp.tanh(x / 2)
    return divide(2 * half, half - 1)
