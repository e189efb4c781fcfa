"""Norms of arrays whose squares overflow or underflow."""

import jax
import jax.numpy as jnp


def safe_norm(x: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """Returns the Euclidean norm over ``axes``, which are kept.

    It is differentiable at zero.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(safe_norm(jnp.array([3e30, 4e30]))[0]) / 1e30, 3)
        5.0
    """
    largest, relative = _split(x, axes)
    return largest * relative


def divide_by_norm(
    x: jax.Array, axes: tuple[int, ...] | None = None, eps: float = 0.0
) -> jax.Array:
    """Returns ``x / (|x| + eps)``, and zero for zero.

    Example:
        >>> import jax.numpy as jnp
        >>> divide_by_norm(jnp.array([3e-30, 4e-30])).round(3).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    largest, relative = _split(x, axes)
    unit = jnp.where(largest > 0, largest, 1)
    # In two steps, as |x| itself may overflow in half precision.
    return x / unit / (relative + eps / unit)


def _split(x, axes):
    """Returns the largest absolute value and the norm divided by it."""
    largest = jax.lax.stop_gradient(
        jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    )
    some = largest > 0
    square = jnp.sum(
        jnp.square(x / jnp.where(some, largest, 1)), axes, keepdims=True
    )
    # The derivative of sqrt is infinite at 0.
    return largest, jnp.sqrt(jnp.where(some, square, 1))
