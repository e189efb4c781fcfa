"""Draws the level table of Hope with AdamW: ``docs/levels.png``.

Command (seconds)::

    python -m experiments.level_figure --out=docs/levels.png
"""

import jax
import jax.numpy as jnp
import optax
from absl import flags

from experiments import cli
from nl_jax.models import build, names
from nl_jax.nested import describe


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_enum(
        "model", "hope", names(), "Name in the registry.", flag_values=values
    )
    flags.DEFINE_string(
        "out", "docs/levels.png", "Image to write.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Describes the model and an optimizer of its parameters."""
    model = build(values.model)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    table = describe(model, optax.adamw(1e-3), params=shapes)
    table.figure(values.out)
    print(table)


if __name__ == "__main__":
    cli.run(define, main)
