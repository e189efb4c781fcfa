"""Newton-Schulz on GPUs through Triton, for small and for large matrices.

Up to a smaller side of 128, one program runs all iterations on a matrix, see
:mod:`pallas_kernels.newton_schulz.triton_fused`. From 1,024 the iteration is
that of the batched form, with kernels for its symmetric products: they compute
half of the tiles, and the polynomial along with them. Sizes in between are left
to the batched form. Never timed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.newton_schulz import triton_tiles as tiles
from pallas_kernels.newton_schulz.batched import Products, iterate, multiply
from pallas_kernels.newton_schulz.triton_fused import fused
from pallas_kernels.partition import explicit_axes, lead_spec, over_mesh

SMALL = 128
"""Largest smaller side of a matrix that one program handles."""
LARGE = 1024
"""Least smaller side of a matrix whose products are tiled."""
TILE = 128
"""Rows and columns of a tile of the result, one per program."""
DEPTH = 32
"""Columns of the factors that are multiplied at a time."""


def why_not(x, interpret=False) -> str | None:
    """Returns why no kernel can run on ``x``, or its shape, else ``None``.

    Example:
        >>> why_not(jax.ShapeDtypeStruct((4, 512, 600), jnp.float32))
        'the smaller side of (512, 600) is over 128 and under 1024'
    """
    if explicit := explicit_axes():
        return f"mesh axes {explicit} are Explicit, must be Auto"
    if not interpret and x.dtype not in (jnp.float32, jnp.bfloat16):
        return f"x has dtype {x.dtype}, must be float32 or bfloat16"
    if SMALL < min(x.shape[-2:]) < LARGE:
        return (
            f"the smaller side of {x.shape[-2:]} is over {SMALL} and under "
            f"{LARGE}"
        )
    return None


def forward(x, schedule, eps, interpret=False):
    """Runs :func:`newton_schulz` with a row ``(a, b, c)`` for each step."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    call = functools.partial(
        fused if x.shape[-2] <= SMALL else tiled,
        schedule=schedule,
        eps=eps,
        interpret=interpret,
    )
    spec = lead_spec(x.shape[:-2])
    y = over_mesh(call, (spec,), spec)(x)
    return y.mT if tall else y


def tiled(x, *, schedule, eps, interpret):
    """Runs :func:`newton_schulz` on wide or square matrices, tile by tile."""
    *_, n, m = x.shape
    flat = tiles.padded(x.reshape(-1, n, m), TILE)
    call = functools.partial(_symmetric, interpret=interpret)
    products = Products(
        gram=lambda x: call(x, x),
        polynomial=lambda gram, row: call(gram, gram, row),
        commuting=call,
        plain=functools.partial(
            multiply, precision=tiles.precision(flat.dtype)
        ),
    )
    y = iterate(flat, schedule, eps, products)
    return y[:, :n, :m].reshape(x.shape)


def _symmetric(left, right, row=(0.0, 0.0, 1.0), *, interpret):
    """Returns ``a I + b L + c L R^T`` for matrices ``[count, n, depth]``."""
    count, n, depth = left.shape
    whole = pl.BlockSpec((None, n, depth), lambda i, t: (i, 0, 0))
    programs = tiles.count_lower(n // TILE)
    return pl.pallas_call(
        functools.partial(_kernel, row=row),
        grid=(count, programs),
        in_specs=[whole, whole],
        out_specs=pl.BlockSpec((None, n, n), lambda i, t: (i, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((count, n, n), left.dtype),
        compiler_params=pltriton.CompilerParams(num_warps=8, num_stages=3),
        cost_estimate=pl.CostEstimate(
            flops=2 * count * programs * TILE * TILE * depth,
            transcendentals=0,
            bytes_accessed=left.dtype.itemsize * count * n * (2 * depth + n),
        ),
        interpret=interpret,
        name="newton_schulz_triton_symmetric",
    )(left, right)


def _kernel(left_ref, right_ref, o_ref, *, row):
    n, depth = left_ref.shape
    i, j = tiles.lower(pl.program_id(1), n // TILE)
    acc = tiles.rows_by_rows(
        lambda k: left_ref[tiles.at(i, k, TILE, DEPTH)],
        lambda k: right_ref[tiles.at(j, k, TILE, DEPTH)],
        depth // DEPTH,
        (TILE, TILE),
        jnp.promote_types(o_ref.dtype, jnp.float32),
    )
    a, b, c = row
    acc *= c
    if b:
        acc += b * left_ref[tiles.at(i, j, TILE)].astype(acc.dtype)
    if a:
        acc = tiles.plus_identity(acc, a, i, j)
    tiles.write_twice(o_ref, i, j, acc.astype(o_ref.dtype))
