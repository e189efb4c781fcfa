"""Bodies of the forward Triton kernels, and functions of all kernels.

A kernel works on one row (a head of a batch row). It takes dicts of references
to the arrays of :mod:`pallas_kernels.delta_memory.triton_arrays`, by name.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.delta_memory.triton_gates import mixing, pairs
from pallas_kernels.delta_memory.triton_parts import (
    dot,
    get,
    product,
    put,
    put_parts,
    split,
    whole,
)

_BASE = 16
"""Width of the blocks that are inverted column by column."""
_DEPTH = 32
"""Most columns of ``x`` that are multiplied at once."""
ALL = (slice(None), slice(None))
"""Index of a whole matrix."""


def unit_lower_inverse_by_columns(lower, ends_as):
    """Returns ``(I + L)^-1`` of one matrix, in shapes that Triton supports.

    All diagonal blocks of width 16 are inverted together, column by column, in
    15 steps without matrix products, and then merged as in
    :mod:`pallas_kernels.delta_memory.inverse`, with masks.

    Args:
        lower: ``L``, ``[C, C]``, strictly lower-triangular, with ``C`` 16
            times a power of two.
        ends_as: as in :func:`dot`.
    """
    size, dtype = lower.shape[0], lower.dtype
    count = size // _BASE
    four = (count, _BASE, count, _BASE)
    same = iota(four, 0) == iota(four, 2)
    blocks = jnp.where(same, lower.reshape(four), 0).sum(2)
    three = (count, _BASE, _BASE)
    inner, column = iota(three, 1), iota(three, 2)

    def clear(index, inverse):
        factors = jnp.where(column == index, blocks, 0).sum(2)
        pivots = jnp.where(inner == index, inverse, 0).sum(1)
        return inverse - factors[:, :, None] * pivots[:, None, :]

    inverse = jnp.where(inner == column, 1, 0).astype(dtype)
    inverse = jax.lax.fori_loop(0, _BASE - 1, clear, inverse)
    inverse = jnp.where(same, inverse[:, :, None, :], 0).reshape(size, size)
    down, across = iota(lower.shape, 0), iota(lower.shape, 1)
    block = _BASE
    while block < size:
        # Pairs of tokens in the same pair of blocks, not in the same block.
        mask = (down ^ across) & -block == block
        corner = jnp.where(mask, lower, 0)
        corner = dot(inverse, corner, ends_as=ends_as)
        inverse = inverse - dot(corner, inverse, ends_as=ends_as)
        block *= 2
    return inverse


def pairs_kernel(inputs, outputs, *, case, dtype):
    """Computes the matrices of :func:`pairs`, and ``solve``, the inverse."""
    rows = named_rows(inputs, case)
    mixed = mixing(rows, dtype) if case.momentum else None
    if "mixed" in outputs:
        outputs["mixed"][...] = mixed
    gram, overlap = products(inputs, case)
    found = pairs(gram, overlap, mixed, rows, case)
    if case.delta:
        lower = found.pop("lower")
        found["solve"] = unit_lower_inverse_by_columns(lower, dtype)
    for name, value in found.items():
        put(outputs[name], ALL, value, dtype)


def walk_kernel(inputs, outputs, *, case, chunk, dtype, every):
    """Walks over chunks with some columns of the state in registers.

    Args:
        inputs: ``w``, ``s``, tokens, rows and matrices of pairs.
        outputs: any of ``out``, ``n`` (the memory's recall at each key),
            ``w_end``, ``w_start`` (states every ``every`` chunks), ``w_low``
            (states of each chunk, in parts), and the same of ``s``.
        case: terms of the recurrence.
        chunk: tokens per chunk.
        dtype: dtype of products.
        every: chunks between saved states.
    """

    def step(index, state):
        at = pl.ds(index * chunk, chunk)

        def row(name):
            return inputs["rows"][index, case.rows.index(name), :][:, None]

        def end(number):
            return inputs["rows"][index, case.rows.index("ends"), number]

        x, g = (get(inputs[name], at, slice(None)) for name in "xg")
        low = {name: split(value, dtype) for name, value in state.items()}
        for name in low:
            if f"{name}_low" in outputs:
                put_parts(outputs[f"{name}_low"], (index, *ALL), low[name])
        _save(outputs, state, index, every)

        def from_states(by, row_name):
            out = row(f"{row_name}_w") * product(by, low["w"])
            if case.momentum:
                out = out + row(f"{row_name}_s") * product(by, low["s"])
            return out

        def among(name, value):
            return product(get(inputs[name], index, *ALL), value)

        net = whole(g, state["w"].dtype)
        if case.delta:
            recalled = from_states(x, "in") + among("gather", g)
            recalled = among("solve", split(recalled, dtype))
            erased = row("beta") * recalled
            if "n" in outputs:
                put(outputs["n"], (at, slice(None)), recalled, dtype)
            if not case.momentum:
                net = net - erased
        if "out" in outputs:
            q = get(inputs["q"], at, slice(None))
            if case.read == "chunk":
                o = product(q, low["w"])
            else:
                o = from_states(q, "out") + among("shown", split(net, dtype))
                if "hidden" in inputs:
                    o = o - among("hidden", split(erased, dtype))
            outputs["out"][at, :] = o.astype(dtype)
        written = row("write_w") * net
        after = {"w": end(0) * state["w"]}
        if case.momentum:
            if case.delta:
                written = written - row("erase") * erased
            after["w"] = after["w"] + end(1) * state["s"]
            kept = split(row("write_s") * net, dtype)
            after["s"] = end(2) * state["s"] + product(x, kept, (0, 0))
        written = product(x, split(written, dtype), (0, 0))
        after["w"] = after["w"] + written
        return after

    suffix = "_start" if "w_start" in inputs else ""
    state = {n: inputs[f"{n}{suffix}"][...] for n in case.states}
    count = inputs["rows"].shape[0]
    state = jax.lax.fori_loop(0, count, step, state)
    for name, value in state.items():
        if f"{name}_end" in outputs:
            outputs[f"{name}_end"][...] = value


def products(inputs, case):
    """Returns ``X X^T`` and ``Q X^T`` of one chunk.

    ``Q X^T`` is ``None`` with ``read="chunk"``.
    """
    names = ["x"] if case.read == "chunk" else ["x", "q"]

    def step(at, x, sums):
        return [
            total + product(get(inputs[name], slice(None), at), x, (1, 1))
            for name, total in zip(names, sums, strict=True)
        ]

    size = inputs["x"].shape[1]
    zero = jnp.zeros((size, size), inputs["rows"].dtype)
    sums = over_x(inputs, step, [zero] * len(names))
    return *sums, *([None] * (2 - len(sums)))


def over_x(inputs, step, carry):
    """Loops over columns of ``x``, all of which do not fit into registers."""
    width = inputs["x"].shape[2]
    depth = min(width, _DEPTH)

    def body(number, carry):
        at = pl.ds(number * depth, depth)
        return step(at, get(inputs["x"], slice(None), at), carry)

    return jax.lax.fori_loop(0, width // depth, body, carry)


def named_rows(inputs, case):
    """Returns the rows of a chunk by name."""
    return {
        name: inputs["rows"][number, :] for number, name in enumerate(case.rows)
    }


def _save(outputs, state, index, every):
    """Writes the states at the start of a block of tokens."""
    if "w_start" not in outputs:
        return

    # Triton cannot compile the integer division of jax.numpy.
    every = jnp.asarray(every, index.dtype)

    @pl.when(jax.lax.rem(index, every) == 0)
    def _():
        block = jax.lax.div(index, every)
        for name, value in state.items():
            outputs[f"{name}_start"][block, :, :] = value


def iota(shape, axis):
    """Returns the index of each element along an axis."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
