"""Launches of the deep memories' TPU kernels, and the kernels' bodies."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.delta_memory.inverse import unit_lower_inverse_masked
from pallas_kernels.device import VMEM_BYTES

HEADS = 4
"""Most heads of a program, whose sequential inverses overlap."""
_TOKENS = ("tokens", "gates", "o")


class Run:
    """Launches the kernels of one call, whose static properties it holds."""

    def __init__(self, step, chunk, length, interpret):
        self.step = step
        self.chunk = chunk
        self.length = length
        self.chunks = -(-length // chunk)
        self.interpret = interpret

    def pad(self, value, axis):
        """Pads tokens with zeros to whole chunks."""
        pad = [(0, 0)] * value.ndim
        pad[axis] = (0, self.chunks * self.chunk - self.length)
        return jnp.pad(value, pad)

    def prepare(self, arrays):
        """Pads all arrays and stacks the gates, ``[*lead, n, gate, C]``."""
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
        """Runs the step on a chunk of a program's heads."""
        valid = None
        if self.chunks * self.chunk > self.length:
            at = jax.lax.broadcasted_iota(jnp.int32, (1, self.chunk), 1)
            valid = index * self.chunk + at < self.length
        # At default precision float32 products round factors to bfloat16.
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
        """Runs the step on the first chunk, for shapes and costs."""
        lead = len(inputs["start"][0].shape) - 2

        def flat(value, own):
            return value.reshape(-1, *value.shape[lead:])[:1, *own]

        state = tuple(flat(w, ()) for w in inputs["start"])
        one = (slice(self.chunk),)
        tokens = tuple(flat(v, one) for v in inputs["tokens"])
        return self(state, tokens, flat(inputs["gates"][0], (0,)), 0)

    def launch(self, kernel, inputs, like, *, backward):
        """Calls a kernel on arrays ``[*lead, ...]`` by name.

        ``like`` are shapes and dtypes of its outputs.
        """

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
        """Estimates the cost: operations of all chunks, and each byte once."""

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
            # JAX 0.10 cannot count negative powers, which the derivatives of
            # some steps have; they take two products for each forward one.
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


def forward_kernel(inputs, outputs, carry, *, run):
    """Runs the chunks in order; the carry is the state."""
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


def backward_kernel(inputs, outputs, carry, *, run):
    """Runs the last chunk first; the carry is the cotangent of the state."""
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


def heads_at_once(state, tokens, chunk, *, backward) -> int:
    """Returns how many heads of a program fit ``VMEM_BYTES``, from 0 to 4."""
    widest = max(chunk, *(max(w.shape[-2:]) for w in state))
    # Double buffers, scratch and live copies of the states.
    states = sum(math.prod(w.shape[-2:]) for w in state)
    states *= 12 if backward else 8
    # Temporaries: activations and triangular matrices of a chunk.
    live = (60 if backward else 30) * chunk * widest
    live += 4 * chunk * sum(v.shape[-1] for v in tokens)
    return min(HEADS, VMEM_BYTES // (4 * (states + live)))
