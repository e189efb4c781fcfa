"""Coefficients that the Triton kernels derive from the gates of a chunk.

The kernels take gates as rows of one number per token, computed here by XLA, so
that ``jax.vjp`` turns gradients of rows into those of gates. Matrices of pairs
of tokens are computed inside the kernels, from logarithms, and the backward
kernel runs ``jax.vjp`` of :func:`pairs`: no derivative is written by hand. The
letters are those of :func:`chunk_step`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.delta_memory.chunked import ratios, triangles
from pallas_kernels.delta_memory.triton_parts import dot


@dataclasses.dataclass(frozen=True)
class Case:
    """Static description of a recurrence: the terms that it has."""

    read: str
    """As in ``delta_scan``."""
    delta: bool
    """Whether there is a delta term."""
    momentum: bool
    """Whether there is a second state, the momentum."""
    resets: bool = False
    """Whether states become zero before some tokens."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of :func:`gate_rows`, in the order in which they are stacked.

        Per token: logarithms of the retention since the start of the chunk,
        ``before`` and ``after`` the token, and of momentum, ``log_m``; factors
        of the chunk's initial states at its key (``in``) and its query
        (``out``); factors of its write (``write``) and its erasure (``erase``)
        in the final states. Per chunk, in ``ends``: the factor of ``w`` in the
        final ``w``, then those of ``s`` in the final ``w`` and ``s``. With
        resets, per token: the chunk's first token of its ``document``.
        """
        names = ["before", "after", "in_w", "out_w", "write_w", "ends"]
        if self.delta:
            names.append("beta")
        if self.momentum:
            names += ["log_m", "in_s", "out_s", "write_s"]
            names += ["erase"] if self.delta else []
        return (*names, "document") if self.resets else tuple(names)

    @property
    def pairs(self) -> tuple[str, ...]:
        """Names of the matrices of :func:`pairs`."""
        names = []
        if self.delta:
            names += ["lower", "gather"]
        if self.read != "chunk":
            names.append("shown")
            if self.delta and self.momentum:
                names.append("hidden")
        return tuple(names)

    @property
    def hidden(self) -> str:
        """Name of the matrix of :func:`pairs` from erasures to outputs."""
        return "hidden" if self.momentum else "shown"

    @property
    def mixing_rows(self) -> tuple[str, ...]:
        """Names of the rows that :func:`mixing` has gradients for."""
        return ("before", "after", "log_m") if self.momentum else ()

    @property
    def pair_rows(self) -> tuple[str, ...]:
        """Names of the rows that :func:`pairs` has gradients for."""
        names = ("before", "after", "log_m", "beta")
        return tuple(name for name in names if name in self.rows)

    @property
    def state_rows(self) -> tuple[str, ...]:
        """Names of the rows that are factors of the states."""
        names = ("before", "after", "log_m", "document")
        return tuple(name for name in self.rows if name not in names)

    @property
    def states(self) -> str:
        """Names of the states, one letter each."""
        return "ws" if self.momentum else "w"


def gate_rows(gates, case, keep):
    """Returns the rows of each chunk by name, see :attr:`Case.rows`.

    Args:
        gates: gates by name, ``[..., C]`` in the state's dtype.
        case: terms of the recurrence.
        keep: 0 for padding, which changes nothing, else 1; broadcasts against
            a gate.
    """
    acc = gates["log_alpha"].dtype
    floor = float(np.log(jnp.finfo(acc).eps / 50))
    after = jnp.cumsum(jnp.maximum(gates["log_alpha"], floor), -1)
    before = _shift(after)
    left = jnp.exp(after[..., -1:] - after)
    rows = {"before": before, "after": after}
    if case.resets:
        number = jnp.cumsum(gates["resets"], -1)
        at = jnp.arange(number.shape[-1])
        first = jnp.where(gates["resets"] > 0, at, 0).astype(acc)
        rows["document"] = jax.lax.cummax(first, axis=first.ndim - 1)
        left = jnp.where(number == number[..., -1:], left, 0)

    def initial(factor, some=slice(None)):
        """Zeroes factors of initial states in another document."""
        if not case.resets:
            return factor
        return jnp.where(number[..., some] > 0, 0, factor)

    rows |= {
        "in_w": initial(jnp.exp(before)),
        "out_w": initial(jnp.exp(before if case.read == "before" else after)),
        "write_w": left,
        "beta": gates.get("beta"),
    }
    ends = [initial(jnp.exp(after[..., -1]), -1)]
    if case.momentum:
        keep = jnp.broadcast_to(keep.astype(acc), after.shape)
        log_m = jnp.cumsum(jnp.maximum(gates["log_mu"], floor) * keep, -1)
        now, past = _masks(rows)
        m, carry = initial(jnp.exp(log_m)), ratios(log_m, log_m, now)
        moves = ratios(before, after, past) * keep[..., None, :]
        alpha = jnp.exp(after - before)
        in_s = (moves * m[..., None, :]).sum(-1)
        out_s = alpha * in_s + keep * m
        # The last row of a product of two matrices.
        last = alpha[..., -1:] * (moves[..., -1, :, None] * carry).sum(-2)
        rows |= {
            "erase": left,
            "log_m": log_m,
            "in_s": in_s,
            "out_s": in_s if case.read == "before" else out_s,
            "write_w": last + keep[..., -1:] * carry[..., -1, :],
            "write_s": carry[..., -1, :],
        }
        ends += [out_s[..., -1], m[..., -1]]
    last = jnp.stack(ends, -1)
    pad = [(0, 0)] * (last.ndim - 1) + [(0, after.shape[-1] - last.shape[-1])]
    rows["ends"] = jnp.pad(last, pad)
    return {name: rows[name] for name in case.rows}


def mixing(rows, dtype):
    """Returns factors of writes in the weights at later keys, with momentum.

    Args:
        rows: rows of a chunk by name, ``[C]`` each.
        dtype: dtype of the products that the result, ``[C, C]``, is used in.
    """
    now, past = _masks(rows)
    # Padding needs no mask: it comes last, and its rows are not used.
    decay = ratios(rows["before"], rows["after"], past)
    carry = ratios(rows["log_m"], rows["log_m"], now)
    return dot(decay, carry, ends_as=dtype)


def pairs(gram, overlap, mixed, rows, case):
    """Returns matrices of a chunk's pairs of tokens, ``[C, C]``, by name.

    Args:
        gram: ``X X^T`` in the state's dtype.
        overlap: ``Q X^T``; ``None`` with ``read="chunk"``.
        mixed: result of :func:`mixing`; ``None`` without momentum.
        rows: rows of the chunk by name, ``[C]`` each.
        case: terms of the recurrence.

    Returns:
        ``lower`` (``L`` of the inverse), ``gather`` (from writes to later
        keys), ``shown`` (from writes to outputs) and ``hidden`` (from erasures
        to outputs; without momentum that is ``shown``).
    """
    before, after = rows["before"], rows["after"]
    now, past = _masks(rows)
    decay = ratios(before, after, past)
    mixed = mixed if case.momentum else decay
    found = {}
    if case.delta:
        found["lower"] = decay * gram * rows["beta"][None, :]
        found["gather"] = mixed * gram
    if case.read == "after":
        decay = ratios(after, after, now)
        if case.momentum:
            carry = ratios(rows["log_m"], rows["log_m"], now)
            alpha = jnp.exp(after - before)[:, None]
            mixed = alpha * mixed + carry
        else:
            mixed = decay
    if "shown" in case.pairs:
        found["shown"] = mixed * overlap
    if "hidden" in case.pairs:
        found["hidden"] = decay * overlap
    return found


def _masks(rows):
    """Returns :func:`triangles`, for tokens of the same document."""
    now, past = triangles(rows["after"].shape[-1])
    if "document" in rows:
        first = rows["document"][..., :, None]
        column = jax.lax.broadcasted_iota(first.dtype, now.shape, 1)
        now, past = now & (column >= first), past & (column >= first)
    return now, past


def _shift(total):
    pad = [(0, 0)] * (total.ndim - 1) + [(1, 0)]
    return jnp.pad(total[..., :-1], pad)
