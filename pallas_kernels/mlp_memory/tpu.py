"""Deep memories on TPUs, with one kernel forward and one backward.

A program handles a few heads and walks over their chunks on the last grid axis,
which a TPU runs in order, so that all matrices of the memory stay in vector
memory. The body of the forward kernel is the caller's chunk step, that of the
backward kernel its ``jax.vjp``. For a gradient the forward pass saves the
states at the start of each chunk, from which the backward kernel recomputes the
chunk, the last one first.

Weakness: short chunks leave most of a matrix unit unused. Never timed.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.device import VMEM_BYTES
from pallas_kernels.mlp_memory.step import primitives
from pallas_kernels.mlp_memory.tpu_launch import (
    Run,
    backward_kernel,
    forward_kernel,
    heads_at_once,
)
from pallas_kernels.partition import call_over_mesh, explicit_axes

_NAMES = """
acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt complex
conv_general_dilated cosh cumlogsumexp cummax cummin cumprod cumsum digamma
dynamic_slice dynamic_update_slice erfc expm1 fft gather igamma igammac lgamma
optimization_barrier pad polygamma reduce_prod reduce_window_max
reduce_window_min reduce_window_sum regularized_incomplete_beta rev scatter
scatter-add scatter-mul sharding_constraint sinh sort top_k zeta
"""
MISSING = frozenset(_NAMES.split())
"""Operations that kernels, or their derivatives, do not support."""


def why_not(state, tokens, gates, chunk_size, interpret=False) -> str | None:
    """Returns why the kernels cannot run on arrays, or shapes, else ``None``.

    Example:
        >>> w = jax.ShapeDtypeStruct((1, 64, 64), jnp.float32)
        >>> x = jax.ShapeDtypeStruct((1, 256, 64), jnp.bfloat16)
        >>> gate = jax.ShapeDtypeStruct((1, 256), jnp.float32)
        >>> why_not((w,), (x,), (gate,), 24)
        'a chunk of 24 tokens is no multiple of 16'
    """
    if chunk_size % 16:
        return f"a chunk of {chunk_size} tokens is no multiple of 16"
    if explicit := explicit_axes():
        return f"mesh axes {explicit} are Explicit, must be Auto"
    if not interpret:
        for name, arrays, allowed in (
            ("state", state, (jnp.float32,)),
            ("tokens", tokens, (jnp.float32, jnp.bfloat16)),
            ("gates", gates, (jnp.float32,)),
        ):
            for array in arrays:
                if array.dtype not in allowed:
                    names = " or ".join(t.dtype.name for t in allowed)
                    return f"{name} have dtype {array.dtype}, must be {names}"
    if not heads_at_once(state, tokens, chunk_size, backward=True):
        shapes = ", ".join(" x ".join(map(str, w.shape[-2:])) for w in state)
        return (
            f"a chunk of {chunk_size} tokens and a state of {shapes} do not "
            f"fit {VMEM_BYTES >> 20} MiB"
        )
    return None


def why_not_step(program) -> str | None:
    """Returns why the kernels cannot run a traced step, else ``None``."""
    missing = primitives(program) & MISSING
    if missing:
        return f"kernels do not have {', '.join(sorted(missing))}"
    return None


def forward(step, arrays, *, chunk_size, save, interpret=False):
    """Returns ``((o, state), states at chunk starts)``."""
    lead, length = _sizes(arrays)
    run = Run(step, chunk_size, length, interpret)

    def call(inputs):
        o = jax.eval_shape(run.one_chunk, inputs)[0]
        shape = (*lead_of(inputs), run.chunks * chunk_size, o.shape[-1])
        like: dict[str, tuple] = {"o": (jax.ShapeDtypeStruct(shape, o.dtype),)}
        like["end"] = inputs["start"]
        if save:
            like["starts"] = tuple(
                jax.ShapeDtypeStruct((run.chunks, *w.shape), w.dtype)
                for w in inputs["start"]
            )
        return run.launch(forward_kernel, inputs, like, backward=False)

    def lead_of(inputs):
        return inputs["start"][0].shape[:-2]

    out = call_over_mesh(call, run.prepare(arrays), lead)
    o = out["o"][0][..., :length, :]
    return (o, out["end"]), out.get("starts")


def backward(step, arrays, starts, cotangents, *, chunk_size, interpret=False):
    """Returns the cotangents of ``arrays``."""
    lead, length = _sizes(arrays)
    run = Run(step, chunk_size, length, interpret)
    inputs, pull = jax.vjp(run.prepare, arrays)
    do, dstate = cotangents
    inputs = {name: inputs[name] for name in ("tokens", "gates")}
    inputs |= {"starts": starts, "end": dstate, "o": (run.pad(do, -2),)}

    def call(inputs):
        like = {name: inputs[name] for name in ("tokens", "gates")}
        like["start"] = inputs["end"]
        return run.launch(backward_kernel, inputs, like, backward=True)

    return pull(call_over_mesh(call, inputs, lead))[0]


def _sizes(arrays):
    *lead, length, _ = arrays["tokens"][0].shape
    return tuple(lead), length
