r"""Learning rules that need the weights at every single token.

Gradients are taken at the start of the chunk, but writes are not sums that the
delta memory could read:

.. math::
    S_t &= \mu_t S_{t-1} - \eta_t \sum_{i = t-c+1}^{t} \gamma_i
        \nabla \mathcal{L}(M; k_i, v_i) \\
    A_t &= \mathrm{after}(\alpha_t A_{t-1} - \ldots + O(S_t)), \qquad
    W_t = \mathrm{weights}(A_t)

with a window of ``c`` tokens (Omega rule, ATLAS, arXiv 2505.23735, eq. 9-11; NL
eq. 68), an orthogonalised step (Muon, its eq. 32-33, with the step size
outside: :math:`\eta_t O(S_t)`) and retention that is not a factor (MIRAS, arXiv
2504.13173). Takes ``C d_in d_out`` numbers per chunk and layer; the delta
memory's chunk form takes ``C^2``.
"""

import jax
import jax.numpy as jnp

from nl_jax.memory.rule import Gates
from nl_jax.memory.state import MemoryState, Pairs
from pallas_kernels.newton_schulz import newton_schulz


def advance_by_token(
    architecture,
    objective,
    rule,
    retention,
    state,
    k,
    v,
    q,
    gates,
    *,
    read="before",
    valid=None,
    closes=True,
):
    """Writes tokens of one chunk into a memory and reads it causally.

    Arguments and results are those of
    :func:`nl_jax.memory.chunk_wise.advance_by_chunk`, except that ``valid`` is
    ``[T]`` and that keys ``k``, values ``v``, a ``rule`` and a ``retention``
    take the place of its ``writes``.
    """
    length, n = k.shape[-2], len(state.weights)
    valid = jnp.ones(length, bool) if valid is None else valid
    share = jnp.ones_like(gates.eta) if gates.share is None else gates.share
    pairs = Pairs(k, v, jnp.where(valid, share, 0), gates.threshold)
    held = state.window
    if held is not None:
        pairs, held = _look_back(held, pairs, valid)
    start = tuple(map(retention.weights, state.start))
    writes = rule.writes(
        architecture,
        objective,
        start,
        pairs.k,
        pairs.v,
        Gates(pairs.share, pairs.share, threshold=pairs.threshold),
    )
    eta = gates.eta
    gradients = tuple(_sum_window(w, rule.window, length) for w in writes)
    if not rule.orthogonal:
        step = eta
        if rule.normalized and gates.log_mu is not None:
            step = -jnp.expm1(gates.log_mu) * eta
        gradients = tuple(step[..., None, None] * g for g in gradients)

    # Time axis first, for the scans over tokens.
    gradients = jax.tree.map(lambda a: jnp.moveaxis(a, -3, 0), gradients)
    eta_first = jnp.moveaxis(eta, -1, 0)[..., None, None]
    moves, momentum = gradients, None
    if state.momentum is not None:
        momentum, moves = _accumulate(
            state.momentum, gradients, gates.log_mu, valid
        )
    if rule.orthogonal:
        scale = eta_first / (n if rule.normalized else 1)
        moves = tuple(scale * newton_schulz(s) for s in moves)

    deltas = tuple(
        None
        if w.beta is None
        else (
            jnp.moveaxis(w.x, -2, 0).astype(eta.dtype),
            jnp.moveaxis(w.beta * eta, -1, 0)[..., None],
        )
        for w in writes
    )
    alphas = tuple(
        jnp.moveaxis(_kept_share(gates.log_alpha, i, retention), -3, 0)
        for i in range(n)
    )

    def write(kept, token):
        moves, deltas, alphas, eta, valid = token
        after = []
        for w, move, delta, alpha in zip(
            kept, moves, deltas, alphas, strict=True
        ):
            new = alpha * w + move
            if delta is not None:
                x, beta = delta
                seen = jnp.einsum("...i,...ij->...j", x, w)
                new = new - x[..., :, None] * (beta * seen)[..., None, :]
            new = retention.after(new, eta)
            after.append(jnp.where(valid, new, w).astype(w.dtype))
        return tuple(after), tuple(after)

    kept, trail = jax.lax.scan(
        write, state.weights, (moves, deltas, alphas, eta_first, valid)
    )
    o = None
    if q is not None and read == "chunk":
        o = architecture.apply(start, q)
    elif q is not None:
        if read == "before":
            trail = jax.tree.map(
                lambda first, a: jnp.concatenate([first[None], a[:-1]]),
                state.weights,
                trail,
            )
        layers = [_changing(retention.weights(a)) for a in trail]
        o = architecture.forward(layers, q)
    after = MemoryState(state.start, kept, momentum, held)
    return o, after.closed(closes)


def _sum_window(write, window, length):
    """Each token's write, ``[..., T, d_in, d_out]``, in the state's dtype.

    ``write`` begins ``window - 1`` tokens earlier.
    """
    wide = jnp.promote_types(write.x.dtype, jnp.float32)
    x, g = write.x.astype(wide), write.g.astype(wide)
    if window == 1:
        return x[..., :, None] * g[..., None, :]
    lag = jnp.arange(length)[:, None] + window - 1 - jnp.arange(x.shape[-2])
    inside = ((lag >= 0) & (lag < window)).astype(wide)
    return jnp.matmul(
        (inside[..., None] * x[..., None, :, :]).mT, g[..., None, :, :]
    )


def _look_back(held, pairs, valid):
    """Prepends the previous tokens to a piece that may have empty slots."""
    first = jnp.argmax(valid)
    end = first + valid.sum()

    def join(old, new, axis):
        size = old.shape[axis]
        both = jnp.concatenate(
            [jnp.zeros_like(old), new.astype(old.dtype)], axis
        )
        both = jax.lax.dynamic_update_slice_in_dim(both, old, first, axis)
        return both, jax.lax.dynamic_slice_in_dim(both, end, size, axis)

    axes = (-2, -2, -1, None if pairs.threshold is None else -1)
    joined = [
        (None, None) if axis is None else join(old, new, new.ndim + axis)
        for old, new, axis in zip(held, pairs, axes, strict=True)
    ]
    both, later = zip(*joined, strict=True)
    return Pairs(*both), Pairs(*later)


def _accumulate(momentum, gradients, log_mu, valid):
    mu = jnp.moveaxis(jnp.exp(log_mu), -1, 0)[..., None, None]

    def step(s, token):
        g, mu, valid = token
        s = jax.tree.map(
            lambda s, g: jnp.where(valid, mu * s + g, s).astype(s.dtype), s, g
        )
        return s, s

    return jax.lax.scan(step, momentum, (gradients, mu, valid))


def _kept_share(log_alpha, layer, retention):
    """``[..., T, 1 or d_in, 1]``; later layers use the channels' mean."""
    if not retention.channels:
        return jnp.exp(log_alpha)[..., None, None]
    if layer:
        return jnp.exp(log_alpha.mean(-1))[..., None, None]
    return jnp.exp(log_alpha)[..., None]


def _changing(weights):
    """A layer with a different matrix at every token, time axis first."""
    weights = jnp.moveaxis(weights, 0, -3)

    def call(h):
        y = jnp.einsum("...ti,...tij->...tj", h.astype(weights.dtype), weights)
        return y.astype(h.dtype)

    return call
