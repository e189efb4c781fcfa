"""The rows of the level table that a continuum memory has."""

import jax

from nl_jax.layers.continuum.cms_config import CMSConfig
from nl_jax.nested import LevelRow
from nl_jax.nested.describe import count_bytes, count_parameters

_RULES = {
    "sgd": "GD",
    "momentum": "GD, momentum",
    "adam": "Adam",
    "delta_momentum": "delta momentum",
    "m3": "M3",
    "dgd": "DGD",
}


def cms_level_rows(config: CMSConfig, params, state, n_layers: int):
    """Returns one row for each level.

    Args:
        config: of the continuum memory.
        params: shapes of the continuum memory's parameters in all blocks.
        state: shapes of the state of levels that learn in context, or ``None``.
        n_layers: blocks of the model.
    """
    inner = state is not None
    parts = config.blocks(n_layers)
    rows = []
    for index, period in enumerate(config.periods):
        kinds = {"swiglu": "SwiGLU MLP", "gelu": "GELU MLP"}
        architecture = kinds[config.mlp]
        weights = [
            leaf
            for key, leaf in params.items()
            if key.startswith(config.prefixes[index])
        ]
        if config.placement == "depth":
            blocks = parts[index]
            architecture += f", blocks {blocks.start + 1} to {blocks.stop}"
            weights = [_cut(leaf, blocks) for leaf in weights]
        size = 0
        if inner:
            size = count_bytes((state.fast[index], state.gathered[index]))
        own_values = inner and config.objective == "local"
        rows.append(
            LevelRow(
                name=f"cms.level_{index + 1}",
                memory_of="tokens of its period",
                architecture=architecture,
                objective="own values" if own_values else "next token",
                rule=_rule(config, index) if inner else "outer optimizer",
                # At rate 0 nothing but the optimizer moves a level, every step.
                period=period if inner or config.objective == "outer" else 1,
                unit="tokens" if inner else "steps",
                parameters=count_parameters(weights),
                state_bytes=size,
            )
        )
    return rows


def _rule(config, index):
    inner = config.inners[index]
    name = inner if isinstance(inner, str) else "optax"
    rule = f"{_RULES.get(name, name)} in context"
    if config.adaptive != "none" and index:
        rule += f", at {config.adaptive}"
    return rule


def _cut(leaf, blocks):
    count = blocks.stop - blocks.start
    return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
