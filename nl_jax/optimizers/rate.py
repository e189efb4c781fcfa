"""Learning rates, and optimizers made by adding one to a transformation."""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import jax
import optax

Rate = float | jax.Array | Callable[[jax.Array], jax.Array]
"""A number, or a schedule: a function of the number of steps taken."""
P = ParamSpec("P")


def with_rate(
    scale_by: Callable[P, optax.GradientTransformation],
) -> Callable[Concatenate[Rate, P], optax.GradientTransformationExtraArgs]:
    """Returns the optimizer alias of a ``scale_by_*`` function.

    The alias takes a learning rate, followed by the arguments of ``scale_by``,
    and is named after it.

    Example:
        >>> import jax.numpy as jnp
        >>> adam = with_rate(optax.scale_by_adam)
        >>> adam.__name__
        'adam'
        >>> tx, g = adam(0.5, b1=0.8), jnp.array([4.0, -4.0])
        >>> tx.update(g, tx.init(g))[0].round(3).tolist()
        [-0.5, 0.5]
    """

    # A signature without defaults: optax.inject_hyperparams makes arrays of
    # those that are numbers, periods and step counts included.
    def alias(
        learning_rate: Rate, *args: Any, **options: Any
    ) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            scale_by(*args, **options),
            optax.scale_by_learning_rate(learning_rate),
        )

    name = scale_by.__name__
    alias.__name__ = alias.__qualname__ = name.removeprefix("scale_by_")
    alias.__module__ = scale_by.__module__
    alias.__doc__ = f"""Chains :func:`{name}` and a learning rate.

    Args:
        learning_rate: a number or a schedule.
        *args: positional arguments of :func:`{name}`.
        **options: keyword arguments of :func:`{name}`.
    """
    return alias
