"""Shapes of real models, for compile gates and benchmarks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shape(NamedTuple):
    """What one device gets of one layer."""

    batch: int
    heads: int
    length: int
    width: int
    """``d_in`` and ``d_out``."""
    momentum: bool
    read: str
    dtype: jnp.dtype = jnp.bfloat16

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct | None]:
        """The arguments of ``delta_scan``, by name."""
        lead = (self.batch, self.heads)

        def shape(*rest, dtype=jnp.float32):
            return jax.ShapeDtypeStruct((*lead, *rest), dtype)

        w = shape(self.width, self.width)
        x = shape(self.length, self.width, dtype=self.dtype)
        gate = shape(self.length)
        return {
            "w": w,
            "s": w if self.momentum else None,
            "x": x,
            "g": x,
            "q": x,
            "log_alpha": gate,
            "beta": gate,
            "log_mu": gate if self.momentum else None,
        }


SHAPES = {
    # 2,048 wide, 16 heads: gated DeltaNet of 1.3 billion parameters.
    "gated_deltanet_1b3": Shape(1, 16, 4096, 128, False, "after"),
    # 1,536 wide, 16 heads, with momentum: the 760 million of the Titans.
    "titans_760m": Shape(2, 16, 2048, 96, True, "before"),
}
