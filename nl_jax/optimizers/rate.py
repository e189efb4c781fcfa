"""Learning rates: the type, and a rate behind a transformation."""

from collections.abc import Callable

import jax
import optax

Rate = float | jax.Array | Callable[[jax.Array], jax.Array]
"""A number, or a schedule: a function of the steps so far."""


def with_rate(
    transformation: optax.GradientTransformation, learning_rate: Rate
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation with a learning rate behind it."""
    return optax.chain(
        transformation, optax.scale_by_learning_rate(learning_rate)
    )
