r"""How levels of a continuum memory step while a model reads.

What a level has gathered since its last step, when it is due, and the step. A
level that descends, by any optax transformation, gathers the sum of its
gradients (eq. 71 of arXiv 2512.24695). One that takes delta gradient descent
(eq. 57) needs its layers' inputs too: for every matrix ``y = x W`` of the MLP,
every token and the slope :math:`\delta = \nabla_y L` at the weights of the
period's start,

.. math:: W \leftarrow W - \eta' x^\top (x W) - \eta' x^\top \delta,
   \qquad \eta' = \frac{\eta}{1 + \eta \|x\|^2},

token after token, in the chunk form of the delta memory; it gathers how far
that has taken ``W``. The input of ``gate`` and ``up`` is what the level reads,
that of ``down`` the hidden activations between them. Each factor is a
contraction, whatever the rate and the input.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.layers.continuum.cms_config import CMSConfig
from pallas_kernels.delta_memory import chunk_step

Probes = dict[str, tuple[jax.Array, jax.Array]]
"""For each matrix the inputs ``[B, blocks, T, d_in]`` and the slopes ``[B,
blocks, T, d_out]``."""


class Signal(NamedTuple):
    """What levels that adapt decide by, batch first."""

    since: jax.Array
    """Chunks since each slower level's last step, int32 ``[B, k - 1]``."""
    norms: jax.Array
    """Sum of the norms of what each has gathered from them, ``[B, k - 1]``."""
    steps: jax.Array
    """Steps that each has taken, int32 ``[B, k - 1]``."""
    loss: jax.Array
    """Running sum and weight of the chunks' losses, ``[B, 2]``."""


class CMSState(NamedTuple):
    """Fast state of the levels, batch first in every leaf."""

    fast: Any
    """Weights of each level, ``[B, blocks, d_in, d_out]`` of the blocks in
    which it learns."""
    gathered: Any
    """Gradients of each level since its last step, like ``fast``; with delta
    gradient descent what will be taken off its weights."""
    inner: Any
    """State of each level's optimizer."""
    start: Any
    """Nested levels: where all but the slowest return to, like ``fast``, and
    their gradients since."""
    tokens: Any
    """The unfinished chunk's tokens, int32 ``[B, C]`` (``next_token``)."""
    carry: Any
    """State of the mixers at the start of that chunk (``next_token``)."""
    position: jax.Array
    """Tokens since the slowest level's period began, int32 ``[B]``."""
    signal: Any = ()
    """Levels that adapt: a :class:`Signal`."""


def begin(config: CMSConfig, fast: Any, tokens: Any, carry: Any) -> CMSState:
    """Returns the state before the first token, from the initial weights."""
    zeros = jax.tree.map(jnp.zeros_like, fast)
    batch = len(jax.tree.leaves(fast)[0])
    signal: Any = ()
    if config.adaptive != "none":
        slower = batch, len(fast) - 1
        dtype = jax.tree.leaves(fast)[0].dtype
        signal = Signal(
            jnp.zeros(slower, jnp.int32),
            jnp.zeros(slower, dtype),
            jnp.zeros(slower, jnp.int32),
            jnp.zeros((batch, 2), dtype),
        )
    return CMSState(
        fast,
        zeros,
        tuple(map(_each(_init), config.optimizers, fast)),
        (fast[:-1], zeros[:-1]) if config.form == "nested" else (),
        tokens,
        carry,
        jnp.zeros((batch,), jnp.int32),
        signal,
    )


@jax.custom_vjp
def _probed_matmul(x, w, probe):
    del probe
    return x @ w


def _forward(x, w, probe):
    del probe
    return x @ w, (x, w)


def _backward(kept, slope):
    _, pull = jax.vjp(jnp.matmul, *kept)
    return (*pull(slope), (kept[0], slope))


_probed_matmul.defvjp(_forward, _backward)


def matmul(weights: Any, name: str, x: jax.Array) -> jax.Array:
    """Returns ``x W``; the gradient of a probe is ``x`` and the slope there."""
    w = weights[name].astype(x.dtype)
    if "probes" not in weights:
        return x @ w
    return _probed_matmul(x, w, weights["probes"][name])


def probed(config: CMSConfig, fast: Any, length: int, dtype: Any) -> Any:
    """Lays probes of ``length`` tokens in levels that need their inputs."""

    def lay(level):
        probes = {}
        for name, w in level.items():
            *lead, d_in, d_out = w.shape
            probes[name] = tuple(
                jnp.zeros((*lead, length, d), dtype) for d in (d_in, d_out)
            )
        return level | {"probes": probes}

    return tuple(
        lay(level) if delta else level
        for level, delta in zip(fast, config.deltas, strict=True)
    )


def writes(config: CMSConfig, gradient: Any) -> Any:
    """Picks what :func:`advance_levels` takes out of such a gradient."""
    if config.first_order:
        gradient = jax.lax.stop_gradient(gradient)
    return tuple(level.get("probes", level) for level in gradient)


def advance_levels(
    config: CMSConfig,
    rates: Any,
    new: Any,
    state: CMSState,
    count: Any,
    *,
    loss: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> CMSState:
    """Gathers what tokens of one chunk say; steps the levels that are then due.

    Args:
        config: of the levels.
        rates: of each level, ``[blocks]``.
        new: of each level, from :func:`writes`.
        state: before those tokens.
        count: how many there are in each row, ``[B]``, or in all.
        loss: mean of the chunk in each row, ``[B]``, for levels that adapt.
        valid: which of the probed places are tokens, ``[B, T]``; all.
    """
    position = state.position + count
    totals = [
        _gather(*level, valid)
        for level in zip(
            config.deltas, rates, new, state.fast, state.gathered, strict=True
        )
    ]
    reached = count > 0
    dues = [(position % period == 0) & reached for period in config.periods]
    signal = state.signal
    if config.adaptive != "none":
        dues, signal = _decide(config, dues, totals, state, loss)
    columns: tuple[list, list, list] = ([], [], [])
    for level, due in enumerate(dues):

        def step(weights, total, moments, level=level, due=due):
            direction, after = _direction(
                config.optimizers[level], total, moments, weights
            )
            rate = rates[level]
            if config.deltas[level]:  # Gathered with the rate in it.
                rate = jnp.ones_like(rate)
            moved = _descend(weights, direction, rate)
            return select_rows(
                due,
                (moved, jax.tree.map(jnp.zeros_like, total), after),
                (weights, total, moments),
            )

        def wait(weights, total, moments):
            return weights, total, moments

        now = (state.fast[level], totals[level], state.inner[level])
        if level or config.objective == "local":  # Only who is due pays.
            now = jax.lax.cond(jnp.any(due), step, wait, *now)
        else:
            now = step(*now)
        for out, part in zip(columns, now, strict=True):
            out.append(part)
    fast, gathered, inner = columns
    start = state.start
    if config.form == "nested":
        fast, inner, start = _return_to_start(
            config, rates, dues, new, fast, inner, start
        )
    return state._replace(
        fast=tuple(fast),
        gathered=tuple(gathered),
        inner=tuple(inner),
        start=start,
        position=position % config.periods[-1],
        signal=signal,
    )


def _gather(delta, rate, new, weights, gathered, valid):
    if not delta:
        return jax.tree.map(jnp.add, gathered, new)
    keep = None if valid is None else valid[:, None]

    def one(w, gone, x, slope):
        x, slope = x.astype(w.dtype), slope.astype(w.dtype)
        eta = rate[:, None]
        beta = eta / (1 + eta * jnp.square(x).sum(-1))
        _, after, _ = chunk_step(
            w - gone,
            None,
            x,
            -beta[..., None] * slope,
            None,
            jnp.zeros_like(beta),
            beta,
            valid=keep,
        )
        return w - after

    return {
        name: one(w, gathered[name], *new[name]) for name, w in weights.items()
    }


def _decide(config, dues, totals, state, loss):
    """Replaces the grid of all but the fastest level by its signal.

    No gradient flows through when a level steps, only through what is written.
    """
    signal = state.signal
    loss, totals, before = jax.lax.stop_gradient((loss, totals, state.gathered))
    since = signal.since + 1
    added, sums = [], []
    for total, old in zip(totals[1:], before[1:], strict=True):
        added.append(_row_norm(jax.tree.map(jnp.subtract, total, old)))
        sums.append(_row_norm(total))
    norms = signal.norms + jnp.stack(added, 1)
    if config.adaptive == "coherence":
        high = jnp.stack(sums, 1) >= config.threshold * norms
    else:
        total, weight = signal.loss.T
        high = (weight > 0) & (loss * weight > config.threshold * total)
        high = high[:, None]
    most = jnp.array(config.periods[1:]) // config.periods[0]
    due = ((since >= config.least) & high) | (since >= most)
    seen = jnp.stack([loss, jnp.ones_like(loss)], 1).astype(signal.loss.dtype)
    return [dues[0], *due.T], Signal(
        jnp.where(due, 0, since),
        jnp.where(due, 0, norms),
        signal.steps + due,
        _KEPT * signal.loss + (1 - _KEPT) * seen,
    )


_KEPT = 0.9
"""Of the running mean of losses, by chunk."""


def _row_norm(tree):
    return jax.vmap(optax.tree.norm)(tree)


def _return_to_start(config, rates, dues, new, fast, inner, start):
    """Where a slower level stepped, the next faster one begins anew (72).

    It begins from where the slower level's rate and all the gradients of its
    period have moved its start (first-order MAML).
    """
    points, sums = start
    points, sums, fast, inner = map(list, (points, sums, fast, inner))
    for level, point in enumerate(points):
        due = dues[level + 1]
        total = jax.tree.map(jnp.add, sums[level], new[level])
        moved = _descend(point, total, rates[level + 1])
        none = jax.tree.map(jnp.zeros_like, total)
        fresh = _each(_init)(config.optimizers[level], moved)
        points[level], sums[level], fast[level], inner[level] = select_rows(
            due,
            (moved, none, moved, fresh),
            (point, total, fast[level], inner[level]),
        )
    return fast, inner, (tuple(points), tuple(sums))


def _each(function):
    """Maps ``function(optimizer, *trees)`` over rows and blocks."""

    def run(optimizer, *trees):
        one = lambda *args: function(optimizer, *args)  # noqa: E731
        return jax.vmap(jax.vmap(one))(*trees)

    return run


def _init(optimizer, weights):
    return optimizer.init(weights)


@_each
def _direction(optimizer, gradient, state, weights):
    return optimizer.update(gradient, state, weights)


def _descend(weights, direction, rate):
    rate = rate[None, :, None, None]
    return jax.tree.map(lambda w, g: w - rate * g, weights, direction)


def select_rows(due, new, old):
    """Rows of ``new`` where ``due``, ``[B]``, else of ``old``."""

    def pick(a, b):
        return jnp.where(due.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)
