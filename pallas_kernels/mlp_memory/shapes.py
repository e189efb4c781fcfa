"""Shapes of real models, for compile gates and benchmarks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shape(NamedTuple):
    """What one device gets of one layer: an MLP of two matrices per head."""

    batch: int
    heads: int
    length: int
    width: int
    """Of keys, values and queries."""
    hidden: int
    chunk_size: int
    momentum: bool
    dtype: jnp.dtype = jnp.bfloat16

    def arguments(self):
        """State, tokens (q, k, v) and gates of ``memory_scan``."""

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
    # 2,048 wide, 16 heads: 1.3 billion parameters.
    "hope_1b3": Shape(1, 16, 2048, 128, 512, 128, True),
    # 1,536 wide, 16 heads, chunks of 64: the 760 million of the presets.
    "hope_760m": Shape(2, 16, 2048, 96, 384, 64, True),
}
