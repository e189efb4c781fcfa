"""Launches of the delta memory's Triton kernels, forward and backward."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.delta_memory import layout
from pallas_kernels.delta_memory import triton_backward as backward
from pallas_kernels.delta_memory import triton_kernels as kernels
from pallas_kernels.delta_memory.triton_arrays import (
    SPLIT,
    abstract,
    axes_of,
    narrow,
    widen,
)
from pallas_kernels.delta_memory.triton_gates import Case, gate_rows
from pallas_kernels.delta_memory.triton_parts import parts_of, split
from pallas_kernels.partition import call_over_mesh

CHUNK = 64
"""Tokens that are processed in parallel; fewer in shorter blocks."""
COLUMNS = 64
"""Columns of the states that one program of a walk holds in registers."""
WARPS = {"walk": 4, "again": 4, "walk_back": 4}
"""Warps of the walks; other kernels have 8. Compiling shows that no shape in
:mod:`pallas_kernels.delta_memory.shapes` spills registers."""


class Run:
    """Launches the kernels of one call, whose static properties it holds.

    Sizes of axes and names of arrays are those of
    :mod:`pallas_kernels.delta_memory.triton_arrays`.
    """

    def __init__(self, arrays, block, read, interpret):
        self.plan = layout.plan_for(arrays, block)
        terms = (n in self.plan.gates for n in ("beta", "log_mu", "resets"))
        self.case = Case(read, *terms)
        self.low, self.acc = arrays["x"].dtype, arrays["w"].dtype
        self.chunk = chunk_for(block, read)
        self.per_block = block // self.chunk
        self.interpret = interpret
        d_out = arrays["g"].shape[-1] * (self.plan.memories or 1)
        self.split = parts_of(self.low) > 1
        most = COLUMNS // len(self.case.states)
        self.tile = min(16 if self.split else most, _power(d_out))
        self.sizes = {
            "i": _power(arrays["x"].shape[-1]),
            "j": -(-d_out // self.tile) * self.tile,
            "t": self.plan.chunks * block,
            "c": self.plan.chunks * self.per_block,
            "b": self.plan.chunks,
            "e": self.chunk,
            "s": parts_of(self.low),
            "v": len(self.case.rows),
            "p": len(self.case.pair_rows),
            "m": len(self.case.state_rows),
            "l": len(self.case.mixing_rows),
        }

    def forward(self, arrays, save):
        """Returns ``(o, w, s)`` and, if ``save``, the states' block starts."""
        states = self.case.states
        d_in = arrays["x"].shape[-1]

        def call(inputs):
            given = self.divide(self.adapt(inputs))
            wanted = ["out", *(f"{name}_end" for name in states)]
            if save:
                wanted += [f"{name}_start" for name in states]
            out = self.walk(given | self.pairs(given), wanted)
            out["o"] = out.pop("out")
            widths = {"i": d_in, "j": inputs["g"].shape[-1]}
            lead = inputs["g"].shape[:-2]
            return {n: narrow(n, v, lead, widths) for n, v in out.items()}

        inputs = layout.prepare(arrays, self.plan)
        out = call_over_mesh(call, inputs, self.plan.lead)
        starts = layout.restore_starts(out, self.plan)
        return layout.restore(out, self.plan), starts

    def backward(self, arrays, starts, cotangents):
        """Returns the gradients of ``arrays``."""
        plan = self.plan
        inputs, pull = jax.vjp(lambda a: layout.prepare(a, plan), arrays)
        others = layout.prepare_cotangents(starts, cotangents, plan)

        def call(both):
            given, back = jax.vjp(self.adapt, {n: both[n] for n in inputs})
            given |= {n: widen(n, both[n], self.sizes) for n in others}
            return back(self.gradients(self.divide(given)))[0]

        grads = call_over_mesh(call, inputs | others, plan.lead)
        return pull(grads)[0]

    def adapt(self, inputs):
        """Returns the kernels' arrays, given those of ``layout.prepare``.

        Gates become ``rows``.
        """
        others = {n: v for n, v in inputs.items() if n != "gates"}
        others = {n: widen(n, v, self.sizes) for n, v in others.items()}
        kinds = len(self.plan.gates)
        shape = (self.plan.chunks, kinds, self.per_block, self.chunk)
        gates = inputs["gates"].reshape(-1, *shape).swapaxes(2, 3)
        gates = gates.reshape(-1, self.sizes["c"], kinds, self.chunk)
        gates = {n: gates[:, :, k] for k, n in enumerate(self.plan.gates)}
        keep = jnp.arange(self.sizes["t"]) < self.plan.length
        rows = gate_rows(gates, self.case, keep.reshape(-1, self.chunk))
        if self.case.resets and self.case.read == "chunk":
            other = jnp.cumsum(gates["resets"], -1) > 0
            other = other.reshape(-1, self.sizes["t"], 1)
            others["q"] = jnp.where(other, 0, others["q"])
        return others | {"rows": jnp.stack(list(rows.values()), -2)}

    def divide(self, given):
        """Returns ``given`` with the factors of products split into parts."""
        # In the order of names: that of a set differs between processes, and
        # with it the key of the compilation cache.
        return given | {
            name: jnp.stack(split(value, self.low), 1)
            for name, value in given.items()
            if name in SPLIT
        }

    def pairs(self, given, wanted=()):
        """Returns the matrices of :func:`pairs` of all chunks, in parts."""
        if not self.case.pairs:
            return {}
        names = [*self.case.pairs, *wanted]
        if self.case.delta:
            names[names.index("lower")] = "solve"
        inverse = ["eee"] * (2 * (self.chunk // 32).bit_length())
        return self.launch(
            kernels.pairs_kernel,
            "pairs",
            given,
            ("x", "q", "rows"),
            names,
            products=["eei", "eei", *inverse],
        )

    def walk(self, given, wanted):
        """Runs the forward walk.

        It starts from the states of each block, in parallel, if ``given``
        contains ``w_start``, else from the initial ones.
        """
        states = self.case.states
        blocks = "w_start" in given
        return self.launch(
            kernels.walk_kernel,
            "again" if blocks else "walk",
            given,
            (
                *(f"{s}_start" if blocks else s for s in states),
                *("x", "g", "rows", "solve", "gather"),
                *(("q", "shown", "hidden") if "out" in wanted else ()),
            ),
            wanted,
            walk=True,
            blocks=blocks,
            products=["eij"] * (3 * len(states)) + ["eej"] * 4,
            chunk=self.chunk,
            every=self.per_block,
        )

    def gradients(self, given):
        """Returns the cotangents of :meth:`adapt`'s arrays."""
        case = self.case
        states, delta = case.states, case.delta
        read = case.read != "chunk"
        mixed = ["mixed"] if case.momentum else []
        given = given | self.pairs(given, mixed)
        lows = [f"{name}_low" for name in states]
        starts = {n: v for n, v in given.items() if n not in ("w", "s")}
        again = self.walk(starts, lows + ["n"] * delta)
        back = [f"d{name}" for name in lows]
        out = self.launch(
            backward.walk_back_kernel,
            "walk_back",
            given,
            (
                *("x", "q", "o", "rows", "solve", case.hidden),
                *(f"{name}_end" for name in states),
            ),
            [*states, *back] + ["dy"] * delta,
            walk=True,
            products=["eij"] * (1 + 2 * len(states)) + ["eej"] * 2,
            chunk=self.chunk,
        )
        given |= again | out
        parts = []
        if case.pairs:
            given |= self.launch(
                backward.pairs_backward_kernel,
                "pairs_backward",
                given,
                ("x", "q", "g", "o", "n", "dy", "rows", "mixed"),
                ["dx", "pair_rows", *(f"d{n}" for n in mixed)] + ["dq"] * read,
                products=["eej"] * 4 + ["eei"] * 5,
                tile=self.tile,
            )
            parts.append(self.by_name(given["pair_rows"], case.pair_rows))
        if "dmixed" in given:
            found = self.launch(
                backward.mixing_backward_kernel,
                "mixing_backward",
                given,
                ("rows", "dmixed"),
                ["mixing_rows"],
                products=["eee"] * 3,
            )["mixing_rows"]
            parts.append(self.by_name(found, case.mixing_rows))
        found = self.launch(
            backward.states_backward_kernel,
            "states_backward",
            given,
            (
                *("x", "q", "g", "o", "n", "dy", "rows", "dx", "dq"),
                *("gather", "shown", "hidden", *lows, *back),
            ),
            ["grad_x", "grad_q", "grad_g", "state_rows"],
            products=["eij"] * (4 * len(states)) + ["eej"] * 2,
            tile=min(self.tile, 32),
        )
        parts.append(self.by_name(found["state_rows"], case.state_rows))
        zero = jnp.zeros_like(given["rows"][:, :, 0])
        rows = [
            sum((part[n] for part in parts if n in part), start=zero)
            for n in case.rows
        ]
        grads = {name: found[f"grad_{name}"] for name in "xqg"}
        grads |= {name: out[name] for name in states}
        return grads | {"rows": jnp.stack(rows, -2)}

    def by_name(self, rows, names):
        """Returns gate rows by name."""
        return {name: rows[:, :, k] for k, name in enumerate(names)}

    def launch(
        self,
        kernel,
        name,
        given,
        reads,
        wanted,
        *,
        products,
        walk=False,
        blocks=False,
        **static,
    ):
        """Calls a kernel.

        Args:
            kernel: body of the kernel.
            name: name of the kernel.
            given: arrays by name.
            reads: names of its inputs; those that are not given are left out.
            wanted: names of its outputs.
            products: axes of its matrix products per chunk, for their cost.
            walk: whether there is a program per column block of the states,
                instead of one per chunk.
            blocks: whether a walk has a program per block of tokens, too.
            **static: further arguments of ``kernel``.
        """
        inputs = {n: given[n] for n in reads if n in given}
        count = given["rows"].shape[0]
        sizes = self.sizes | {"r": count}
        outputs = {n: abstract(n, sizes, self.low, self.acc) for n in wanted}
        part: dict[str, tuple[int | None, int]] = {"r": (None, 0)}
        grid: tuple[int, ...] = (count,)
        if walk:
            grid = (count, sizes["j"] // self.tile)
            part["j"] = (self.tile, 1)
            if blocks:
                grid = (*grid, sizes["b"])
                part["b"] = (None, 2)
                part["c"] = (self.per_block, 2)
                part["t"] = (self.per_block * self.chunk, 2)
        else:
            grid = (count, sizes["c"])
            part["c"], part["t"] = (None, 1), (self.chunk, 1)

        def spec(name):
            where = [part.get(a, (sizes[a], None)) for a in axes_of(name)]
            return pl.BlockSpec(
                tuple(size for size, _ in where),
                lambda *ids: tuple(
                    0 if k is None else ids[k] for _, k in where
                ),
            )

        moved = (*inputs.values(), *outputs.values())
        flops = sum(math.prod(sizes[a] for a in axes) for axes in products)
        chunks = count * sizes["c"]
        return pl.pallas_call(
            functools.partial(kernel, case=self.case, dtype=self.low, **static),
            grid=grid,
            in_specs=[{n: spec(n) for n in inputs}],
            out_specs={n: spec(n) for n in outputs},
            out_shape=outputs,
            compiler_params=pltriton.CompilerParams(
                num_warps=WARPS.get(name, 8),
                # Parts leave no shared memory for loading ahead.
                num_stages=2 if walk and not self.split else 1,
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * chunks * flops,
                transcendentals=0 if walk else chunks * self.chunk**2,
                bytes_accessed=sum(v.size * v.dtype.itemsize for v in moved),
            ),
            interpret=self.interpret,
            name=f"delta_memory_triton_{name}",
        )(inputs)


def chunk_for(block, read) -> int:
    """Returns the number of tokens that are processed in parallel."""
    return block if read == "chunk" else min(block, CHUNK)


def _power(size):
    """Returns the least power of two >= ``size``, at least 16."""
    return max(16, 1 << (size - 1).bit_length())
