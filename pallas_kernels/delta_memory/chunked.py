"""The exact chunk-parallel form of the delta memory in plain ``jax.numpy``.

Inside a chunk the recurrence is linear in the state, so ``C`` tokens need a
handful of matrix products and one unit-triangular inverse of width ``C``
(:mod:`pallas_kernels.delta_memory.inverse`); only chunks are sequential.
Without momentum this is the WY form of the gated delta rule (Yang et al.,
arXiv 2406.06484 and 2412.06464); momentum adds one more lower-triangular
matrix. Cost per chunk: ``O(C^2 (d_in + d_out) + C d_in d_out + C^3)``.

Gates are handled as differences of cumulative logarithms, never as quotients.
A gate under a fiftieth of the dtype's resolution acts as that: it forgets as
completely, and the sums of logarithms keep their digits.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory.inverse import unit_lower_inverse

__all__ = ["chunk_step", "delta_scan_chunked"]


def chunk_step(
    w,
    s,
    x,
    g,
    q,
    log_alpha,
    beta,
    log_mu=None,
    *,
    read="before",
    valid=None,
):
    """Advances a delta memory by one chunk; the meaning of the operation.

    All leading axes broadcast: a size-1 axis of ``x`` and the gates against
    several memories in ``w`` and ``g`` makes ``x x^T`` and the inverse shared.

    Args:
        w: weights before the chunk, ``[..., d_in, d_out]``.
        s: momentum before the chunk, like ``w``; ``None`` without ``log_mu``.
        x: inputs that are written to, ``[..., C, d_in]``.
        g: what is written, ``[..., C, d_out]``.
        q: inputs that are read at, ``[..., C, d_in]``, or ``None`` to skip it.
        log_alpha: logarithm of the retention, ``[..., C]``.
        beta: strength of the delta term, ``[..., C]``; ``None`` for none.
        log_mu: logarithm of the momentum's decay, ``[..., C]``, or ``None``.
        read: ``"before"``, ``"after"`` or ``"chunk"``, which weights ``q``
            meets: ``W_{t-1}``, ``W_t`` or those at the start of the chunk.
        valid: ``[..., C]``, False where a token is padding and must change
            nothing. Gates of 1 and writes of 0 would not do: momentum still
            moves the weights at every token.

    Returns:
        ``(o, w, s)``: outputs ``[..., C, d_out]`` (``None`` without ``q``) and
        the state after the chunk.
    """
    dtype, acc = x.dtype, w.dtype
    size = x.shape[-2]
    tril = jnp.tril(jnp.ones((size, size), bool))

    if valid is not None:
        log_alpha = jnp.where(valid, log_alpha, 0)
        g = jnp.where(valid[..., None], g, 0)
        beta = None if beta is None else jnp.where(valid, beta, 0)
        log_mu = None if log_mu is None else jnp.where(valid, log_mu, 0)

    log_a = _cumulative(log_alpha, acc)
    decay = _ratios(log_a, tril)  # A[t, s]
    inherit = jnp.exp(log_a)  # a: what is left of w at t
    if log_mu is None:
        mixed, inherit_s = decay, None
    else:
        log_m = _cumulative(log_mu, acc)
        carry = _ratios(log_m, tril)  # R[t, s]
        moves = decay if valid is None else decay * valid[..., None, :]
        mixed = jnp.matmul(moves, carry)  # c: weight of write s in W_t
        inherit_s = jnp.einsum("...ts,...s->...t", moves, jnp.exp(log_m))

    w_low = w.astype(dtype)
    s_low = None if s is None else s.astype(dtype)

    def dot(spec, *operands):
        # Einsum makes a shared operand's missing axes columns of the other,
        # and transposes them back; as a batch they stay where they are.
        lead = jnp.broadcast_shapes(*(a.shape[:-2] for a in operands))
        operands = [jnp.broadcast_to(a, lead + a.shape[-2:]) for a in operands]
        return jnp.einsum(spec, *operands, preferred_element_type=acc)

    def gather(weights, keep, keep_s, mix, similarity):
        """``keep W_0 + keep_s S_0`` seen from ``weights`` plus the writes."""
        out = keep[..., None] * dot("...ti,...ij->...tj", weights, w_low)
        if keep_s is not None:
            from_s = dot("...ti,...ij->...tj", weights, s_low)
            out = out + keep_s[..., None] * from_s
        mix = (mix * similarity).astype(dtype)
        return out + dot("...ts,...sj->...tj", mix, g)

    gram = dot("...ti,...si->...ts", x, x)
    erased = None
    if beta is not None:
        beta = beta.astype(acc)
        strict = _shift(decay) * gram * beta[..., None, :]
        solve = unit_lower_inverse(strict)
        seen = gather(
            x,
            _shift_gate(inherit, 1.0),
            None if inherit_s is None else _shift_gate(inherit_s, 0.0),
            _shift(mixed),
            gram,
        )
        # N: what the memory held at x_t.
        recalled = dot("...ts,...sj->...tj", solve, seen)
        erased = (beta[..., None] * recalled).astype(dtype)

    o = None
    if q is not None and read == "chunk":
        o = dot("...ti,...ij->...tj", q, w_low).astype(dtype)
    elif q is not None:
        overlap = dot("...ti,...si->...ts", q, x)
        before = read == "before"
        keep = _shift_gate(inherit, 1.0) if before else inherit
        keep_s, mix, still = inherit_s, mixed, decay
        if before:
            mix, still = _shift(mixed), _shift(decay)
            if inherit_s is not None:
                keep_s = _shift_gate(inherit_s, 0.0)
        o = gather(q, keep, keep_s, mix, overlap)
        if erased is not None:
            still = (still * overlap).astype(dtype)
            o = o - dot("...ts,...sj->...tj", still, erased)
        o = o.astype(dtype)

    written = mixed[..., -1, :, None] * g.astype(acc)
    if erased is not None:
        written = written - decay[..., -1, :, None] * erased.astype(acc)
    new_w = inherit[..., -1, None, None] * w
    if inherit_s is not None:
        new_w = new_w + inherit_s[..., -1, None, None] * s
        last = (carry[..., -1, :, None] * g.astype(acc)).astype(dtype)
        s = jnp.exp(log_m[..., -1, None, None]) * s
        s = s + dot("...ti,...tj->...ij", x, last)
    new_w = new_w + dot("...ti,...tj->...ij", x, written.astype(dtype))
    return o, new_w, s


def delta_scan_chunked(
    w, s, x, g, q, log_alpha, beta, log_mu=None, *, chunk_size=64, read="before"
):
    """Scans :func:`chunk_step` over a sequence of any length.

    Arguments and results are those of
    :func:`pallas_kernels.delta_memory.delta_scan`. A last chunk that is not
    full is padded with tokens that change nothing. The backward pass keeps the
    state at the start of each chunk and recomputes the rest
    (``jax.checkpoint``).
    """
    length = x.shape[-2]
    chunk_size = min(chunk_size, length)
    count = -(-length // chunk_size)

    def cut(value, axis):
        """``[..., T, ...] -> [n, ..., C, ...]``; zeros change nothing."""
        if value is None:
            return None
        pad = [(0, 0)] * value.ndim
        pad[axis] = (0, count * chunk_size - length)
        value = jnp.pad(value, pad)
        axis %= value.ndim
        shape = (*value.shape[:axis], count, chunk_size)
        value = value.reshape(shape + value.shape[axis + 1 :])
        return jnp.moveaxis(value, axis, 0)

    batch = jnp.broadcast_shapes(
        w.shape[:-2], x.shape[:-2], g.shape[:-2], log_alpha.shape[:-1]
    )
    w = jnp.broadcast_to(w, batch + w.shape[-2:])
    if log_mu is not None:
        s = jnp.zeros_like(w) if s is None else jnp.broadcast_to(s, w.shape)

    @jax.checkpoint
    def step(state, chunk):
        w, s = state
        *arrays, valid = chunk
        o, w, s = chunk_step(w, s, *arrays, read=read, valid=valid)
        return (w, s), o

    ragged = count * chunk_size > length
    chunks = (
        *(cut(value, -2) for value in (x, g, q)),
        *(cut(value, -1) for value in (log_alpha, beta, log_mu)),
        cut(jnp.ones(length, bool), -1) if ragged else None,
    )
    (w, s), o = jax.lax.scan(step, (w, s), chunks)
    o = jnp.moveaxis(o, 0, -3)
    o = o.reshape((*o.shape[:-3], count * chunk_size, o.shape[-1]))
    return o[..., :length, :], w, s


def _cumulative(log_gate, dtype):
    floor = jnp.log(jnp.finfo(dtype).eps / 50)
    return jnp.cumsum(jnp.maximum(log_gate.astype(dtype), floor), axis=-1)


def _ratios(cumulative, tril):
    """``exp(c_t - c_s)`` for ``s <= t``, else 0; exponents never positive."""
    difference = cumulative[..., :, None] - cumulative[..., None, :]
    return jnp.where(tril, jnp.exp(jnp.where(tril, difference, 0.0)), 0.0)


def _shift(matrix):
    """One step back in time: row ``t`` becomes row ``t - 1``, the first 0."""
    pad = [(0, 0)] * (matrix.ndim - 2) + [(1, 0), (0, 0)]
    return jnp.pad(matrix[..., :-1, :], pad)


def _shift_gate(gate, first):
    pad = [(0, 0)] * (gate.ndim - 1) + [(1, 0)]
    return jnp.pad(gate[..., :-1], pad, constant_values=first)
