"""What a state says of itself in the level table."""

import dataclasses
from typing import Any

import jax

from nl_jax.nested.describe import LevelRow, count_bytes


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MemoryFacts:
    """Choices that a state's arrays do not show; no leaf of the tree."""

    architecture: str
    objective: str
    rule: str
    period: int = 1


def level_row(name: str, facts: MemoryFacts, arrays: Any) -> LevelRow:
    """Returns the row of a memory of gradients.

    Args:
        name: of the level.
        facts: its choices.
        arrays: its state.
    """
    return LevelRow(
        name=name,
        memory_of="gradients",
        architecture=facts.architecture,
        objective=facts.objective,
        rule=facts.rule,
        period=facts.period,
        unit="steps",
        parameters=0,
        state_bytes=count_bytes(arrays),
    )
