"""Names, axes and shapes of the arrays of the Triton kernels.

Each array has a name and each name has axes, from which its shape, its padding
and the part of it that a program sees are derived.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory.triton_parts import split

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
"""Axes of each array: ``r`` rows (all heads of the batch), ``t`` tokens, ``c``
chunks, ``b`` blocks of tokens, ``i`` ``d_in``, ``j`` ``d_out``, ``e`` tokens of
a chunk, and gate rows of a chunk: ``v`` all, ``p`` those of pairs, ``m`` of
states, ``l`` of mixing."""
SPLIT = {"x", "q", "g", "o", "n", "dy", "solve", "gather", "shown", "hidden"}
SPLIT |= {name for name in AXES if name.endswith("_low")}
"""Factors of products, stored in parts (:func:`split`) on the second axis."""


def axes_of(name):
    """Returns the axes of an array, with ``s`` for the parts if it has any."""
    axes = AXES[name]
    return axes[0] + "s" + axes[1:] if name in SPLIT else axes


def widen(name, value, sizes):
    """Flattens the leading axes to rows, and pads widths with zeros."""
    axes = AXES[name]
    at = axes.index("r")
    rest = value.shape[value.ndim - len(axes) + at + 1 :]
    value = value.reshape(*value.shape[:at], -1, *rest)
    pad = [
        (0, sizes[a] - n if a in "ij" else 0)
        for a, n in zip(axes, value.shape, strict=True)
    ]
    return jnp.pad(value, pad)


def narrow(name, value, lead, widths):
    """Inverse of :func:`widen`, for leading axes and widths by axis."""
    axes = AXES[name]
    at = axes.index("r")
    value = value[tuple(slice(widths.get(a)) for a in axes)]
    return value.reshape(*value.shape[:at], *lead, *value.shape[at + 1 :])


def abstract(name, sizes, low, acc):
    """Returns shape and dtype of an array.

    Args:
        name: name of the array.
        sizes: length of each axis.
        low: dtype of products.
        acc: dtype of the state.
    """
    shape = tuple(sizes[axis] for axis in axes_of(name))
    dtype = acc
    if name in SPLIT:
        part = jax.eval_shape(lambda: split(jnp.zeros((), acc), low)[0])
        dtype = part.dtype
    elif name == "out" or name.startswith("grad_"):
        dtype = low
    return jax.ShapeDtypeStruct(shape, dtype)
