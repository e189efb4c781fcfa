"""The exact chunk-parallel form of the delta memory in plain ``jax.numpy``.

The recurrence is linear in the state, so the ``C`` tokens of a chunk take a few
matrix products and one unit-triangular inverse of width ``C``
(:mod:`pallas_kernels.delta_memory.inverse`); only chunks are sequential.
Without momentum this is the WY form of the gated delta rule (Yang et al.,
arXiv 2406.06484 and 2412.06464); momentum adds one more lower-triangular
matrix. Cost per chunk: ``O(C^2 (d_in + d_out) + C d_in d_out + C^3)``.

Ratios of gates are differences of cumulative logarithms, never quotients.
Gates below a fiftieth of the dtype's resolution are raised to it: they forget
as completely, and sums of logarithms keep their accuracy.
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
    resets=None,
    *,
    read="before",
    valid=None,
    inverse=unit_lower_inverse,
):
    """Advances a delta memory by one chunk; kernels run this function, too.

    Leading axes broadcast: with a size-1 axis in ``x`` and the gates, several
    memories in ``w`` and ``g`` share ``x x^T`` and the inverse.

    Args:
        w: weights before the chunk, ``[..., d_in, d_out]``.
        s: momentum before the chunk, like ``w``; ``None`` without ``log_mu``.
        x: keys, ``[..., C, d_in]``.
        g: writes, ``[..., C, d_out]``.
        q: queries, ``[..., C, d_in]``, or ``None`` to compute no output.
        log_alpha: logarithm of the retention, ``[..., C]``.
        beta: strength of the delta term, ``[..., C]``; ``None`` is zero.
        log_mu: logarithm of the momentum's decay, ``[..., C]``, or ``None``.
        resets: 1 for tokens before which both states become zero, else 0,
            ``[..., C]``; ``None`` without any.
        read: weights that ``q_t`` is multiplied with: ``"before"`` for
            ``W_{t-1}``, ``"after"`` for ``W_t``, ``"chunk"`` for those at the
            start of the chunk.
        valid: ``[..., C]``, False for padding, which changes nothing. Gates of
            1 and writes of 0 would not suffice: momentum moves the weights at
            every token.
        inverse: function that inverts ``I + L``, from
            :mod:`pallas_kernels.delta_memory.inverse`.

    Returns:
        ``(o, w, s)``: outputs ``[..., C, d_out]`` (``None`` without ``q``) and
        the state after the chunk.
    """
    dtype, acc = x.dtype, w.dtype
    now, past = triangles(x.shape[-2])
    eye = jnp.where(now & ~past, 1, 0).astype(acc)
    # Masks are reshaped as numbers: TPU kernels cannot reshape booleans.
    keep = None if valid is None else valid.astype(acc)
    fresh = None
    if resets is not None:
        # Nothing passes from one document to another: pairs of tokens are of
        # the same one, and the initial states are those of the first.
        number = _total(resets.astype(acc), now)
        same = number[..., :, None] == number[..., None, :]
        now, past = now & same, past & same
        fresh = jnp.where(number > 0, 0, 1).astype(acc)

    def initial(factor):
        return factor if fresh is None else factor * fresh

    def gate(logarithm):
        floor = float(np.log(jnp.finfo(acc).eps / 50))
        logarithm = jnp.maximum(logarithm.astype(acc), floor)
        return logarithm if keep is None else jnp.where(keep > 0, logarithm, 0)

    if keep is not None:
        g = jnp.where(keep[..., None] > 0, g, 0)
        beta = None if beta is None else jnp.where(keep > 0, beta, 0)

    # Barred letters of the formula are the coefficients, just before token t,
    # of W_0 (a), S_0 (b), earlier erasures (A) and earlier writes (c). After
    # token t each is multiplied by alpha_t and has its own term added.
    log_alpha = gate(log_alpha)
    alpha = jnp.exp(log_alpha)
    log_a_bar = _total(log_alpha, past)
    a_bar = initial(jnp.exp(log_a_bar))
    decay_bar = ratios(log_a_bar, _total(log_alpha, now), past)
    a = alpha * a_bar
    decay = alpha[..., None] * decay_bar + eye
    if log_mu is None:
        mixed_bar, mixed = decay_bar, decay
        b_bar = b = None
    else:
        log_m = _total(gate(log_mu), now)
        m = initial(jnp.exp(log_m))
        carry = ratios(log_m, log_m, now)  # R
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
        # Einsum would fold axes that one operand lacks into columns of the
        # other and transpose them back; batch axes stay in place.
        lead = jnp.broadcast_shapes(*(o.shape[:-2] for o in operands))
        wide = [jnp.broadcast_to(o, lead + o.shape[-2:]) for o in operands]
        return jnp.einsum(spec, *wide, preferred_element_type=acc)

    def gather(weights, a, b, mixed, similarity):
        """Product of ``weights`` with ``a W_0 + b S_0`` and earlier writes."""
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
        unsolved = gather(x, a_bar, b_bar, mixed_bar, gram)
        # N: what the memory recalls at x_t.
        recalled = dot("...ts,...sj->...tj", solve, unsolved)
        erased = (beta[..., None] * recalled).astype(dtype)

    o = None
    if q is not None and read == "chunk":
        o = dot("...ti,...ij->...tj", q, w_low)
        o = (o if fresh is None else fresh[..., None] * o).astype(dtype)
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
    w,
    s,
    x,
    g,
    q,
    log_alpha,
    beta,
    log_mu=None,
    resets=None,
    *,
    chunk_size=64,
    read="before",
):
    """Scans :func:`chunk_step` over a sequence of any length.

    Arguments and results are those of
    :func:`pallas_kernels.delta_memory.delta_scan`. The last chunk is padded.
    The backward pass keeps the state at the start of each chunk and recomputes
    the rest (``jax.checkpoint``).
    """
    length = x.shape[-2]
    arrays = w, s, x, g, q, log_alpha, beta, log_mu, resets
    state, chunks = cut_into_chunks(arrays, min(chunk_size, length))
    state, o = jax.lax.scan(
        jax.checkpoint(functools.partial(advance, read=read)), state, chunks
    )
    return join_chunks(o, length), *state


def cut_into_chunks(arrays, size, multiple=None):
    """Returns the state and the chunks of ``delta_scan``'s arrays.

    Args:
        arrays: ``delta_scan``'s arrays, in the order of its arguments.
        size: tokens per chunk.
        multiple: the tokens are padded to a multiple of this number, by
            default ``size``.

    Returns:
        ``(w, s)``, and the other arrays as ``[n, ..., size, ...]`` followed by
        the chunks' ``valid``, which is ``None`` without padding.
    """
    w, s, x, g, q, log_alpha, *gates = arrays
    log_mu = gates[1]
    length = x.shape[-2]
    multiple = size if multiple is None else multiple
    count = -(-length // multiple) * (multiple // size)
    batch = jnp.broadcast_shapes(
        w.shape[:-2], x.shape[:-2], g.shape[:-2], log_alpha.shape[:-1]
    )
    w = jnp.broadcast_to(w, batch + w.shape[-2:])
    if log_mu is not None:
        s = jnp.zeros_like(w) if s is None else jnp.broadcast_to(s, w.shape)
    ragged = count * size > length
    chunks = (
        *(cut(value, -2, size, count) for value in (x, g, q)),
        *(cut(value, -1, size, count) for value in (log_alpha, *gates)),
        cut(jnp.ones(length, bool), -1, size, count) if ragged else None,
    )
    return (w, s), chunks


def cut(value, axis, size, count):
    """Cuts a negative axis into padded chunks, which become the first axis.

    ``[..., T, ...] -> [count, ..., size, ...]``; ``None`` stays ``None``.
    """
    if value is None:
        return None
    pad = [(0, 0)] * value.ndim
    pad[axis] = (0, count * size - value.shape[axis])
    value = jnp.pad(value, pad)
    axis %= value.ndim
    shape = (*value.shape[:axis], count, size, *value.shape[axis + 1 :])
    return jnp.moveaxis(value.reshape(shape), axis, 0)


def advance(state, chunk, *, read):
    """Runs :func:`chunk_step` as the body of a scan."""
    *arrays, valid = chunk
    o, w, s = chunk_step(*state, *arrays, read=read, valid=valid)
    return (w, s), o


def join_chunks(o, length):
    """Joins chunks without their padding, ``[n, ..., C, d] -> [..., T, d]``."""
    o = jnp.moveaxis(o, 0, -3)
    o = o.reshape(*o.shape[:-3], -1, o.shape[-1])
    return o[..., :length, :]


def triangles(size):
    """Returns lower-triangular masks, ``s <= t`` and ``s < t``."""
    row = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    return column <= row, column < row


def _total(logarithm, mask):
    """Sums under each row of ``mask``; TPU kernels have no cumulative sum."""
    return jnp.where(mask, logarithm[..., None, :], 0).sum(-1)


def ratios(at, since, mask):
    """Returns ``exp(at_t - since_s)`` under ``mask``, else 0.

    Under the mask, exponents are at most 0.
    """
    difference = at[..., :, None] - since[..., None, :]
    return jnp.where(mask, jnp.exp(jnp.where(mask, difference, 0)), 0)


def _exact(left, right):
    # Accelerators reduce the precision of float32 products by default.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
