"""Shapes of real models, for compile gates and benchmarks."""

import jax
import jax.numpy as jnp

SHAPES = {
    # The memories of a layer with 16 heads of 128, hidden 512.
    "memories_128x512": jax.ShapeDtypeStruct((16, 128, 512), jnp.float32),
    # Stacked layers' projections of a small model under Muon.
    "layers_512x1536": jax.ShapeDtypeStruct((24, 512, 1536), jnp.bfloat16),
    # Those of a model with 1.3 billion parameters, four layers at a time.
    "layers_2048x2048": jax.ShapeDtypeStruct((4, 2048, 2048), jnp.bfloat16),
}
