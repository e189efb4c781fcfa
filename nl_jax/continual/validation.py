"""Checks of levels and rows, and fresh states to compare with."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from nl_jax.checks import is_integer
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel

ALL_MIXERS = "mixers"
"""Name by which the memories of all sequence mixers count as a level."""


@functools.partial(jax.jit, static_argnums=(0, 2))
def fresh_state(model: LanguageModel, variables: Any, rows: int) -> Any:
    """Returns the learned initial state for ``rows`` streams."""
    return model.init_state(variables, rows)


def check_level(model: LanguageModel, level: Any) -> None:
    """Checks that ``level`` names the mixers or a level that learns in context.

    Raises:
        InputError: if it is not, or the model has no such level.
    """
    if level == ALL_MIXERS:
        return
    cms = model.config.cms
    if not model.learns_in_context:
        raise InputError(
            f"level={level!r} must be {ALL_MIXERS!r}: no MLP of this "
            f"{model.config.name} learns in context (cms.objective="
            f"{cms.objective!r}, cms.rate={cms.rate}); for others build it "
            "with cms={'objective': 'next_token'}"
        )
    count = len(cms.periods)
    if not is_integer(level) or not 1 <= level <= count:
        raise InputError(
            f"level={level!r} must be from 1, the fastest, to {count}, or "
            f"{ALL_MIXERS!r}"
        )


def check_rows(rows: int | Iterable[int], count: int) -> np.ndarray:
    """Returns row numbers as a checked array.

    Raises:
        InputError: if it is empty, or a row is not between 0 and ``count - 1``.

    Example:
        >>> check_rows([0, 2], 3)
        array([0, 2])
        >>> check_rows(3, 3)
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: rows=[3] must be one or several of 0 to 2
    """
    found = np.atleast_1d(np.asarray(rows))
    whole = found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    if not whole or not found.size or found.min() < 0 or found.max() >= count:
        raise InputError(
            f"rows={found.tolist()} must be one or several of 0 to {count - 1}"
        )
    return found
