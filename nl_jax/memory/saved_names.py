"""Names under which configurations save the parts of a memory."""

from collections.abc import Mapping
from typing import Any

from nl_jax.errors import InputError
from nl_jax.memory.architecture import Architecture
from nl_jax.memory.architectures import ARCHITECTURES
from nl_jax.memory.matrix_rules import MATRIX_RULES, MatrixRule
from nl_jax.memory.objective import OBJECTIVES, Objective
from nl_jax.memory.retention import RETENTIONS, Retention
from nl_jax.memory.rule import RULES, LearningRule

TABLES: dict[type, Mapping[str, Any]] = {
    Architecture: ARCHITECTURES,
    Objective: OBJECTIVES,
    LearningRule: RULES,
    Retention: RETENTIONS,
    MatrixRule: MATRIX_RULES,
}
"""Table of names for each type of object."""


def saved_name(choice: Any, table: Mapping[str, Any]) -> str:
    """Returns the name under which loading finds an object in the table.

    That is its key, or its own name if it is not in the table yet.

    Raises:
        InputError: if the table has another object under that name.

    Example:
        >>> mine = Objective("mine", lambda y, v: (y - v).sum(-1))
        >>> saved_name(mine, OBJECTIVES)
        'mine'
    """
    for key, entry in table.items():
        if entry is choice or entry == choice:
            return key
    name = getattr(choice, "name", type(choice).__name__)
    if name in table:
        raise InputError(
            f"an own {type(choice).__name__} is called {name!r}, which "
            "stands for another in its table; what is saved by name needs a "
            "name of its own: dataclasses.replace(..., name=...)"
        )
    return name
