"""Shapes of real models, for compile gates and benchmarks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shape(NamedTuple):
    """Shape of one layer on one device, an MLP of two matrices per head."""

    batch: int
    heads: int
    length: int
    width: int
    """Width of keys, values and queries."""
    hidden: int
    chunk_size: int
    momentum: bool
    dtype: jnp.dtype = jnp.bfloat16

    def arguments(self):
        """Returns abstract state, tokens (q, k, v) and gates."""

        def shape(*rest, dtype=jnp.float32):
            lead = (self.batch, self.heads)
            return jax.ShapeDtypeStruct((*lead, *rest), dtype)

        layers = (
            shape(self.width, self.hidden),
            shape(self.hidden, self.width),
        )
        x = shape(self.length, self.width, dtype=self.dtype)
        gates = 3 if self.momentum else 2
        return (
            layers * (2 if self.momentum else 1),
            (x, x, x),
            (shape(self.length),) * gates,
        )


SHAPES = {
    # Hope with 1.3 billion parameters: width 2,048, 16 heads.
    "hope_1b3": Shape(1, 16, 2048, 128, 512, 128, True),
    # The preset with 760 million: width 1,536, 16 heads, chunks of 64.
    "hope_760m": Shape(2, 16, 2048, 96, 384, 64, True),
}
