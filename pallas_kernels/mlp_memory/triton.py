"""Deep memories on GPUs: XLA's products, and a kernel for the inverse.

The products of a chunk are large enough for XLA. It is slow at the many small
ones of the triangular inverse, for which
:mod:`pallas_kernels.delta_memory.triton_inverse` has a kernel. Long chunks, of
256 tokens and more, use a GPU best. Never timed.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory.triton_inverse import unit_lower_inverse_triton
from pallas_kernels.mlp_memory import chunked
from pallas_kernels.partition import explicit_axes, lead_spec, over_mesh


def why_not(state, tokens, gates, chunk_size, interpret=False) -> str | None:
    """Returns why the kernel cannot run on arrays, or shapes, else ``None``.

    Example:
        >>> w = jax.ShapeDtypeStruct((1, 64, 64), jnp.float32)
        >>> x = jax.ShapeDtypeStruct((1, 256, 64), jnp.bfloat16)
        >>> gate = jax.ShapeDtypeStruct((1, 256), jnp.float32)
        >>> why_not((w,), (x,), (gate,), 8)
        'a chunk of 8 tokens is less than 16'
    """
    del tokens, gates  # All are supported.
    if chunk_size < 16:
        return f"a chunk of {chunk_size} tokens is less than 16"
    if explicit := explicit_axes():
        return f"mesh axes {explicit} are Explicit, must be Auto"
    for w in state:
        if not interpret and w.dtype != jnp.float32:
            return f"state have dtype {w.dtype}, must be float32"
    return None


def why_not_step(program) -> str | None:
    """Returns ``None``: XLA runs any step."""
    del program
    return None


def forward(step, arrays, *, chunk_size, save, interpret=False):
    """Returns ``((o, state), states at chunk starts)``."""
    run = functools.partial(
        chunked.forward,
        step,
        chunk_size=chunk_size,
        save=save,
        inverse=_inverse(interpret),
    )
    rows, stacked = _specs(arrays)
    return over_mesh(run, (rows,), (rows, stacked))(arrays)


def backward(step, arrays, starts, cotangents, *, chunk_size, interpret=False):
    """Returns the cotangents of ``arrays``."""
    run = functools.partial(
        chunked.backward,
        step,
        chunk_size=chunk_size,
        inverse=_inverse(interpret),
    )
    rows, stacked = _specs(arrays)
    return over_mesh(run, (rows, stacked, rows), rows)(
        arrays, starts, cotangents
    )


def _inverse(interpret):
    return functools.partial(
        unit_lower_inverse_triton, interpret=bool(interpret)
    )


def _specs(arrays):
    """Shardings of arrays, and of arrays with an axis of chunks in front."""
    spec = lead_spec(arrays["tokens"][0].shape[:-2])
    return spec, jax.P(None, *spec)
