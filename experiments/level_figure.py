"""Draws the level table of Hope with AdamW: ``docs/levels.png``.

Command (seconds)::

    python -m experiments.level_figure --out=docs/levels.png
"""

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from nl_jax.models import build
from nl_jax.nested import describe

_FLAGS = flags.FLAGS
flags.DEFINE_string("model", "hope", "Name in the registry.")
flags.DEFINE_string("out", "docs/levels.png", "Image to write.")


def main(argv):
    """Describes the model and an optimizer of its parameters."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    model = build(_FLAGS.model)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    table = describe(model, optax.adamw(1e-3), params=shapes)
    table.figure(_FLAGS.out)
    print(table)


if __name__ == "__main__":
    app.run(main)
