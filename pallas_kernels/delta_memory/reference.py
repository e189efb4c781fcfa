"""The delta-memory recurrence token by token: slow and simple.

All other implementations are tested against this one in float64. Source:
Behrouz et al., arXiv 2512.24695, eq. 88, 90, 93, in the notation of
:func:`pallas_kernels.delta_memory.delta_scan`.
"""

import jax
import jax.numpy as jnp


def delta_scan_reference(
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
    """Runs the recurrence one token at a time with ``jax.lax.scan``.

    Arguments and results are those of
    :func:`pallas_kernels.delta_memory.delta_scan`; ``chunk_size`` has an effect
    only with ``read="chunk"``. Works in any float dtype, without casts.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 1))
        >>> o, w, _ = delta_scan_reference(
        ...     jnp.zeros((1, 1)),
        ...     None,
        ...     one,
        ...     2 * one,
        ...     one,
        ...     jnp.zeros(1),
        ...     None,
        ...     read="after",
        ... )
        >>> float(o[0, 0]), float(w[0, 0])
        (2.0, 2.0)
    """
    momentum = log_mu is not None
    steps = x.shape[-2]
    batch = jnp.broadcast_shapes(
        w.shape[:-2], x.shape[:-2], g.shape[:-2], log_alpha.shape[:-1]
    )
    w = jnp.broadcast_to(w, batch + w.shape[-2:])
    if momentum:
        s = jnp.zeros_like(w) if s is None else jnp.broadcast_to(s, w.shape)

    def step(carry, token):
        w, s, start = carry
        i, x_t, g_t, q_t, alpha, beta_t, mu, fresh = token
        fresh = fresh[..., None, None] > 0
        w, start = jnp.where(fresh, 0, w), jnp.where(fresh, 0, start)
        s = jnp.where(fresh, 0, s)
        start = jnp.where(i % chunk_size == 0, w, start)
        write = x_t[..., :, None] * g_t[..., None, :]
        s = mu[..., None, None] * s + write if momentum else write
        recalled = jnp.einsum("...i,...ij->...j", x_t, w)
        erase = x_t[..., :, None] * recalled[..., None, :]
        after = alpha[..., None, None] * w - beta_t[..., None, None] * erase + s
        source = {"before": w, "after": after, "chunk": start}[read]
        o_t = jnp.einsum("...i,...ij->...j", q_t, source)
        return (after, s if momentum else carry[1], start), o_t

    zeros = jnp.zeros_like(log_alpha)
    mu = jnp.exp(log_mu) if momentum else zeros
    beta = zeros if beta is None else beta
    resets = zeros if resets is None else resets
    tokens = (
        jnp.arange(steps),
        jnp.moveaxis(x, -2, 0),
        jnp.moveaxis(g, -2, 0),
        jnp.moveaxis(q, -2, 0),
        jnp.moveaxis(jnp.exp(log_alpha), -1, 0),
        jnp.moveaxis(beta, -1, 0),
        jnp.moveaxis(mu, -1, 0),
        jnp.moveaxis(resets, -1, 0),
    )
    carry = (w, s if momentum else jnp.zeros((), w.dtype), w)
    (w, s, _), o = jax.lax.scan(step, carry, tokens)
    return jnp.moveaxis(o, 0, -2), w, (s if momentum else None)
