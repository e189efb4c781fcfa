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
    """Returns the name of an object, which loading looks up in the table.

    Raises:
        InputError: if the table has another object under that name.

    Example:
        >>> mine = Objective("mine", lambda y, v: (y - v).sum(-1))
        >>> saved_name(mine, OBJECTIVES)
        'mine'
    """
    if table.get(choice.name, choice) != choice:
        raise InputError(
            f"an own {type(choice).__name__} is called {choice.name!r}, which "
            "stands for another in its table; what is saved by name needs a "
            "name of its own: dataclasses.replace(..., name=...)"
        )
    return choice.name
