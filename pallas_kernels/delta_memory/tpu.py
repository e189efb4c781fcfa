"""The delta memory on TPUs, with one kernel forward and one backward.

A program handles a few heads and walks over their chunks on the last grid axis,
which a TPU runs in order, so that the state stays in vector memory. The body of
the forward kernel is :func:`chunk_step`, that of the backward kernel its
``jax.vjp``. For a gradient the forward pass saves the state at the start of
each chunk, ``4 d_in d_out`` bytes per head and chunk; the backward kernel
recomputes each chunk from it, the last one first.

Weaknesses: the triangular inverse multiplies whole ``C x C`` matrices in
float32, which is most of the work of a chunk; widths under 128 leave lanes
unused. Never timed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.delta_memory import layout
from pallas_kernels.delta_memory.chunked import chunk_step
from pallas_kernels.delta_memory.inverse import unit_lower_inverse_masked
from pallas_kernels.device import VMEM_BYTES
from pallas_kernels.partition import call_over_mesh

LEAST_BLOCK = 16
"""Least tokens of a block; fewer are padded."""
HEADS = 4
"""Most heads of a program, whose sequential inverses overlap."""
_TOKENS = ("x", "g", "q", "gates")


def why_not(arrays, block, read, interpret=False) -> str | None:
    """Returns why the kernels cannot run on arrays, or shapes, else ``None``.

    Example:
        >>> x = jax.ShapeDtypeStruct((1, 128, 64), jnp.float16)
        >>> gate = jax.ShapeDtypeStruct((1, 128), jnp.float32)
        >>> w = jax.ShapeDtypeStruct((1, 64, 64), jnp.float32)
        >>> arrays = dict(w=w, s=None, x=x, g=x, q=x)
        >>> arrays |= dict(log_alpha=gate, beta=gate, log_mu=None)
        >>> why_not(arrays, 128, "before")
        'x has dtype float16, must be float32 or bfloat16'
    """
    del read  # All are supported.
    if block % 16:
        return f"a chunk of {block} tokens is no multiple of 16"
    if reason := layout.why_not(arrays, interpret):
        return reason
    plan = layout.plan_for(arrays, block)
    d_in, d_out = arrays["w"].shape[-2:]
    d_out *= plan.memories or 1
    if not heads_at_once(plan, d_in, d_out, backward=True):
        return (
            f"a chunk of {block} tokens and a state {d_in} x {d_out} do not "
            f"fit {VMEM_BYTES >> 20} MiB"
        )
    return None


def forward(arrays, *, block, read, save=False, interpret=False):
    """Runs the forward kernel.

    Args:
        arrays: ``delta_scan``'s arrays by name; some may be ``None``.
        block: tokens per chunk, a multiple of 16.
        read: as in ``delta_scan``.
        save: whether to return the states at chunk starts.
        interpret: as in ``pl.pallas_call``.

    Returns:
        ``(o, w, s)`` and, if ``save``, ``(w, s)`` at chunk starts, each
        ``[n, ..., d_in, d_out]``.
    """
    plan = layout.plan_for(arrays, block)
    step = functools.partial(_chunk, plan=plan, read=read)

    def call(inputs):
        like = {"o": jax.ShapeDtypeStruct(inputs["g"].shape, inputs["x"].dtype)}
        for name in plan.states:
            like[f"{name}_end"] = inputs[name]
            if save:
                like[f"{name}_start"] = jax.ShapeDtypeStruct(
                    (plan.chunks, *inputs[name].shape), inputs[name].dtype
                )
        return _launch(_forward_kernel, step, inputs, like, plan, interpret)

    out = call_over_mesh(call, layout.prepare(arrays, plan), plan.lead)
    return layout.restore(out, plan), layout.restore_starts(out, plan)


def backward(arrays, starts, cotangents, *, block, read, interpret=False):
    """Runs the backward kernel and returns the gradients of ``arrays``."""
    plan = layout.plan_for(arrays, block)
    step = functools.partial(_chunk, plan=plan, read=read)
    inputs, pull = jax.vjp(lambda a: layout.prepare(a, plan), arrays)

    def call(inputs):
        like = {name: inputs[name] for name in _TOKENS}
        like |= {name: inputs[f"{name}_end"] for name in plan.states}
        return _launch(_backward_kernel, step, inputs, like, plan, interpret)

    tokens = {name: inputs[name] for name in _TOKENS}
    others = layout.prepare_cotangents(starts, cotangents, plan)
    return pull(call_over_mesh(call, tokens | others, plan.lead))[0]


def _chunk(state, tokens, index, *, plan, read):
    """Runs :func:`chunk_step` on a program's heads; arrays are by name."""
    gates = dict.fromkeys(layout.GATES) | {
        name: tokens["gates"][:, row] for row, name in enumerate(plan.gates)
    }
    valid = None
    if plan.chunks * plan.chunk > plan.length:
        at = jax.lax.broadcasted_iota(jnp.int32, (1, plan.chunk), 1)
        valid = index * plan.chunk + at < plan.length
    # At default precision float32 products round their factors to bfloat16.
    full = jnp.finfo(tokens["x"].dtype).bits > 16
    with jax.default_matmul_precision("highest" if full else "default"):
        o, w, s = chunk_step(
            state["w"],
            state.get("s"),
            *(tokens[name] for name in "xgq"),
            *gates.values(),
            read=read,
            valid=valid,
            inverse=unit_lower_inverse_masked,
        )
    return o, {"w": w} if s is None else {"w": w, "s": s}


def _forward_kernel(inputs, outputs, carry, *, step):
    index = pl.program_id(1)

    @pl.when(index == 0)
    def _():
        for name, ref in carry.items():
            ref[...] = inputs[name][...]

    state = {name: ref[...] for name, ref in carry.items()}
    for name, value in state.items():
        if f"{name}_start" in outputs:
            outputs[f"{name}_start"][...] = value
    tokens = {name: inputs[name][...] for name in _TOKENS}
    outputs["o"][...], state = step(state, tokens, index)
    for name, ref in carry.items():
        ref[...] = state[name]

    @pl.when(index == pl.num_programs(1) - 1)
    def _():
        for name, value in state.items():
            outputs[f"{name}_end"][...] = value


def _backward_kernel(inputs, outputs, carry, *, step):
    """Runs the last chunk first; the carry is the cotangent of the state."""
    last = pl.num_programs(1) - 1
    index = last - pl.program_id(1)

    @pl.when(index == last)
    def _():
        for name, ref in carry.items():
            ref[...] = inputs[f"{name}_end"][...]

    state = {name: inputs[f"{name}_start"][...] for name in carry}
    tokens = {name: inputs[name][...] for name in _TOKENS}
    _, pull = jax.vjp(lambda *args: step(*args, index), state, tokens)
    after = {name: ref[...] for name, ref in carry.items()}
    state, tokens = pull((inputs["o"][...], after))
    for name, value in tokens.items():
        outputs[name][...] = value
    for name, ref in carry.items():
        ref[...] = state[name]

    @pl.when(index == 0)
    def _():
        for name, value in state.items():
            outputs[name][...] = value


def _launch(kernel, step, inputs, like, plan, interpret):
    """Calls a kernel on arrays ``[*lead, ...]`` by name.

    ``like`` are shapes and dtypes of its outputs.
    """
    inputs = {name: _flatten(name, inputs[name]) for name in inputs}
    outputs = {
        name: jax.eval_shape(functools.partial(_flatten, name), value)
        for name, value in like.items()
    }
    backward = kernel is _backward_kernel
    rows = inputs["x"].shape[0]
    state = inputs["w_end" if backward else "w"]
    most = heads_at_once(plan, *state.shape[1:], backward=backward)
    heads = max(h for h in range(1, most + 1) if rows % h == 0)

    def spec(name, value):
        def at(index):
            return plan.chunks - 1 - index if backward else index

        *_, a, b = value.shape
        if name.endswith("_start"):
            return pl.BlockSpec(
                (None, heads, a, b), lambda i, c: (at(c), i, 0, 0)
            )
        if name == "gates":
            return pl.BlockSpec(
                (heads, None, a, b), lambda i, c: (i, at(c), 0, 0)
            )
        if name in ("x", "g", "q", "o"):
            return pl.BlockSpec(
                (heads, plan.chunk, b), lambda i, c: (i, at(c), 0)
            )
        return pl.BlockSpec((heads, a, b), lambda i, c: (i, 0, 0))

    out = pl.pallas_call(
        functools.partial(kernel, step=step),
        grid=(rows // heads, plan.chunks),
        in_specs=[{name: spec(name, inputs[name]) for name in inputs}],
        out_specs={name: spec(name, outputs[name]) for name in outputs},
        out_shape=outputs,
        scratch_shapes=[
            {
                name: pltpu.VMEM((heads, *state.shape[1:]), state.dtype)
                for name in plan.states
            }
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        ),
        cost_estimate=_cost(step, inputs, outputs, state, plan, backward),
        interpret=interpret,
        name="delta_memory_" + ("backward" if backward else "forward"),
    )(inputs)
    return {
        name: value.reshape(like[name].shape) for name, value in out.items()
    }


def _flatten(name, value):
    """Flattens the leading axes of an array into one."""
    if name.endswith("_start"):
        return value.reshape(value.shape[0], -1, *value.shape[-2:])
    return value.reshape(-1, *value.shape[-3 if name == "gates" else -2 :])


def heads_at_once(plan, d_in, d_out, *, backward) -> int:
    """Returns how many heads of a program fit ``VMEM_BYTES``, from 0 to 4."""
    square = plan.chunk * max(plan.chunk, d_in, d_out)
    states = (12 if backward else 8) * len(plan.states) * d_in * d_out
    # Twice the number of live temporaries in compiled kernels, 20 and 40.
    temporaries = (80 if backward else 40) * square
    return min(HEADS, VMEM_BYTES // (4 * (states + temporaries)))


def _cost(step, inputs, outputs, state, plan, backward):
    """Estimates the cost: operations of all chunks, and each byte once."""
    one = {
        name: jax.ShapeDtypeStruct((1, *state.shape[1:]), state.dtype)
        for name in plan.states
    }
    tokens = {
        name: jax.ShapeDtypeStruct(
            (1, plan.chunk, inputs[name].shape[-1]), inputs[name].dtype
        )
        for name in ("x", "g", "q")
    }
    gates = inputs["gates"]
    tokens["gates"] = jax.ShapeDtypeStruct((1, *gates.shape[2:]), gates.dtype)

    def work(state, tokens):
        out, pull = jax.vjp(lambda *args: step(*args, 0), state, tokens)
        return pull(out) if backward else out

    estimate = pl.estimate_cost(work, one, tokens)
    chunks = gates.shape[0] * plan.chunks
    moved = (*inputs.values(), *outputs.values())
    return pl.CostEstimate(
        flops=chunks * estimate.flops,
        transcendentals=chunks * estimate.transcendentals,
        bytes_accessed=sum(
            math.prod(v.shape) * v.dtype.itemsize for v in moved
        ),
    )
