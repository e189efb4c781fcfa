"""What the Triton kernels of the delta memory are called on.

Arrays have names, and names have axes: what shape an array has, which part of
it a program sees and what is padded all follow from those.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.delta_memory import layout
from pallas_kernels.delta_memory import triton_backward as backward
from pallas_kernels.delta_memory import triton_kernels as kernels
from pallas_kernels.delta_memory.triton_gates import Case, gate_rows
from pallas_kernels.delta_memory.triton_parts import parts_of, split
from pallas_kernels.partition import lead_spec, over_mesh

CHUNK = 64
"""Tokens that are processed in parallel; fewer where a block has fewer."""
COLUMNS = 64
"""Columns of the states that one program of a walk has in registers."""
AXES = {
    "x": "rti",
    "q": "rti",
    "dx": "rti",
    "dq": "rti",
    "g": "rtj",
    "o": "rtj",
    "n": "rtj",
    "dy": "rtj",
    "solve": "rcee",
    "gather": "rcee",
    "shown": "rcee",
    "hidden": "rcee",
    "out": "rtj",
    "grad_x": "rti",
    "grad_q": "rti",
    "grad_g": "rtj",
    "mixed": "rcee",
    "dmixed": "rcee",
    "rows": "rcve",
    "pair_rows": "rcpe",
    "state_rows": "rcme",
    "mixing_rows": "rcle",
}
for _state in "ws":
    AXES[_state] = AXES[f"{_state}_end"] = "rij"
    AXES[f"{_state}_start"] = "brij"
    AXES[f"{_state}_low"] = AXES[f"d{_state}_low"] = "rcij"
"""Axes of the kernels' arrays: rows (of the batch, and heads), tokens, chunks,
blocks of tokens, ``d_in``, ``d_out``, tokens of a chunk, names of its rows
(all, those of pairs, of states, of mixing)."""
SPLIT = {"x", "q", "g", "o", "n", "dy", "solve", "gather", "shown", "hidden"}
SPLIT |= {name for name in AXES if name.endswith("_low")}
"""What products read, in parts (:func:`split`) on an axis after the rows'."""
WARPS = {"walk": 4, "again": 4, "walk_back": 4}
"""Of the walks; the other kernels have 8. By compiling: no shape in
:mod:`pallas_kernels.delta_memory.shapes` spills registers."""


class Run:
    """What one call of the kernels is about, all static, and their launches."""

    def __init__(self, arrays, block, read, interpret):
        self.plan = layout.plan_for(arrays, block)
        self.case = Case(
            read, "beta" in self.plan.gates, "log_mu" in self.plan.gates
        )
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
        """``(o, w, s)`` and, if ``save``, ``(w, s)`` at block starts."""
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
            return {n: self.narrow(n, v, lead, widths) for n, v in out.items()}

        out = self.on_mesh(call, layout.prepare(arrays, self.plan))
        starts = layout.restore_starts(out, self.plan)
        return layout.restore(out, self.plan), starts

    def backward(self, arrays, starts, cotangents):
        """Gradients for ``arrays``."""
        plan = self.plan
        inputs, pull = jax.vjp(lambda a: layout.prepare(a, plan), arrays)
        others = layout.prepare_cotangents(starts, cotangents, plan)

        def call(both):
            given, back = jax.vjp(self.adapt, {n: both[n] for n in inputs})
            given |= {name: self.widen(name, both[name]) for name in others}
            return back(self.gradients(self.divide(given)))[0]

        return pull(self.on_mesh(call, inputs | others))[0]

    def on_mesh(self, call, inputs):
        """Each device calls on its rows and heads."""
        spec = lead_spec(self.plan.lead)
        behind = jax.P(None, *spec)

        def place(names):
            return {n: behind if n.endswith("_start") else spec for n in names}

        outputs = jax.eval_shape(call, inputs)
        return over_mesh(call, (place(inputs),), place(outputs))(inputs)

    def widen(self, name, value):
        """One axis of rows, and zeros up to the widths of the kernels."""
        axes = AXES[name]
        at = axes.index("r")
        rest = value.shape[value.ndim - len(axes) + at + 1 :]
        value = value.reshape(*value.shape[:at], -1, *rest)
        pad = [
            (0, self.sizes[a] - n if a in "ij" else 0)
            for a, n in zip(axes, value.shape, strict=True)
        ]
        return jnp.pad(value, pad)

    def narrow(self, name, value, lead, widths):
        """The way back from :meth:`widen`, to the width of each axis."""
        axes = AXES[name]
        at = axes.index("r")
        value = value[tuple(slice(widths.get(a)) for a in axes)]
        return value.reshape(*value.shape[:at], *lead, *value.shape[at + 1 :])

    def adapt(self, inputs):
        """Prepared arrays as the kernels take them, gates as ``rows``."""
        out = {n: self.widen(n, v) for n, v in inputs.items() if n != "gates"}
        gates = inputs["gates"]
        kinds = len(self.plan.gates)
        shape = (self.plan.chunks, kinds, self.per_block, self.chunk)
        gates = gates.reshape(-1, *shape).swapaxes(2, 3)
        gates = gates.reshape(-1, self.sizes["c"], kinds, self.chunk)
        gates = {n: gates[:, :, k] for k, n in enumerate(self.plan.gates)}
        keep = jnp.arange(self.sizes["t"]) < self.plan.length
        rows = gate_rows(gates, self.case, keep.reshape(-1, self.chunk))
        return out | {"rows": jnp.stack(list(rows.values()), -2)}

    def divide(self, given):
        """``given`` with the parts of what products read."""
        return given | {
            name: jnp.stack(split(given[name], self.low), 1)
            for name in given.keys() & SPLIT
        }

    def pairs(self, given, wanted=()):
        """What :func:`pairs` finds, of all chunks, ready for products."""
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
        """The forward walk: from the first states, or from all that are saved.

        ``given`` has the ones or the others, ``w_start`` or ``w``.
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
        """Cotangents of :meth:`adapt`'s arrays."""
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
        """What a kernel found of each chunk's rows."""
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
        """Calls a kernel on those of ``given`` that it reads.

        A walk has a program per column block, and per block of tokens where
        ``blocks``; any other kernel has one per chunk. ``products`` are its
        matrix products of one chunk, by their axes.
        """
        inputs = {n: given[n] for n in reads if n in given}
        count = given["rows"].shape[0]
        sizes = self.sizes | {"r": count}
        outputs = {n: self.like(n, sizes) for n in wanted}
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
            where = [part.get(a, (sizes[a], None)) for a in _axes(name)]
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
                # How far loads run ahead: parts take all shared memory.
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

    def like(self, name, sizes):
        """Shape and dtype of an output."""
        shape = tuple(sizes[axis] for axis in _axes(name))
        dtype = self.acc
        if name in SPLIT:
            dtype = jax.eval_shape(
                lambda: split(jnp.zeros((), self.acc), self.low)[0]
            ).dtype
        elif name == "out" or name.startswith("grad_"):
            dtype = self.low
        return jax.ShapeDtypeStruct(shape, dtype)


def _axes(name):
    """Those of ``AXES``, with that of the parts where there are any."""
    axes = AXES[name]
    return axes[0] + "s" + axes[1:] if name in SPLIT else axes


def chunk_for(block, read) -> int:
    """Tokens that are processed in parallel."""
    return block if read == "chunk" else min(block, CHUNK)


def _power(size):
    """The least power of two from 16 that is not smaller."""
    return max(16, 1 << (size - 1).bit_length())
