"""Conversion of ``delta_scan``'s arrays to the layout of the kernels.

Kernels take arrays with the same leading axes and whole chunks of tokens.
Memories that share ``x``, ``q`` and all gates are equivalent to one memory with
more columns: folding them into ``d_out`` shares ``x x^T`` and the inverse. All
functions here are linear, so that JAX can transpose them.
"""

from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels.partition import explicit_axes

GATES = ("log_alpha", "beta", "log_mu", "resets")
MAX_COLUMNS = 512
"""Most columns of a folded state, all of which a kernel holds at once."""


class Plan(NamedTuple):
    """Static description of a conversion by :func:`prepare`."""

    lead: tuple[int, ...]
    """Leading axes of all arrays, without a folded one."""
    memories: int | None
    """Length of the last leading axis if it is folded into columns."""
    length: int
    """Number of tokens."""
    chunk: int
    """Tokens per chunk; the last one is padded."""
    gates: tuple[str, ...]
    """Names of the gates that are given, in the order of ``GATES``."""

    @property
    def states(self) -> str:
        """Names of the state's arrays, one letter each."""
        return "ws" if "log_mu" in self.gates else "w"

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.length // self.chunk)


def plan_for(arrays, chunk) -> Plan:
    """Returns the plan for ``delta_scan``'s arrays, or shapes, by name."""
    gates = tuple(name for name in GATES if arrays.get(name) is not None)
    leads = {name: arrays[name].shape[:-1] for name in gates}
    for name in "wxgq":
        leads[name] = arrays[name].shape[:-2]
    if arrays["s"] is not None:
        leads["s"] = arrays["s"].shape[:-2]
    lead = jnp.broadcast_shapes(*leads.values())
    memories = None
    if lead and 1 < lead[-1] * arrays["g"].shape[-1] <= MAX_COLUMNS:
        shared = [leads[name][-1:] for name in ("x", "q", *gates)]
        if lead[-1] > 1 and all(last in ((), (1,)) for last in shared):
            lead, memories = lead[:-1], lead[-1]
    return Plan(lead, memories, arrays["x"].shape[-2], chunk, gates)


def why_not(arrays, interpret) -> str | None:
    """Returns why no kernel can run on arrays, or shapes, else ``None``."""
    if explicit := explicit_axes():
        return f"mesh axes {explicit} are Explicit, must be Auto"
    x = arrays["x"]
    if not interpret:
        if arrays["w"].dtype != jnp.float32:
            return f"w has dtype {arrays['w'].dtype}, must be float32"
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"x has dtype {x.dtype}, must be float32 or bfloat16"
    for name in "gq":
        if arrays[name].dtype != x.dtype:
            return f"{name} has dtype {arrays[name].dtype}, x has {x.dtype}"
    return None


def prepare(arrays, plan):
    """Converts ``delta_scan``'s arrays for the kernels.

    Returns:
        By name ``w`` and ``s``, ``[*lead, d_in, memories * d_out]``; ``x``,
        ``q`` and ``g``, ``[*lead, n * C, d]``; and all ``gates`` stacked,
        ``[*lead, n, gate, C]``, in the state's dtype.
    """
    state = arrays["w"].dtype
    values = {name: _fold(arrays[name], plan) for name in "wg"}
    if arrays["s"] is not None:
        values["s"] = _fold(arrays["s"], plan)
    for name in "xq":
        values[name] = arrays[name]
        if plan.memories and arrays[name].ndim > 2:
            values[name] = arrays[name].squeeze(-3)
    for name in "xgq":
        values[name] = _pad(values[name], plan)
    values = {
        name: jnp.broadcast_to(value, plan.lead + value.shape[-2:])
        for name, value in values.items()
    }
    gates = []
    for name in plan.gates:
        gate = arrays[name].astype(state)[..., None]
        if plan.memories and gate.ndim > 2:
            gate = gate.squeeze(-3)
        gate = jnp.broadcast_to(gate, plan.lead + gate.shape[-2:])
        gate = _pad(gate, plan)
        gates.append(gate.reshape(*plan.lead, plan.chunks, plan.chunk))
    return values | {"gates": jnp.stack(gates, -2)}


def restore(out, plan):
    """Converts a kernel's outputs to ``(o, w, s)`` of ``delta_scan``."""
    o = _unfold(out["o"], plan)[..., : plan.length, :]
    ends = (out.get(f"{name}_end") for name in "ws")
    return o, *(None if e is None else _unfold(e, plan) for e in ends)


def restore_starts(out, plan):
    """Converts the states at chunk starts to ``(w, s)``, if there are any."""
    starts = (out.get(f"{name}_start") for name in "ws")
    return tuple(None if v is None else _unfold(v, plan) for v in starts)


def prepare_cotangents(starts, cotangents, plan):
    """Converts starts and cotangents of ``(o, w, s)`` for the kernels."""
    o, *ends = cotangents
    values = {"o": _pad(_fold(o, plan), plan)}
    for name, start, end in zip("ws", starts, ends, strict=True):
        if name in plan.states:
            values[f"{name}_start"] = _fold(start, plan)
            values[f"{name}_end"] = _fold(end, plan)
    return values


def _fold(value, plan):
    """Folds memories, ``[..., memories, a, b] -> [..., a, memories * b]``."""
    if plan.memories is None:
        return value
    shape = (plan.memories, *value.shape[-2:])
    value = jnp.broadcast_to(value, value.shape[:-3] + shape)
    value = value.swapaxes(-3, -2)
    return value.reshape(*value.shape[:-2], -1)


def _unfold(value, plan):
    """Inverse of :func:`_fold`."""
    if plan.memories is None:
        return value
    value = value.reshape(*value.shape[:-1], plan.memories, -1)
    return value.swapaxes(-3, -2)


def _pad(value, plan):
    """Pads tokens ``[..., T, d]`` with zeros to whole chunks."""
    extra = plan.chunks * plan.chunk - plan.length
    if not extra:
        return value
    return jnp.pad(value, [(0, 0)] * (value.ndim - 2) + [(0, extra), (0, 0)])
