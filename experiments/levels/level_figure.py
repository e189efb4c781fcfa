"""Draws the level table of Hope with AdamW: ``docs/levels.png``.

Command (seconds)::

    python -m experiments.level_figure --out=docs/levels.png
"""

import jax
import jax.numpy as jnp
import optax

from experiments.shared import flags
from nl_jax.models import build, names
from nl_jax.nested import describe

FLAGS = {
    "model": flags.choice("hope", names(), "Name in the registry."),
    "out": flags.string("docs/levels.png", "Image to write."),
}


def main(values: flags.FlagValues) -> None:
    """Describes the model and an optimizer of its parameters."""
    model = build(values.model)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    table = describe(model, optax.adamw(1e-3), params=shapes)
    table.figure(values.out)
    print(table)
