"""Rows of the level table for memories inside optimizers."""

import dataclasses
from typing import Any

import jax

from nl_jax.nested.level_table import LevelRow, count_bytes


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MemoryFacts:
    """Static description of a memory, part of its state but not a leaf.

    States are alike whatever objective, rule and period it names.
    """

    architecture: str
    """Name of the memory's architecture."""
    objective: str = dataclasses.field(compare=False)
    """Name of its objective."""
    rule: str = dataclasses.field(compare=False)
    """Description of its learning rule."""
    period: int = dataclasses.field(default=1, compare=False)
    """Steps between two writes."""


def level_row(name: str, facts: MemoryFacts, arrays: Any) -> LevelRow:
    """Returns the level table's row of a memory of gradients.

    Args:
        name: name of the level.
        facts: description of the memory.
        arrays: the memory's state, whose bytes are counted.
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
