"""Levels among the blocks of a model: which blocks share which levels."""

from typing import Any

from nl_jax.layers.continuum.cms_config import CMSConfig
from nl_jax.layers.continuum.steps import CMSState
from nl_jax.memory.packed import Packed

Segment = tuple[slice, CMSConfig, Any]
"""A run of equal blocks, its levels, and their fast weights or state."""


def segments(config: CMSConfig, n_layers: int, fast: Any) -> list[Segment]:
    """Returns the runs of equal blocks in the order of depth.

    Args:
        config: of the levels.
        n_layers: number of blocks.
        fast: weights of the levels, or a ``CMSState``; ``None`` if slow
            parameters serve all blocks.
    """
    if not fast:
        return [(slice(0, n_layers), config, None)]
    parts = config.blocks(n_layers)
    learning = [(parts[0], config, fast)]
    if config.placement == "depth":
        learning = [
            (blocks, config.only(index), _one_level(fast, index))
            for index, blocks in enumerate(parts)
        ]
    static = [(slice(0, parts[0].start), config, None)]
    return (static if parts[0].start else []) + learning


def join(
    before: CMSState,
    learned: list[Any],
    length: int,
    config: CMSConfig,
    packed: Packed | None = None,
) -> CMSState:
    """Joins the levels of all segments, ``length`` tokens after ``before``."""
    parts = [sum(runs, ()) for runs in zip(*learned, strict=True)]
    position = before.position + length
    if packed is not None:
        position = packed.advance(before.position)
    position = position % config.periods[-1]
    return before.with_blocks(parts)._replace(position=position)


def _one_level(fast, index):
    own = slice(index, index + 1)
    if not isinstance(fast, CMSState):
        return fast[own]
    return fast.with_blocks([part[own] for part in fast.by_block])
