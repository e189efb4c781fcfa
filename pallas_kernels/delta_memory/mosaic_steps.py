"""Steps of one chunk in :mod:`pallas_kernels.delta_memory.mosaic_walks`.

All values are transposed: their rows are a program's 64 columns of a state, and
a state is a list of pieces ``[64, 64]``. Formulas and names are those of
:mod:`pallas_kernels.delta_memory.triton`.

A thread has 255 registers, of which two states ``[128, 64]`` take 128. Gate
rows are therefore loaded after the products that they scale, and two states
have a step of their own, which runs fewer products at once and stores values
that it needs twice in shared memory.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.delta_memory.triton_gates import Case

CHUNK = 64
"""Tokens that are processed in parallel."""
COLUMNS = 64
"""Columns of a program, equal to the rows of a warpgroup's products."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Arrays of one chunk in shared memory."""

    inputs: dict[str, Any]
    """Tokens, gate rows and matrices of pairs, by name."""
    outputs: dict[str, Any]
    """References to write results to, by name; see ``mosaic_walks``."""
    spare: dict[str, Any]
    """References to write left operands to: each state, and erasures."""
    case: Case
    """Terms of the recurrence."""
    interpret: bool
    """Whether the kernel runs without its hardware."""

    @property
    def low(self):
        """The dtype of all operands."""
        return self.inputs["x"].dtype

    def row(self, name):
        """Returns a gate row, one number per token, for all columns."""
        value = self.inputs["rows"][self.case.rows.index(name), :]
        return jax.lax.broadcast_in_dim(value, (COLUMNS, CHUNK), (1,))

    def end(self, number):
        """Returns a number of the row ``ends``."""
        return self.inputs["rows"][self.case.rows.index("ends"), number]

    def multiply(self, *sums):
        """Computes sums of products in float32, all at once.

        Args:
            *sums: pairs ``(start, products)``. ``start`` is a value, or
                ``None`` for zeros; ``products`` are pairs of a left factor, a
                value or a reference, and a right one, a reference.
        """
        starts = []
        for start, products in sums:
            if start is None:
                a, b = products[0]
                start = jnp.zeros((a.shape[0], b.shape[1]), jnp.float32)
            starts.append(start)
        if self.interpret:
            # The interpreter has no products with values on the left.
            return [
                sum(
                    (
                        jnp.dot(a[...], b[...], preferred_element_type=v.dtype)
                        for a, b in products
                    ),
                    start=v,
                )
                for v, (_, products) in zip(starts, sums, strict=True)
            ]

        def accumulate(totals):
            for total, (_, products) in zip(totals, sums, strict=True):
                for a, b in products:
                    plgpu.wgmma(total, a, b)

        totals = [
            plgpu.ACC.init(plgpu.layout_cast(v, plgpu.Layout.WGMMA))
            for v in starts
        ]
        # Without the barrier the compiler would read sums early, and then
        # serialise the products.
        return jax.lax.optimization_barrier(pl.run_state(accumulate)(totals))


def step(state, chunk):
    """Returns the state ``{"w": pieces}`` after a chunk and writes ``out``."""
    case, low = chunk.case, chunk.low
    x, q = pieces(chunk.inputs["x"]), pieces(chunk.inputs["q"])
    g = _turned(chunk.inputs["g"])[...]
    w = [piece.astype(low) for piece in state["w"]]
    net = g.astype(jnp.float32)
    if case.delta:
        gather = _turned(chunk.inputs["gather"])
        from_w, gathered, o = chunk.multiply(
            (None, _by(w, x)), (None, [(g, gather)]), (None, _by(w, q))
        )
        recalled = (from_w * chunk.row("in_w") + gathered).astype(low)
        solve = _turned(chunk.inputs["solve"])
        (recalled,) = chunk.multiply((None, [(recalled, solve)]))
        net = net - recalled * chunk.row("beta")
    else:
        (o,) = chunk.multiply((None, _by(w, q)))
    written = (net * chunk.row("write_w")).astype(low)
    sums = [
        (piece * chunk.end(0), [(written, part)])
        for piece, part in zip(state["w"], x, strict=True)
    ]
    if case.read != "chunk":
        shown = net.astype(low), _turned(chunk.inputs["shown"])
        sums.append((o * chunk.row("out_w"), [shown]))
    after = chunk.multiply(*sums)
    if case.read != "chunk":
        *after, o = after
    _turned(chunk.outputs["out"])[...] = o.astype(low)
    return {"w": after}


def step_two_states(state, chunk):
    """Returns the states ``w`` and ``s`` after a chunk and writes ``out``."""
    case, low = chunk.case, chunk.low
    x, q = pieces(chunk.inputs["x"]), pieces(chunk.inputs["q"])
    g = _turned(chunk.inputs["g"])
    operands = {name: pieces(chunk.spare[name]) for name in state}
    for name, values in state.items():
        for to, value in zip(operands[name], values, strict=True):
            to[...] = value.astype(low)
    plgpu.commit_smem()

    def from_states(by, row_name):
        from_w, from_s = chunk.multiply(
            (None, _by(operands["w"], by)), (None, _by(operands["s"], by))
        )
        out = from_w * chunk.row(f"{row_name}_w")
        return out + from_s * chunk.row(f"{row_name}_s")

    erased = chunk.spare["erased"]
    if case.delta:
        gathered = g[...], _turned(chunk.inputs["gather"])
        (recalled,) = chunk.multiply((from_states(x, "in"), [gathered]))
        solve = _turned(chunk.inputs["solve"])
        (recalled,) = chunk.multiply((None, [(recalled.astype(low), solve)]))
        erased[...] = -(recalled * chunk.row("beta")).astype(low)
        plgpu.commit_smem()
    if case.read == "chunk":
        (o,) = chunk.multiply((None, _by(operands["w"], q)))
    else:
        products = [(g, _turned(chunk.inputs["shown"]))]
        if case.delta:
            products.append((erased, _turned(chunk.inputs["hidden"])))
        (o,) = chunk.multiply((from_states(q, "out"), products))
    _turned(chunk.outputs["out"])[...] = o.astype(low)
    net = g[...].astype(jnp.float32)
    kept = (net * chunk.row("write_s")).astype(low)
    written = net * chunk.row("write_w")
    if case.delta:
        written = written + erased[...].astype(jnp.float32) * chunk.row("erase")
    written = written.astype(low)
    after: dict[str, list] = {"w": [], "s": []}
    for w, s, part in zip(state["w"], state["s"], x, strict=True):
        found = chunk.multiply(
            (w * chunk.end(0) + s * chunk.end(1), [(written, part)]),
            (s * chunk.end(2), [(kept, part)]),
        )
        for name, value in zip(after, found, strict=True):
            after[name].append(value)
    return after


def step_back(state, chunk):
    """Returns the states' cotangents before a chunk, given those after it.

    Writes the given ones to ``dw_low`` and ``ds_low``, and writes ``dy``.
    """
    case, low = chunk.case, chunk.low
    x, q = pieces(chunk.inputs["x"]), pieces(chunk.inputs["q"])
    do = _turned(chunk.inputs["o"])
    for name, values in state.items():
        places = pieces(chunk.outputs[f"d{name}_low"], 0)
        for to, value in zip(places, values, strict=True):
            _turned(to)[...] = value.astype(low)
    if case.delta:
        w = [piece.astype(low) for piece in state["w"]]
        sums = [(None, _by(w, x))]
        if case.read != "chunk":
            sums.append((None, [(do, chunk.inputs[case.hidden])]))
        dn, *more = chunk.multiply(*sums)
        dn = dn * chunk.row("erase" if case.momentum else "write_w")
        dn = -(sum(more, start=dn) * chunk.row("beta")).astype(low)
        (dy,) = chunk.multiply((None, [(dn, chunk.inputs["solve"])]))
        _turned(chunk.outputs["dy"])[...] = dy.astype(low)
    before = {}
    for name in reversed(case.states):
        # Cotangents of s depend on those of w, which are replaced last.
        if name == "w":
            starts = [w * chunk.end(0) for w in state["w"]]
        else:
            both = zip(state["w"], state["s"], strict=True)
            starts = [w * chunk.end(1) + s * chunk.end(2) for w, s in both]
        products = []
        if case.read != "chunk":
            read = do[...].astype(jnp.float32) * chunk.row(f"out_{name}")
            products.append((read.astype(low), q))
        elif name == "w":
            products.append((do, q))
        if case.delta:
            wrote = (dy * chunk.row(f"in_{name}")).astype(low)
            products.append((wrote, x))
        before[name] = chunk.multiply(
            *(
                (start, [(value, by[number]) for value, by in products])
                for number, start in enumerate(starts)
            )
        )
    return before


def pieces(ref, axis=1):
    """Splits a matrix into pieces of ``COLUMNS`` along an axis."""
    return [
        ref.at[(slice(None),) * axis + (pl.ds(at, COLUMNS),)]
        for at in range(0, ref.shape[axis], COLUMNS)
    ]


def _by(state, tokens):
    """Returns the products of a state's pieces with pieces of keys."""
    return [(a, _turned(b)) for a, b in zip(state, tokens, strict=True)]


def _turned(ref):
    return ref.transpose((1, 0))
