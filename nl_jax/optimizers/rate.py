"""The learning rate at the end of an optimizer."""

from typing import Any

import jax
import numpy as np
import optax

from nl_jax.checks import is_number
from nl_jax.errors import InputError


def scale_by_rate(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
    """``optax.scale_by_learning_rate``, after :func:`check_rate`."""
    check_rate(learning_rate)
    return optax.scale_by_learning_rate(learning_rate)


def check_rate(learning_rate: Any) -> None:
    """Raises ``InputError`` unless this is a finite number or a schedule.

    Arrays may hold anything, since their values may be unknown.

    Example:
        >>> check_rate("0.1")
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: learning_rate='0.1' must be a finite number \
or a schedule
    """
    array = isinstance(learning_rate, (jax.Array, np.ndarray))
    if not (array or callable(learning_rate) or is_number(learning_rate)):
        raise InputError(
            f"learning_rate={learning_rate!r} must be a finite number or a "
            "schedule"
        )
