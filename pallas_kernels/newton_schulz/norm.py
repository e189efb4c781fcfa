"""Norms of arrays whose squares overflow or underflow."""

import jax
import jax.numpy as jnp


def safe_norm(x: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """Returns the Euclidean norm over ``axes``, which are kept.

    It is differentiable at zero, and computed in at least float32.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(safe_norm(jnp.array([3e30, 4e30]))[0]) / 1e30, 3)
        5.0
    """
    scaled, norm, unit = _split(x, axes)
    some = jnp.any(scaled != 0, axes, keepdims=True)
    return jnp.where(some, unit * norm, 0).astype(x.dtype)


def divide_by_norm(
    x: jax.Array, axes: tuple[int, ...] | None = None, eps: float = 0.0
) -> jax.Array:
    """Returns ``x / (|x| + eps)``, and zero for zero.

    Example:
        >>> import jax.numpy as jnp
        >>> divide_by_norm(jnp.array([3e-30, 4e-30])).round(3).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    scaled, norm, unit = _split(x, axes)
    return (scaled / (norm + eps / unit)).astype(x.dtype)


def norm_unit(largest: jax.Array) -> jax.Array:
    """Returns what to divide by before squaring, given the largest value.

    Its reciprocal, by which compilers multiply instead, is a normal number.
    """
    limit = 2.0 ** (jnp.finfo(largest.dtype).maxexp - 4)
    return jnp.clip(largest, 1 / limit, limit)


def _split(x, axes):
    """Returns ``x`` and its norm, each divided by a unit, and the unit.

    The norm is 1 for zero.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    unit = jax.lax.stop_gradient(
        norm_unit(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0))
    )
    x = x / unit
    square = jnp.sum(jnp.square(x), axes, keepdims=True)
    # The derivative of sqrt is infinite at 0.
    return x, jnp.sqrt(jnp.where(square == 0, 1, square)), unit
