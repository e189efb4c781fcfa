"""Shapes of real models, for compile gates and benchmarks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shape(NamedTuple):
    """Shape of one layer's memories on one device."""

    batch: int
    heads: int
    length: int
    width: int
    """``d_in`` and ``d_out``."""
    momentum: bool
    read: str
    dtype: jnp.dtype = jnp.bfloat16

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct | None]:
        """Returns abstract arguments of ``delta_scan``, by name."""
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
    # Gated DeltaNet with 1.3 billion parameters: width 2,048, 16 heads.
    "gated_deltanet_1b3": Shape(1, 16, 4096, 128, False, "after"),
    # Titans with 760 million: width 1,536, 16 heads, momentum.
    "titans_760m": Shape(2, 16, 2048, 96, True, "before"),
}
