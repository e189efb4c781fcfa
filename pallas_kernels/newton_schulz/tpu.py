"""Newton-Schulz on TPUs, with all iterations in vector memory.

Each program reads one matrix, runs the iteration of the batched form and writes
the result once. The smaller side must be at most 512 for everything to fit.
Float32 is multiplied in full precision. Weakness: small matrices leave half of
the matrix unit unused. Never timed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.device import VMEM_BYTES
from pallas_kernels.newton_schulz.batched import iterate
from pallas_kernels.partition import explicit_axes, lead_spec, over_mesh

MAX_SIDE = 512
"""Largest size of the smaller side of a matrix."""


def why_not(x, interpret=False) -> str | None:
    """Returns why the kernel cannot run on ``x``, or its shape, else ``None``.

    Example:
        >>> why_not(jax.ShapeDtypeStruct((4, 1024, 1024), jnp.float32))
        'the smaller side of (1024, 1024) is over 512'
    """
    if explicit := explicit_axes():
        return f"mesh axes {explicit} are Explicit, must be Auto"
    if not interpret and x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"x has dtype {x.dtype}, must be float32 or bfloat16"
    low, high = sorted(x.shape[-2:])
    if low > MAX_SIDE:
        return f"the smaller side of {x.shape[-2:]} is over {MAX_SIDE}"
    # Double buffers of input and output, three more arrays like X and eight
    # like X X^T.
    if 4 * (7 * low * high + 8 * low * low) > VMEM_BYTES:
        return f"{x.shape[-2:]} does not fit {VMEM_BYTES >> 20} MiB"
    return None


def forward(x, schedule, eps, interpret=False):
    """Runs :func:`newton_schulz` with a row ``(a, b, c)`` for each step."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    call = functools.partial(
        _call, schedule=schedule, eps=eps, interpret=interpret
    )
    spec = lead_spec(x.shape[:-2])
    y = over_mesh(call, (spec,), spec)(x)
    return y.mT if tall else y


def _call(x, *, schedule, eps, interpret):
    flat = x.reshape(-1, *x.shape[-2:])
    full = jnp.finfo(x.dtype).bits > 16

    def run(matrix):
        with jax.default_matmul_precision("highest" if full else "default"):
            return iterate(matrix, schedule, eps)

    def kernel(x_ref, o_ref):
        o_ref[...] = run(x_ref[...])

    one = jax.ShapeDtypeStruct(x.shape[-2:], x.dtype)
    work = pl.estimate_cost(run, one)
    block = pl.BlockSpec((None, *x.shape[-2:]), lambda i: (i, 0, 0))
    return pl.pallas_call(
        kernel,
        grid=flat.shape[:1],
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(flat.shape, flat.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=len(flat) * work.flops,
            transcendentals=len(flat) * work.transcendentals,
            bytes_accessed=2 * math.prod(x.shape) * x.dtype.itemsize,
        ),
        interpret=interpret,
        name="newton_schulz",
    )(flat).reshape(x.shape)
