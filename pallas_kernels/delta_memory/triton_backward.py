"""Bodies of the backward Triton kernels.

Their arguments are those of :mod:`pallas_kernels.delta_memory.triton_kernels`.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.delta_memory.triton_gates import mixing, pairs
from pallas_kernels.delta_memory.triton_kernels import (
    ALL,
    iota,
    named_rows,
    over_x,
    products,
)
from pallas_kernels.delta_memory.triton_parts import (
    get,
    product,
    put,
    put_parts,
    split,
    whole,
)


def walk_back_kernel(inputs, outputs, *, case, chunk, dtype):
    """Walks back with the state's cotangent, from the last chunk to the first.

    Outputs are the cotangents of the states after each chunk (``dw_low``,
    ``ds_low``) and before the first (``w``, ``s``), and ``dy``, that of the
    inverse's right-hand side.
    """
    count = inputs["rows"].shape[0]

    def step(number, state):
        index = count - 1 - number
        at = pl.ds(index * chunk, chunk)

        def row(name):
            return inputs["rows"][index, case.rows.index(name), :][:, None]

        def end(number):
            return inputs["rows"][index, case.rows.index("ends"), number]

        x, q, do = (get(inputs[name], at, slice(None)) for name in "xqo")
        low = {name: split(value, dtype) for name, value in state.items()}
        for name, value in low.items():
            put_parts(outputs[f"d{name}_low"], (index, *ALL), value)

        def back(by, value):
            return product(by, split(value, dtype), (0, 0))

        before = {"w": end(0) * state["w"]}
        if case.momentum:
            before["s"] = end(1) * state["w"] + end(2) * state["s"]
        if case.delta:
            erase = "erase" if "erase" in case.rows else "write_w"
            dn = -row("beta") * row(erase) * product(x, low["w"])
            if case.read != "chunk":
                hidden = get(inputs[case.hidden], index, *ALL)
                dn = dn - row("beta") * product(hidden, do, (0, 0))
            dy = back(get(inputs["solve"], index, *ALL), dn)
            put(outputs["dy"], (at, slice(None)), dy, dtype)
        for name in case.states:
            if case.read != "chunk":
                scaled = row(f"out_{name}") * whole(do, state["w"].dtype)
                before[name] = before[name] + back(q, scaled)
            elif name == "w":
                before[name] = before[name] + product(q, do, (0, 0))
            if case.delta:
                scaled = row(f"in_{name}") * dy
                before[name] = before[name] + back(x, scaled)
        return before

    state = {name: inputs[f"{name}_end"][...] for name in case.states}
    state = jax.lax.fori_loop(0, count, step, state)
    for name, value in state.items():
        outputs[name][...] = value


def pairs_backward_kernel(inputs, outputs, *, case, dtype, tile):
    """Computes the gradients of :func:`pairs` of one chunk.

    With ``N = T Y``, the gradient of ``L`` is ``-dY N^T``.
    """
    acc = inputs["rows"].dtype
    rows = named_rows(inputs, case)

    def step(at, sums):
        at = slice(None), at
        g = net = get(inputs["g"], *at)
        add = {}
        if case.delta:
            n, dy = (get(inputs[name], *at) for name in ("n", "dy"))
            erased = rows["beta"][:, None] * whole(n, acc)
            add["lower"] = -product(dy, n, (1, 1))
            add["gather"] = product(dy, g, (1, 1))
            if not case.momentum:
                net = split(whole(g, acc) - erased, dtype)
        if case.read != "chunk":
            do = get(inputs["o"], *at)
            add["shown"] = product(do, net, (1, 1))
        if "hidden" in sums:
            add["hidden"] = -product(do, split(erased, dtype), (1, 1))
        return {name: sums[name] + add[name] for name in sums}

    size = rows["after"].shape[0]
    sums = {name: jnp.zeros((size, size), acc) for name in case.pairs}
    sums = _over_columns(inputs, tile, step, sums)

    def free(gram, overlap, mixed, some):
        return pairs(gram, overlap, mixed, rows | some, case)

    some = {name: rows[name] for name in case.pair_rows}
    mixed = inputs["mixed"][...] if case.momentum else None
    _, pull = jax.vjp(free, *products(inputs, case), mixed, some)
    dgram, doverlap, dmixed, drows = pull(sums)
    if case.momentum:
        outputs["dmixed"][...] = dmixed
    _write_rows(outputs["pair_rows"], drows, case.pair_rows)
    if case.delta:
        dgram = split(dgram + dgram.T, dtype)
    if case.read != "chunk":
        doverlap = split(doverlap, dtype)

    def write(at, x, _):
        dx = jnp.zeros(x[0].shape, acc)
        if case.delta:
            dx = dx + product(dgram, x)
        if case.read != "chunk":
            q = get(inputs["q"], slice(None), at)
            dx = dx + product(doverlap, q, (0, 0))
            outputs["dq"][:, at] = product(doverlap, x)
        outputs["dx"][:, at] = dx

    over_x(inputs, write, None)


def mixing_backward_kernel(inputs, outputs, *, case, dtype):
    """Computes the gradients of :func:`mixing`, given ``dmixed``.

    As a part of a larger kernel its products would spill registers.
    """
    rows = named_rows(inputs, case)
    some = {name: rows[name] for name in case.mixing_rows}
    _, pull = jax.vjp(lambda some: mixing(rows | some, dtype), some)
    (drows,) = pull(inputs["dmixed"][...])
    _write_rows(outputs["mixing_rows"], drows, case.mixing_rows)


def states_backward_kernel(inputs, outputs, *, case, dtype, tile):
    """Computes the gradients of one chunk that involve the states.

    Inputs ``dx`` and ``dq`` are the gradients through :func:`pairs`.
    """
    rows = named_rows(inputs, case)
    acc = inputs["rows"].dtype
    row = {name: rows[name][:, None] for name in case.state_rows}
    erase = row.get("erase", row["write_w"])
    drows = {
        name: jnp.zeros(rows[name].shape, acc)
        for name in case.state_rows
        if name != "ends"
    }

    def read(name, some, at):
        return get(inputs[name], some, at)

    def change(at):
        """Returns what is written and what is erased at each token."""
        net, erased = whole(read("g", slice(None), at), acc), None
        if case.delta:
            erased = row["beta"] * whole(read("n", slice(None), at), acc)
            net = net if case.momentum else net - erased
        return net, erased

    def from_writes(at, drows):
        net, erased = change(at)
        every = slice(None), at
        from_w = _from_state(inputs, "dw_low", at)
        dg = row["write_w"] * from_w
        add = {"write_w": from_w * net}
        if case.momentum:
            from_s = _from_state(inputs, "ds_low", at)
            dg = dg + row["write_s"] * from_s
            add["write_s"] = from_s * net
        do = read("o", *every)

        def among(name, value):
            return product(get(inputs[name], *ALL), value, (0, 0))

        if case.delta:
            if case.momentum:
                add["erase"] = -from_w * erased
            dg = dg + among("gather", read("dy", *every))
            de = -erase * from_w
            if case.read != "chunk":
                de = de - among(case.hidden, do)
            add["beta"] = de * whole(read("n", *every), acc)
        if case.read != "chunk":
            dg = dg + among("shown", do)
        outputs["grad_g"][:, at] = dg.astype(dtype)
        return {n: drows[n] + v.sum(1) for n, v in add.items()}

    names = [n for n in ("write_w", "write_s", "erase", "beta") if n in drows]
    some = {n: drows[n] for n in names}
    drows |= _over_columns(inputs, tile, from_writes, some)

    def from_states(some, x, carry):
        q = whole(read("q", slice(None), some), acc)
        x = whole(x, acc)

        def step(at, carry):
            dx, dq, drows, dends = carry
            net, erased = change(at)
            do, add, ends = read("o", slice(None), at), {}, []
            after = read("dw_low", some, at)
            written = row["write_w"] * net
            if case.momentum and case.delta:
                written = written - erase * erased
            dx = dx + product(split(written, dtype), after, (1, 1))
            for name in case.states:
                state = read(f"{name}_low", some, at)
                ends.append(_inner(after, state, acc))
                if case.delta:
                    from_y = read("dy", slice(None), at)
                    dk = product(from_y, state, (1, 1))
                    add[f"in_{name}"] = (dk * x).sum(1)
                    dx = dx + row[f"in_{name}"] * dk
                if case.read == "chunk":
                    if name == "w":
                        dq = dq + product(do, state, (1, 1))
                    continue
                dk = product(do, state, (1, 1))
                add[f"out_{name}"] = (dk * q).sum(1)
                dq = dq + row[f"out_{name}"] * dk
            if case.momentum:
                after = read("ds_low", some, at)
                ends.append(_inner(after, state, acc))
                kept = split(row["write_s"] * net, dtype)
                dx = dx + product(kept, after, (1, 1))
            drows = {n: v + add[n] if n in add else v for n, v in drows.items()}
            ends = [a + b for a, b in zip(dends, ends, strict=True)]
            return dx, dq, drows, ends

        zero = jnp.zeros(x.shape, acc)
        dx, dq = (
            inputs[n][:, some] if n in inputs else zero for n in ("dx", "dq")
        )
        dx, dq, *carry = _over_columns(inputs, tile, step, (dx, dq, *carry))
        outputs["grad_x"][:, some] = dx.astype(dtype)
        outputs["grad_q"][:, some] = dq.astype(dtype)
        return carry

    others = {n: v for n, v in drows.items() if n not in names}
    dends = [jnp.zeros((), acc)] * (3 if case.momentum else 1)
    others, dends = over_x(inputs, from_states, [others, dends])
    place = iota(rows["ends"].shape, 0)
    dends = [jnp.where(place == k, v, 0) for k, v in enumerate(dends)]
    drows |= others | {"ends": sum(dends)}
    _write_rows(outputs["state_rows"], drows, case.state_rows)


def _from_state(inputs, name, at):
    """Returns ``X`` times some columns of a state."""
    shape = inputs["x"].shape[1], at.size

    def step(some, x, total):
        return total + product(x, get(inputs[name], some, at))

    zero = jnp.zeros(shape, inputs["rows"].dtype)
    return over_x(inputs, step, zero)


def _over_columns(inputs, tile, step, carry):
    """Loops over the columns of a state, ``tile`` at a time."""

    def body(number, carry):
        return step(pl.ds(number * tile, tile), carry)

    return jax.lax.fori_loop(0, inputs["g"].shape[2] // tile, body, carry)


def _write_rows(ref, rows, names):
    for number, name in enumerate(names):
        ref[number, :] = rows[name]


def _inner(a, b, acc):
    return (whole(a, acc) * whole(b, acc)).sum()
