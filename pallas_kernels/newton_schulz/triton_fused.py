"""All Newton-Schulz iterations on one matrix in one Triton program.

The program reads ``X`` for its largest value, for its norm and for the Gram
matrix, iterates on the Gram matrix as the batched form does, and reads ``X``
again to multiply it. After the first time ``X`` comes from the cache, as do the
Gram matrix and four more of its size, which do not fit into registers. Half
precision is read and written; everything in between is float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.newton_schulz import triton_tiles as tiles
from pallas_kernels.newton_schulz.norm import norm_unit

SLOTS = 5
"""Matrices like ``X X^T`` that a program stores."""


def fused(x, *, schedule, eps, interpret):
    """:func:`newton_schulz` of wide or square matrices, a program for each."""
    *_, n, m = x.shape
    tile = 16 if n <= 16 else 32 if -n % 64 >= 32 else 64
    flat = tiles.padded(x.reshape(-1, n, m), tile)
    count, rows, columns = flat.shape
    work = jnp.promote_types(x.dtype, jnp.float32)
    slots, coefficients, whole = _operations(schedule)

    def common(*shape):
        return pl.BlockSpec(shape, lambda i: (0,) * len(shape))

    def own(*shape):
        return pl.BlockSpec((None, *shape), lambda i: (i, *(0,) * len(shape)))

    y, _ = pl.pallas_call(
        functools.partial(
            _kernel, tile=tile, whole=whole, eps=eps, interpret=interpret
        ),
        grid=(count,),
        in_specs=[
            common(len(slots), 3),
            common(len(slots), 3),
            own(rows, columns),
        ],
        out_specs=(own(rows, columns), own(SLOTS, rows, rows)),
        out_shape=(
            jax.ShapeDtypeStruct(flat.shape, x.dtype),
            jax.ShapeDtypeStruct((count, SLOTS, rows, rows), work),
        ),
        compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=2),
        cost_estimate=pl.CostEstimate(
            flops=count * rows * rows * (len(slots) * rows + 3 * columns),
            transcendentals=count,
            bytes_accessed=2 * flat.size * x.dtype.itemsize,
        ),
        interpret=interpret,
        name="newton_schulz_triton_fused",
    )(jnp.array(slots, jnp.int32), jnp.array(coefficients, work), flat)
    return y[:, :n, :m].reshape(x.shape)


def _operations(schedule):
    """Lists the products of small matrices, all ``a I + b L + c L R``.

    The kernel runs them in one loop: with a loop for each, the compiler runs
    out of registers.

    Returns:
        For each product the slots of ``L``, ``R`` and the result; for each
        product ``(a, b, c)``; and the slot of the product of all factors. A
        result never overwrites its own factors.
    """
    gram, gram_next, spare, whole, whole_next = range(SLOTS)
    plain = (0.0, 0.0, 1.0)
    found = [((gram, gram, whole), schedule[0])]
    factor = whole
    for row in schedule[1:]:
        found += [
            ((factor, gram, whole_next), plain),
            ((whole_next, factor, gram_next), plain),
            ((gram_next, gram_next, spare), row),
            ((spare, whole, whole_next), plain),
        ]
        gram, gram_next = gram_next, gram
        whole, whole_next = whole_next, whole
        factor = spare
    slots, coefficients = zip(*found, strict=True)
    return slots, coefficients, whole


def _kernel(
    slots_ref,
    coefficients_ref,
    x_ref,
    o_ref,
    work_ref,
    *,
    tile,
    whole,
    eps,
    interpret,
):
    high, wide = (size // tile for size in x_ref.shape)
    square, dtype = (tile, tile), work_ref.dtype
    unit, norm = _norm(x_ref, tile, eps, dtype)

    def x_tile(i, k):
        # Not one quotient by the product, which is the norm and may overflow.
        return x_ref[tiles.at(i, k, tile)].astype(dtype) / unit * (1 / norm)

    def symmetric(value, slot):
        def body(t, _):
            i, j = tiles.lower(t, high)
            tiles.write_twice(work_ref, i, j, value(i, j), slot)

        jax.lax.fori_loop(0, tiles.count_lower(high), body, None)
        if not interpret:  # Threads read what others have written.
            pltriton.debug_barrier()

    def gram(i, j):
        return tiles.rows_by_rows(
            lambda k: x_tile(i, k), lambda k: x_tile(j, k), wide, square, dtype
        )

    def operation(index, _):
        left, right, result = (slots_ref[index, term] for term in range(3))
        a, b, c = (coefficients_ref[index, term] for term in range(3))

        def value(i, j):
            acc = tiles.rows_by_rows(
                lambda k: work_ref[(left, *tiles.at(i, k, tile))],
                lambda k: work_ref[(right, *tiles.at(j, k, tile))],
                high,
                square,
                dtype,
            )
            rest = b * work_ref[(left, *tiles.at(i, j, tile))] + c * acc
            return tiles.plus_identity(rest, a, i, j)

        symmetric(value, result)

    def write(t, _):
        i, j = tiles.divide(t, wide)

        def body(k, acc):
            factors = work_ref[(whole, *tiles.at(i, k, tile))]
            return acc + tiles.dot(factors, x_tile(k, j))

        acc = jax.lax.fori_loop(0, high, body, jnp.zeros(square, dtype))
        o_ref[tiles.at(i, j, tile)] = acc.astype(o_ref.dtype)

    symmetric(gram, 0)
    jax.lax.fori_loop(0, slots_ref.shape[0], operation, None)
    jax.lax.fori_loop(0, high * wide, write, None)


def _norm(x_ref, tile, eps, dtype):
    """Returns a unit, and ``norm + eps`` divided by it.

    Like :func:`divide_by_norm`, safe for values whose squares overflow.
    """
    high, wide = (size // tile for size in x_ref.shape)

    def over_x(function):
        def body(t, found):
            i, k = tiles.divide(t, wide)
            return function(found, x_ref[tiles.at(i, k, tile)].astype(dtype))

        return jax.lax.fori_loop(0, high * wide, body, jnp.zeros((), dtype))

    largest = over_x(lambda v, x: jnp.maximum(v, jnp.max(jnp.abs(x))))
    unit = norm_unit(largest)
    square = over_x(lambda v, x: v + jnp.sum(jnp.square(x / unit)))
    return unit, jnp.sqrt(jnp.where(square == 0, 1, square)) + eps / unit
