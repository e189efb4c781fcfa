"""Deep memories on GPUs: XLA's batched products, and a kernel for the inverse.

The products of a chunk are large enough for XLA; what it is slow at is the
ladder of small ones, for which
:mod:`pallas_kernels.delta_memory.triton_inverse` has one kernel. Long chunks,
of 256 tokens and more, keep a GPU busiest. Never timed.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory.triton_inverse import unit_lower_inverse_triton
from pallas_kernels.mlp_memory import chunked
from pallas_kernels.partition import explicit_axes, lead_spec, over_mesh


def why_not(state, tokens, gates, chunk_size, interpret=False) -> str | None:
    """Says why the kernel cannot take arrays, or shapes; ``None``: it can.

    Example:
        >>> w = jax.ShapeDtypeStruct((1, 64, 64), jnp.float32)
        >>> x = jax.ShapeDtypeStruct((1, 256, 64), jnp.bfloat16)
        >>> gate = jax.ShapeDtypeStruct((1, 256), jnp.float32)
        >>> why_not((w,), (x,), (gate,), 8)
        'a chunk of 8 tokens is less than 16'
    """
    del tokens, gates  # XLA takes any.
    if chunk_size < 16:
        return f"a chunk of {chunk_size} tokens is less than 16"
    if explicit := explicit_axes():
        return f"mesh axes {explicit} are Explicit, must be Auto"
    for w in state:
        if not interpret and w.dtype != jnp.float32:
            return f"state have dtype {w.dtype}, must be float32"
    return None


def why_not_step(program) -> str | None:
    """Steps are XLA's: there is none that cannot run."""
    del program
    return None


def forward(step, arrays, *, chunk_size, save, interpret=False):
    """``((o, state), states at chunk starts)``, as the plain form does."""
    run = functools.partial(
        chunked.forward,
        step,
        chunk_size=chunk_size,
        save=save,
        inverse=_inverse(interpret),
    )
    rows, behind = _specs(arrays)
    return over_mesh(run, (rows,), (rows, behind))(arrays)


def backward(step, arrays, starts, cotangents, *, chunk_size, interpret=False):
    """Cotangents of ``arrays``."""
    run = functools.partial(
        chunked.backward,
        step,
        chunk_size=chunk_size,
        inverse=_inverse(interpret),
    )
    rows, behind = _specs(arrays)
    return over_mesh(run, (rows, behind, rows), rows)(
        arrays, starts, cotangents
    )


def _inverse(interpret):
    return functools.partial(
        unit_lower_inverse_triton, interpret=bool(interpret)
    )


def _specs(arrays):
    """Where rows and heads lie, and where they do behind an axis of chunks."""
    spec = lead_spec(arrays["tokens"][0].shape[:-2])
    return spec, jax.P(None, *spec)
