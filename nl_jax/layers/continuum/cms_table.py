"""The rows of a continuum memory in the level table."""

from typing import Any

import jax

from nl_jax.layers.continuum.steps import CMSState
from nl_jax.nested.level_table import LevelRow, count_bytes, count_parameters

_ARCHITECTURES = {"swiglu": "SwiGLU MLP", "gelu": "GELU MLP"}
_INNER = {
    "sgd": "GD",
    "momentum": "GD, momentum",
    "adamw": "Adam",
    "delta_momentum": "delta momentum",
    "m3": "M3",
    "dgd": "DGD",
}


def cms_level_rows(
    config: Any, params: Any, state: CMSState | None, n_layers: int
) -> list[LevelRow]:
    """Returns one row per level.

    Args:
        config: a ``CMSConfig``.
        params: of the ``ContinuumMemory`` of all blocks, or their shapes.
        state: for one batch row, where levels learn in context.
        n_layers: number of blocks.
    """
    rows = []
    for index, period in enumerate(config.periods):
        weights = [
            leaf
            for key, leaf in params.items()
            if key.startswith(config.prefixes[index])
        ]
        architecture = _ARCHITECTURES[config.mlp]
        if config.placement == "depth":
            blocks = config.blocks(n_layers)[index]
            architecture += f", blocks {blocks.start + 1} to {blocks.stop}"
            weights = [_cut(leaf, blocks) for leaf in weights]
        in_context = config.learns
        rows.append(
            LevelRow(
                name=f"cms.level_{index + 1}",
                memory_of="tokens of its period",
                architecture=architecture,
                objective=(
                    config.goal.compresses if in_context else "next token"
                ),
                rule=_rule(config, index) if in_context else "outer optimizer",
                # At rate 0 nothing but the optimizer moves a level, every step.
                period=(
                    period if in_context or config.goal.unit == "steps" else 1
                ),
                unit="tokens" if in_context else "steps",
                parameters=count_parameters(weights),
                state_bytes=count_bytes(state and _state_of(state, index)),
                moves=config.prefixes[index],
            )
        )
    return rows


def _state_of(state, index):
    """A level's state; the fastest has what serves all levels."""
    levels = (state.fast, state.gathered, state.inner, *state.start)
    own = [parts[index] for parts in levels if index < len(parts)]
    if index == 0:
        own += [state.tokens, state.carry, state.position, state.signal]
    return own


def _rule(config, index):
    inner = config.inners[index]
    name = inner if isinstance(inner, str) else "optax"
    rule = f"{_INNER.get(name, name)} in context"
    if config.adaptive != "none" and index:
        rule += f", at {config.adaptive}"
    return rule


def _cut(leaf, blocks):
    count = blocks.stop - blocks.start
    return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
