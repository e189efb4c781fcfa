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

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.delta_memory.inverse import unit_lower_inverse


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
    inverse=unit_lower_inverse,
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
        inverse: the ladder that is climbed, see
            :mod:`pallas_kernels.delta_memory.inverse`.

    Returns:
        ``(o, w, s)``: outputs ``[..., C, d_out]`` (``None`` without ``q``) and
        the state after the chunk.
    """
    dtype, acc = x.dtype, w.dtype
    now, past = _triangles(x.shape[-2])
    eye = jnp.where(now & ~past, 1, 0).astype(acc)
    # Masks are numbers until they have their shape: TPU kernels cannot
    # reshape truth values.
    keep = None if valid is None else valid.astype(acc)

    def gate(logarithm):
        floor = float(np.log(jnp.finfo(acc).eps / 50))
        logarithm = jnp.maximum(logarithm.astype(acc), floor)
        return logarithm if keep is None else jnp.where(keep > 0, logarithm, 0)

    if keep is not None:
        g = jnp.where(keep[..., None] > 0, g, 0)
        beta = None if beta is None else jnp.where(keep > 0, beta, 0)

    # The formula's barred letters, what token t meets: of W_0 (a) and S_0 (b),
    # of what was erased (A) and written (c) before. After it, each has been
    # multiplied by alpha_t, and what token t itself did has been added.
    log_alpha = gate(log_alpha)
    alpha = jnp.exp(log_alpha)
    log_a_bar = _total(log_alpha, past)
    a_bar = jnp.exp(log_a_bar)
    decay_bar = _ratios(log_a_bar, _total(log_alpha, now), past)
    a = alpha * a_bar
    decay = alpha[..., None] * decay_bar + eye
    if log_mu is None:
        mixed_bar, mixed = decay_bar, decay
        b_bar = b = None
    else:
        log_m = _total(gate(log_mu), now)
        m, carry = jnp.exp(log_m), _ratios(log_m, log_m, now)  # R
        if keep is None:
            moved, moves, moves_bar = m, carry, decay_bar
        else:
            moved, moves = keep * m, keep[..., None] * carry
            moves_bar = decay_bar * keep[..., None, :]
        mixed_bar = _exact(moves_bar, carry)
        mixed = alpha[..., None] * mixed_bar + moves
        b_bar = (moves_bar * m[..., None, :]).sum(-1)
        b = alpha * b_bar + moved

    w_low = w.astype(dtype)
    s_low = None if s is None else s.astype(dtype)

    def dot(spec, *operands):
        # Einsum makes a shared operand's missing axes columns of the other,
        # and transposes them back; as a batch they stay where they are.
        lead = jnp.broadcast_shapes(*(o.shape[:-2] for o in operands))
        wide = [jnp.broadcast_to(o, lead + o.shape[-2:]) for o in operands]
        return jnp.einsum(spec, *wide, preferred_element_type=acc)

    def gather(weights, a, b, mixed, similarity):
        """``a W_0 + b S_0`` seen from ``weights`` plus the writes."""
        out = a[..., None] * dot("...ti,...ij->...tj", weights, w_low)
        if b is not None:
            from_s = dot("...ti,...ij->...tj", weights, s_low)
            out = out + b[..., None] * from_s
        mixed = (mixed * similarity).astype(dtype)
        return out + dot("...ts,...sj->...tj", mixed, g)

    erased = None
    if beta is not None:
        beta = beta.astype(acc)
        gram = dot("...ti,...si->...ts", x, x)
        solve = inverse(decay_bar * gram * beta[..., None, :])
        seen = gather(x, a_bar, b_bar, mixed_bar, gram)
        # N: what the memory held at x_t.
        recalled = dot("...ts,...sj->...tj", solve, seen)
        erased = (beta[..., None] * recalled).astype(dtype)

    o = None
    if q is not None and read == "chunk":
        o = dot("...ti,...ij->...tj", q, w_low).astype(dtype)
    elif q is not None:
        overlap = dot("...ti,...si->...ts", q, x)
        if read == "before":
            o = gather(q, a_bar, b_bar, mixed_bar, overlap)
            still = decay_bar
        else:
            o = gather(q, a, b, mixed, overlap)
            still = decay
        if erased is not None:
            still = (still * overlap).astype(dtype)
            o = o - dot("...ts,...sj->...tj", still, erased)
        o = o.astype(dtype)

    written = mixed[..., -1, :, None] * g.astype(acc)
    if erased is not None:
        written = written - decay[..., -1, :, None] * erased.astype(acc)
    new_w = a[..., -1, None, None] * w
    if b is not None:
        new_w = new_w + b[..., -1, None, None] * s
        last = (carry[..., -1, :, None] * g.astype(acc)).astype(dtype)
        s = m[..., -1, None, None] * s
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
    arrays = w, s, x, g, q, log_alpha, beta, log_mu
    state, chunks = cut_into_chunks(arrays, min(chunk_size, length))
    state, o = jax.lax.scan(
        jax.checkpoint(functools.partial(advance, read=read)), state, chunks
    )
    return join_chunks(o, length), *state


def cut_into_chunks(arrays, size, multiple=None):
    """Returns ``(w, s)`` and the tokens as ``[n, ..., size, ...]``.

    The last of the tokens' arrays is the chunks' ``valid``, ``None`` where
    nothing had to be padded to a ``multiple`` of tokens, by default ``size``.
    """
    w, s, x, g, q, log_alpha, beta, log_mu = arrays
    length = x.shape[-2]
    multiple = size if multiple is None else multiple
    count = -(-length // multiple) * (multiple // size)

    def cut(value, axis):
        """``[..., T, ...] -> [n, ..., C, ...]``; zeros change nothing."""
        if value is None:
            return None
        pad = [(0, 0)] * value.ndim
        pad[axis] = (0, count * size - length)
        value = jnp.pad(value, pad)
        axis %= value.ndim
        shape = (*value.shape[:axis], count, size)
        value = value.reshape(shape + value.shape[axis + 1 :])
        return jnp.moveaxis(value, axis, 0)

    batch = jnp.broadcast_shapes(
        w.shape[:-2], x.shape[:-2], g.shape[:-2], log_alpha.shape[:-1]
    )
    w = jnp.broadcast_to(w, batch + w.shape[-2:])
    if log_mu is not None:
        s = jnp.zeros_like(w) if s is None else jnp.broadcast_to(s, w.shape)
    ragged = count * size > length
    chunks = (
        *(cut(value, -2) for value in (x, g, q)),
        *(cut(value, -1) for value in (log_alpha, beta, log_mu)),
        cut(jnp.ones(length, bool), -1) if ragged else None,
    )
    return (w, s), chunks


def advance(state, chunk, *, read):
    """:func:`chunk_step` as the body of a scan."""
    *arrays, valid = chunk
    o, w, s = chunk_step(*state, *arrays, read=read, valid=valid)
    return (w, s), o


def join_chunks(o, length):
    """``[n, ..., C, d] -> [..., T, d]``, without the padding."""
    o = jnp.moveaxis(o, 0, -3)
    o = o.reshape(*o.shape[:-3], -1, o.shape[-1])
    return o[..., :length, :]


def _triangles(size):
    """Lower-triangular masks with (``s <= t``) and without the diagonal."""
    row = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    return column <= row, column < row


def _total(logarithm, mask):
    """Sums over each row of ``mask``; TPU kernels have no cumulative sum."""
    return jnp.where(mask, logarithm[..., None, :], 0).sum(-1)


def _ratios(at, since, mask):
    """``exp(at_t - since_s)`` under ``mask``, else 0; exponents <= 0 there."""
    difference = at[..., :, None] - since[..., None, :]
    return jnp.where(mask, jnp.exp(jnp.where(mask, difference, 0)), 0)


def _exact(left, right):
    # Gates keep the digits that accelerators drop from products by default.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
