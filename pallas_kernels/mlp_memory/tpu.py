"""Deep memories on a TPU: one kernel forward, one backward.

A program owns a few heads and walks over their chunks on the last grid axis,
which a TPU runs in order: all matrices of the memory stay in the chip's vector
memory. The body is the chunk step that the caller gives, and ``jax.vjp`` of it
in the backward kernel. For a gradient the states at the start of each chunk
are saved, from which the backward kernel starts over, last chunk first.

Weak: short chunks leave most of a matrix unit empty. Never timed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.delta_memory.inverse import unit_lower_inverse_masked
from pallas_kernels.device import VMEM_BYTES
from pallas_kernels.mlp_memory.step import primitives
from pallas_kernels.partition import explicit_axes, lead_spec, over_mesh

HEADS = 4
"""Heads of a program: while one waits for its ladder another is computed."""
_NAMES = """
acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt complex
conv_general_dilated cosh cumlogsumexp cummax cummin cumprod cumsum digamma
dynamic_slice dynamic_update_slice erfc expm1 fft gather igamma igammac lgamma
optimization_barrier pad polygamma reduce_prod reduce_window_max
reduce_window_min reduce_window_sum regularized_incomplete_beta rev scatter
scatter-add scatter-mul sharding_constraint sinh sort top_k zeta
"""
MISSING = frozenset(_NAMES.split())
"""Operations that kernels, or their derivatives, cannot be compiled with."""
_TOKENS = ("tokens", "gates", "o")


def why_not(state, tokens, gates, chunk_size, interpret=False) -> str | None:
    """Says why the kernels cannot take arrays, or shapes; ``None``: they can.

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
    """Says why the kernels cannot run a step; ``None``: they can.

    Args:
        program: the step's, from :func:`pallas_kernels.mlp_memory.step.trace`.
    """
    missing = primitives(program) & MISSING
    if missing:
        return f"kernels do not have {', '.join(sorted(missing))}"
    return None


def forward(step, arrays, *, chunk_size, save, interpret=False):
    """``((o, state), states at chunk starts)``, as the plain form does."""
    lead, length = _sizes(arrays)
    run = _Run(step, chunk_size, length, interpret)

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
        return run.launch(_forward_kernel, inputs, like, backward=False)

    def lead_of(inputs):
        return inputs["start"][0].shape[:-2]

    out = run.on_mesh(call, run.prepare(arrays), lead)
    o = out["o"][0][..., :length, :]
    return (o, out["end"]), out.get("starts")


def backward(step, arrays, starts, cotangents, *, chunk_size, interpret=False):
    """Cotangents of ``arrays``."""
    lead, length = _sizes(arrays)
    run = _Run(step, chunk_size, length, interpret)
    inputs, pull = jax.vjp(run.prepare, arrays)
    do, dstate = cotangents
    inputs = {name: inputs[name] for name in ("tokens", "gates")}
    inputs |= {"starts": starts, "end": dstate, "o": (run.pad(do, -2),)}

    def call(inputs):
        like = {name: inputs[name] for name in ("tokens", "gates")}
        like["start"] = inputs["end"]
        return run.launch(_backward_kernel, inputs, like, backward=True)

    return pull(run.on_mesh(call, inputs, lead))[0]


class _Run:
    """What one call of the kernels is about, all static."""

    def __init__(self, step, chunk, length, interpret):
        self.step = step
        self.chunk = chunk
        self.length = length
        self.chunks = -(-length // chunk)
        self.interpret = interpret

    def pad(self, value, axis):
        """Zeros behind the tokens, up to whole chunks."""
        pad = [(0, 0)] * value.ndim
        pad[axis] = (0, self.chunks * self.chunk - self.length)
        return jnp.pad(value, pad)

    def prepare(self, arrays):
        """Whole chunks; gates are stacked, ``[*lead, n, gate, C]``."""
        gates = [
            self.pad(gate, -1).reshape(*gate.shape[:-1], -1, self.chunk)
            for gate in arrays["gates"]
        ]
        return {
            "start": arrays["state"],
            "tokens": tuple(self.pad(v, -2) for v in arrays["tokens"]),
            "gates": (jnp.stack(gates, -2),),
        }

    def __call__(self, state, tokens, gates, index):
        """The step on a program's heads."""
        valid = None
        if self.chunks * self.chunk > self.length:
            at = jax.lax.broadcasted_iota(jnp.int32, (1, self.chunk), 1)
            valid = index * self.chunk + at < self.length
        # A float32 product at default precision keeps bfloat16's digits.
        full = jnp.finfo(tokens[0].dtype).bits > 16
        with jax.default_matmul_precision("highest" if full else "default"):
            return self.step(
                state,
                tokens,
                tuple(gates[:, row] for row in range(gates.shape[1])),
                valid,
                unit_lower_inverse_masked,
            )

    def one_chunk(self, inputs):
        """The step on the first chunk, for shapes and costs."""
        lead = len(inputs["start"][0].shape) - 2

        def flat(value, own):
            return value.reshape(-1, *value.shape[lead:])[:1, *own]

        state = tuple(flat(w, ()) for w in inputs["start"])
        one = (slice(self.chunk),)
        tokens = tuple(flat(v, one) for v in inputs["tokens"])
        return self(state, tokens, flat(inputs["gates"][0], (0,)), 0)

    def on_mesh(self, call, inputs, lead):
        """Each device calls on its rows and heads."""
        spec = lead_spec(lead)
        behind = jax.P(None, *spec)

        def place(names):
            return {n: behind if n == "starts" else spec for n in names}

        outputs = jax.eval_shape(call, inputs)
        return over_mesh(call, (place(inputs),), place(outputs))(inputs)

    def launch(self, kernel, inputs, like, *, backward):
        """Calls a kernel on arrays ``[*lead, ...]``; ``like`` its outputs."""

        def flatten(name, values):
            own = {"starts": -2, "gates": -3}.get(name, -2)
            front = 1 if name == "starts" else 0
            return tuple(
                v.reshape(*v.shape[:front], -1, *v.shape[own:]) for v in values
            )

        cost = self._cost(inputs, like, backward)
        flat = {name: flatten(name, values) for name, values in inputs.items()}
        outputs = {
            name: jax.eval_shape(functools.partial(flatten, name), values)
            for name, values in like.items()
        }
        state = flat["end" if backward else "start"]
        rows = state[0].shape[0]
        most = heads_at_once(
            state, flat["tokens"], self.chunk, backward=backward
        )
        heads = max(h for h in range(1, max(most, 1) + 1) if rows % h == 0)

        def specs(name, values):
            def at(index):
                return self.chunks - 1 - index if backward else index

            def one(value):
                *_, a, b = value.shape
                if name == "starts":
                    return pl.BlockSpec(
                        (None, heads, a, b), lambda i, c: (at(c), i, 0, 0)
                    )
                if name == "gates":
                    return pl.BlockSpec(
                        (heads, None, a, b), lambda i, c: (i, at(c), 0, 0)
                    )
                if name in _TOKENS:
                    return pl.BlockSpec(
                        (heads, self.chunk, b), lambda i, c: (i, at(c), 0)
                    )
                return pl.BlockSpec((heads, a, b), lambda i, c: (i, 0, 0))

            return tuple(map(one, values))

        out = pl.pallas_call(
            functools.partial(kernel, run=self),
            grid=(rows // heads, self.chunks),
            in_specs=[{n: specs(n, v) for n, v in flat.items()}],
            out_specs={n: specs(n, v) for n, v in outputs.items()},
            out_shape=outputs,
            scratch_shapes=[
                tuple(pltpu.VMEM((heads, *w.shape[1:]), w.dtype) for w in state)
            ],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"),
                vmem_limit_bytes=VMEM_BYTES,
            ),
            cost_estimate=cost,
            interpret=self.interpret,
            name="mlp_memory_" + ("backward" if backward else "forward"),
        )(flat)
        return jax.tree.map(lambda v, w: v.reshape(w.shape), out, like)

    def _cost(self, inputs, like, backward):
        """Operations of one head's chunk times their number, bytes once."""

        def work(inputs):
            if not backward:
                return self.one_chunk(inputs)
            out, pull = jax.vjp(self.one_chunk, inputs)
            return pull(out)

        start = inputs.get("start", inputs.get("end"))
        times = math.prod(start[0].shape[:-2]) * self.chunks
        one = jax.tree.map(
            lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype),
            {"start": start} | {n: inputs[n] for n in ("tokens", "gates")},
        )
        try:
            estimate, share = pl.estimate_cost(work, one), 1
        except ValueError:
            # JAX 0.10 cannot count negative powers, which second derivatives
            # of some steps have: two products for each one forward.
            estimate, share = pl.estimate_cost(self.one_chunk, one), 3
        times *= share
        moved = jax.tree.leaves((inputs, like))
        return pl.CostEstimate(
            flops=times * estimate.flops,
            transcendentals=times * estimate.transcendentals,
            bytes_accessed=sum(
                math.prod(v.shape) * v.dtype.itemsize for v in moved
            ),
        )


def _forward_kernel(inputs, outputs, carry, *, run):
    index = pl.program_id(1)

    @pl.when(index == 0)
    def _():
        _write(carry, _read(inputs["start"]))

    state = _read(carry)
    if "starts" in outputs:
        _write(outputs["starts"], state)
    tokens = _read(inputs["tokens"])
    o, state = run(state, tokens, inputs["gates"][0][...], index)
    _write(outputs["o"], (o,))
    _write(carry, state)

    @pl.when(index == pl.num_programs(1) - 1)
    def _():
        _write(outputs["end"], state)


def _backward_kernel(inputs, outputs, carry, *, run):
    """The carry is the cotangent of the state; the last chunk comes first."""
    last = pl.num_programs(1) - 1
    index = last - pl.program_id(1)

    @pl.when(index == last)
    def _():
        _write(carry, _read(inputs["end"]))

    state, tokens = _read(inputs["starts"]), _read(inputs["tokens"])
    gates = inputs["gates"][0][...]
    _, pull = jax.vjp(lambda *args: run(*args, index), state, tokens, gates)
    state, tokens, gates = pull((inputs["o"][0][...], _read(carry)))
    _write(outputs["tokens"], tokens)
    _write(outputs["gates"], (gates,))
    _write(carry, state)

    @pl.when(index == 0)
    def _():
        _write(outputs["start"], state)


def _read(refs):
    return tuple(ref[...] for ref in refs)


def _write(refs, values):
    for ref, value in zip(refs, values, strict=True):
        ref[...] = value


def _sizes(arrays):
    *lead, length, _ = arrays["tokens"][0].shape
    return tuple(lead), length


def heads_at_once(state, tokens, chunk, *, backward) -> int:
    """How many heads a program has room for in ``VMEM_BYTES``, 0 to 4."""
    widest = max(chunk, *(max(w.shape[-2:]) for w in state))
    held = sum(math.prod(w.shape[-2:]) for w in state)
    # Blocks twice, scratch, and what is live of them at once; temporaries are
    # a chunk's activations and its triangles.
    held *= 12 if backward else 8
    live = (60 if backward else 30) * chunk * widest
    live += 4 * chunk * sum(v.shape[-1] for v in tokens)
    return min(HEADS, VMEM_BYTES // (4 * (held + live)))
