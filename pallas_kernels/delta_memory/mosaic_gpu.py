"""The delta memory on Hopper GPUs (H100, H200), with walks in Mosaic GPU.

The sequential walks are those of
:mod:`pallas_kernels.delta_memory.mosaic_walks`, with wgmma and TMA. Everything
that is parallel over chunks runs the kernels of
:mod:`pallas_kernels.delta_memory.triton`, which also has the formulas.

Weaknesses: chunks of 64 tokens and bfloat16 only; the walks' states are
transposed, which copies each of them, saved ones included. Never timed.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import device
from pallas_kernels.delta_memory import mosaic_steps, mosaic_walks, triton
from pallas_kernels.delta_memory.triton_arrays import SPLIT
from pallas_kernels.delta_memory.triton_launch import Run

LEAST_BLOCK = mosaic_steps.CHUNK
"""Least tokens of a block; fewer are padded."""
LEAST_WIDTH = 64
"""Least columns of an array in shared memory, due to its layout."""


def why_not(arrays, block, read, interpret=False) -> str | None:
    """Returns why the kernels cannot run on arrays, or shapes, else ``None``.

    Example:
        >>> x = jax.ShapeDtypeStruct((1, 128, 64), jnp.bfloat16)
        >>> gate = jax.ShapeDtypeStruct((1, 128), jnp.float32)
        >>> w = jax.ShapeDtypeStruct((1, 64, 64), jnp.float32)
        >>> arrays = dict(w=w, s=None, x=x, g=x, q=x)
        >>> arrays |= dict(log_alpha=gate, beta=gate, log_mu=None)
        >>> why_not(arrays, 32, "before")
        'a block of 32 tokens is no multiple of 64'
    """
    if block % mosaic_steps.CHUNK:
        return f"a block of {block} tokens is no multiple of 64"
    if read == "chunk" and block != mosaic_steps.CHUNK:
        return f"a chunk of {block} tokens is not 64"
    if not hasattr(plgpu, "InterpretGPUParams"):
        return f"JAX {jax.__version__} is too old, needs 0.11"
    if not interpret:
        capability = device.gpu_capability()
        if capability is None or capability[0] != 9:
            return f"the GPU's compute capability is {capability}, must be 9.0"
        if arrays["x"].dtype != jnp.bfloat16:
            return f"x has dtype {arrays['x'].dtype}, must be bfloat16"
    return triton.why_not(arrays, block, read, interpret)


def forward(arrays, *, block, read, save=False, interpret=False):
    """Runs the forward kernels, like :func:`triton.forward`."""
    return _Run(arrays, block, read, interpret).forward(arrays, save)


def backward(arrays, starts, cotangents, *, block, read, interpret=False):
    """Runs the backward kernels, like :func:`triton.backward`."""
    run = _Run(arrays, block, read, interpret)
    return run.backward(arrays, starts, cotangents)


class _Run(Run):
    """Triton's launches with other walks, and the widths that these need."""

    def __init__(self, arrays, block, read, interpret):
        super().__init__(arrays, block, read, bool(interpret))
        self.simulated = interpret
        if interpret is True:
            # Of JAX 0.11 and later.
            self.simulated = plgpu.InterpretGPUParams()  # type: ignore
        self.sizes |= {
            axis: -(-self.sizes[axis] // LEAST_WIDTH) * LEAST_WIDTH
            for axis in "ij"
        }

    def launch(self, kernel, name, given, reads, wanted, **how):
        """Calls a kernel, see :meth:`Run.launch`."""
        if name not in ("walk", "walk_back"):
            return super().launch(kernel, name, given, reads, wanted, **how)
        # These walks take whole factors, not parts.
        inputs = {
            n: given[n].astype(self.low).sum(1) if n in SPLIT else given[n]
            for n in reads
            if n in given
        }
        if name == "walk":
            return mosaic_walks.walk(
                inputs,
                wanted,
                self.case,
                every=self.per_block,
                interpret=self.simulated,
            )
        return self.divide(
            mosaic_walks.walk_back(
                inputs, wanted, self.case, interpret=self.simulated
            )
        )
