"""Shapes of real models, for compile gates and benchmarks."""

import jax
import jax.numpy as jnp

SHAPES = {
    # Memories of a layer with 16 heads of width 128, hidden width 512.
    "memories_128x512": jax.ShapeDtypeStruct((16, 128, 512), jnp.float32),
    # Projections of a small model's 24 layers, stacked, under Muon.
    "layers_512x1536": jax.ShapeDtypeStruct((24, 512, 1536), jnp.bfloat16),
    # Projections of four layers of a model with 1.3 billion parameters.
    "layers_2048x2048": jax.ShapeDtypeStruct((4, 2048, 2048), jnp.bfloat16),
}
