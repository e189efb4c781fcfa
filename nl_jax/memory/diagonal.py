r"""A matrix memory with a forgetting rate for each channel of its keys.

.. math::
    W_t = \operatorname{diag}(\alpha_t) W_{t-1}
    - b_t^\top (a_t W_{t-1}) + k_t^\top v_t, \qquad o_t = q_t W_t

in row vectors: gated linear attention (arXiv 2312.06635) without the middle
term, RWKV-7 (arXiv 2503.14456) with it. Exact and parallel inside a chunk, like
``delta_scan``, whose retention is a scalar per token. Decays are exponentials
of differences of cumulative logarithms, per channel, and cannot overflow;
chunks are short because this takes ``C^2 d_in`` numbers per chunk.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from nl_jax.array_typing import Keys, Values, Weight
from nl_jax.checks import check_count
from nl_jax.memory.walk import chunk_scan
from pallas_kernels.delta_memory import unit_lower_inverse


def diagonal_scan(
    w: Weight,
    k: Keys,
    v: Values,
    q: Keys,
    log_alpha: Keys,
    a: Keys | None = None,
    b: Keys | None = None,
    *,
    resets: Bool[Array, "... T"] | None = None,
    chunk_size: int = 16,
) -> tuple[Values, Weight]:
    """Runs the recurrence above over a sequence of any length.

    Args:
        w: initial weights ``[..., d_in, d_out]``, whose dtype the state has.
        k: keys written to, ``[..., T, d_in]``.
        v: values written, ``[..., T, d_out]``.
        q: queries, read after the write, ``[..., T, d_in]``.
        log_alpha: logarithms of the retention, at most 0, ``[..., T, d_in]``.
        a: keys whose values are erased, ``[..., T, d_in]``.
        b: keys to erase them from; ``None`` exactly if ``a`` is.
        resets: tokens before which the weights become zero, ``[..., T]``.
        chunk_size: tokens in parallel; results do not depend on it.

    Returns:
        ``(o, w)``, ``[..., T, d_out]`` and the final weights.

    Raises:
        ValueError: for a ``chunk_size`` below 1, or only one of ``a`` and
            ``b``.

    Example:
        >>> import jax.numpy as jnp
        >>> x, half = jnp.ones((2, 1)), jnp.log(jnp.full((2, 1), 0.5))
        >>> o, w = diagonal_scan(jnp.zeros((1, 1)), x, x, x, half)
        >>> o[:, 0].tolist()
        [1.0, 1.5]
    """
    check_count("chunk_size", chunk_size)
    if (a is None) != (b is None):
        raise ValueError("a and b are given together, or neither is")

    def step(w, chunk, *_):
        return _chunk(w, *chunk)

    resets = None if resets is None else resets[..., None]
    inputs = (k, v, q, log_alpha, a, b, resets)
    w, o = chunk_scan(step, w, inputs, size=chunk_size, axis=-2)
    return o, w


def _chunk(w, k, v, q, log_alpha, a, b, resets):
    acc, dtype = w.dtype, k.dtype
    size = k.shape[-2]
    floor = jnp.log(jnp.finfo(acc).eps / 50)
    log_alpha = jnp.maximum(log_alpha.astype(acc), floor)
    now = jnp.cumsum(log_alpha, -2)
    before = now - log_alpha
    # How many documents have begun in the chunk up to each token.
    number = None if resets is None else jnp.cumsum(resets, -2)

    def of(document, factor, at=number):
        """Returns ``factor`` of tokens of a document, 0 of others."""
        return factor if at is None else jnp.where(at == document, factor, 0)

    def overlap(rows, at, columns, strict):
        """``sum_i rows[t, i] exp(at[t, i] - now[s, i]) columns[s, i]``."""
        mask = jnp.tril(jnp.ones((size, size), bool), -1 if strict else 0)
        gap = at[..., :, None, :] - now[..., None, :, :]
        if number is not None:
            mask &= number == number.mT
        decay = jnp.exp(jnp.where(mask[..., None], gap, -jnp.inf))
        return jnp.einsum(
            "...ti,...tsi,...si->...ts", rows.astype(acc), decay, columns
        )

    def recall(rows, at):
        return (rows.astype(acc) * of(0, jnp.exp(at))) @ w

    k, v = k.astype(acc), v.astype(acc)
    last = None if number is None else number[..., -1:, :]
    left = of(last, jnp.exp(now[..., -1:, :] - now))
    o = recall(q, now) + overlap(q, now, k, False) @ v
    new = of(0, jnp.exp(now[..., -1, :, None]), last) * w
    new += (k * left).mT @ v
    if a is not None:
        b = b.astype(acc)
        seen = recall(a, before) + overlap(a, before, k, True) @ v
        held = unit_lower_inverse(overlap(a, before, b, True)) @ seen
        o = o - overlap(q, now, b, False) @ held
        new = new - (b * left).mT @ held
    return new, o.astype(dtype)
