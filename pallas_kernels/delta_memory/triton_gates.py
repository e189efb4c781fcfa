"""What the gates of a chunk amount to, for the Triton kernels.

The kernels take gates as rows of one number a token, made here by XLA, so that
``jax.vjp`` finds the gates' gradients from those of the rows. What is a matrix
of pairs of tokens is made inside the kernels from logarithms, and ``jax.vjp``
of :func:`pairs` runs inside the backward kernel: neither is derived by hand.
The letters are those of :func:`chunk_step`, whose results these are.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.delta_memory.triton_parts import dot


@dataclasses.dataclass(frozen=True)
class Case:
    """Which of the recurrence's terms there are, all static."""

    read: str
    """As in ``delta_scan``."""
    delta: bool
    """Whether anything is erased."""
    momentum: bool
    """Whether there is a second state."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of :func:`gate_rows`, in the order in which they are stacked.

        Of a token: logarithms of the retention since the chunk's start
        ``before`` it and ``after`` it; what of the states it meets, writing
        (``in``) and reading (``out``); what of its write and of what it erased
        is left in the states ``w`` and ``s`` after the chunk. Of the chunk, in
        ``ends``: what is left of ``w``, and of ``s`` in ``w`` and in itself.
        """
        names = ["before", "after", "in_w", "out_w", "write_w", "ends"]
        if self.delta:
            names.append("beta")
        if self.momentum:
            names += ["log_m", "in_s", "out_s", "write_s"]
            names += ["erase"] if self.delta else []
        return tuple(names)

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
        """Where :func:`pairs` has what hides the erased from the outputs."""
        return "hidden" if self.momentum else "shown"

    @property
    def mixing_rows(self) -> tuple[str, ...]:
        """Those of ``rows`` that :func:`mixing` has a gradient for."""
        return ("before", "after", "log_m") if self.momentum else ()

    @property
    def pair_rows(self) -> tuple[str, ...]:
        """Those of ``rows`` that :func:`pairs` has a gradient for."""
        names = ("before", "after", "log_m", "beta")
        return tuple(name for name in names if name in self.rows)

    @property
    def state_rows(self) -> tuple[str, ...]:
        """Those of ``rows`` that meet the states."""
        names = ("before", "after", "log_m")
        return tuple(name for name in self.rows if name not in names)

    @property
    def states(self) -> str:
        """Names of the states."""
        return "ws" if self.momentum else "w"


def gate_rows(gates, case, keep):
    """Rows of each chunk by name, ``[..., C]``; see :attr:`Case.rows`.

    Args:
        gates: by name, ``[..., C]`` in the state's dtype.
        case: which terms there are.
        keep: 0 where a token is padding and must change nothing, else 1,
            broadcasts against a gate.
    """
    acc = gates["log_alpha"].dtype
    floor = float(np.log(jnp.finfo(acc).eps / 50))
    after = jnp.cumsum(jnp.maximum(gates["log_alpha"], floor), -1)
    before = _shift(after)
    left = jnp.exp(after[..., -1:] - after)
    rows = {
        "before": before,
        "after": after,
        "in_w": jnp.exp(before),
        "out_w": jnp.exp(before if case.read == "before" else after),
        "write_w": left,
        "beta": gates.get("beta"),
    }
    ends = [jnp.exp(after[..., -1])]
    if case.momentum:
        keep = jnp.broadcast_to(keep.astype(acc), after.shape)
        log_m = jnp.cumsum(jnp.maximum(gates["log_mu"], floor) * keep, -1)
        now, past = triangles(after.shape[-1])
        m, carry = jnp.exp(log_m), ratios(log_m, log_m, now)
        moves = ratios(before, after, past) * keep[..., None, :]
        alpha = jnp.exp(after - before)
        in_s = (moves * m[..., None, :]).sum(-1)
        out_s = alpha * in_s + keep * m
        # The last row of what is a product of two matrices for all tokens.
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
    """What the momentum of each write has become: a product of all gates.

    Args:
        rows: ``[C]`` each, by name.
        dtype: that of the products that the result, ``[C, C]``, is for.
    """
    now, past = triangles(rows["after"].shape[-1])
    # Padding comes last: nothing real follows, and nobody reads its rows.
    decay = ratios(rows["before"], rows["after"], past)
    carry = ratios(rows["log_m"], rows["log_m"], now)
    return dot(decay, carry, ends_as=dtype)


def pairs(gram, overlap, mixed, rows, case):
    """Matrices of a chunk's pairs of tokens, ``[C, C]``, by name.

    Args:
        gram: ``X X^T`` in the state's dtype.
        overlap: ``Q X^T``; ``None`` where nothing is read token by token.
        mixed: from :func:`mixing`; ``None`` without momentum.
        rows: ``[C]`` each, by name.
        case: which terms there are.

    Returns:
        ``lower`` (L, to be inverted with ones on the diagonal), ``gather``
        (writes as seen by writers), ``shown`` (writes in the outputs) and
        ``hidden`` (what was erased in the outputs; without momentum that is
        ``shown``).
    """
    before, after = rows["before"], rows["after"]
    now, past = triangles(gram.shape[-1])
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


def triangles(size):
    """Lower-triangular masks with (``s <= t``) and without the diagonal."""
    row = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    return column <= row, column < row


def ratios(at, since, mask):
    """``exp(at_t - since_s)`` under ``mask``, else 0; exponents <= 0 there."""
    difference = at[..., :, None] - since[..., None, :]
    return jnp.where(mask, jnp.exp(jnp.where(mask, difference, 0)), 0)


def _shift(total):
    pad = [(0, 0)] * (total.ndim - 1) + [(1, 0)]
    return jnp.pad(total[..., :-1], pad)
