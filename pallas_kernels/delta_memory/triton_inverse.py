"""Inverses of unit lower-triangular matrices on GPUs, through Triton.

One program inverts one diagonal block of up to 64, where XLA would launch a
dozen small products; XLA's products merge the blocks. Never timed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.delta_memory.inverse import (
    inverse_backward,
    inverse_from_blocks,
)
from pallas_kernels.delta_memory.triton_kernels import (
    unit_lower_inverse_by_columns,
)

LARGEST = 64
"""Width of the blocks that one program inverts."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unit_lower_inverse_triton(
    strict_lower: jax.Array, interpret: bool = False
) -> jax.Array:
    """:func:`unit_lower_inverse` with a kernel.

    Args:
        strict_lower: ``L``, ``[..., C, C]``, any ``C >= 1``.
        interpret: as in ``pl.pallas_call``.

    Example:
        >>> lower = jnp.array([[0.0, 0.0], [3.0, 0.0]])
        >>> unit_lower_inverse_triton(lower, True).tolist()
        [[1.0, 0.0], [-3.0, 1.0]]
    """
    size = strict_lower.shape[-1]
    base = next((b for b in (16, 32) if b >= size), LARGEST)
    return inverse_from_blocks(
        strict_lower,
        base,
        functools.partial(_invert_blocks, base=base, interpret=interpret),
    )


def _forward(strict_lower, interpret):
    inverse = unit_lower_inverse_triton(strict_lower, interpret)
    return inverse, inverse


def _backward(interpret, inverse, cotangent):
    return inverse_backward(inverse, cotangent)


unit_lower_inverse_triton.defvjp(_forward, _backward)


def _invert_blocks(lower, *, base, interpret):
    *lead, width, _ = lower.shape
    flat = lower.reshape(-1, width, width)
    rows, blocks = flat.shape[0], width // base
    steps = int(math.log2(base // 16))
    inverse = pl.pallas_call(
        _kernel,
        grid=(rows, blocks),
        in_specs=[pl.BlockSpec((None, base, base), lambda r, b: (r, b, b))],
        out_specs=pl.BlockSpec(
            (None, None, base, base), lambda r, b: (r, b, 0, 0)
        ),
        out_shape=jax.ShapeDtypeStruct((rows, blocks, base, base), lower.dtype),
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=1),
        cost_estimate=pl.CostEstimate(
            flops=rows * blocks * base**2 * (32 + 4 * base * steps),
            transcendentals=0,
            bytes_accessed=2 * rows * blocks * base**2 * lower.dtype.itemsize,
        ),
        interpret=interpret,
        name="delta_memory_triton_inverse",
    )(flat)
    return inverse.reshape(*lead, blocks, base, base)


def _kernel(lower, inverse):
    inverse[...] = unit_lower_inverse_by_columns(lower[...], jnp.float32)
