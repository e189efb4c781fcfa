r"""Levels that learn in context from the model's own next-token loss.

The continuum memory of arXiv 2512.24695, section 7.1, with knowledge transfer
by backpropagation: after each chunk of :math:`C^{(1)}` tokens the loss on the
chunk's own tokens is differentiated with respect to the levels' weights, and a
level whose period ends takes the step

.. math:: \theta^{(\ell)} \leftarrow \theta^{(\ell)} - \eta^{(\ell)}
   \sum \nabla L(\theta; x_t)

over its tokens (71). Training differentiates through these steps (second
order). The inner gradient flows through the mixers inside the chunk and stops
at the carry from before it; the outer gradient flows through everything.

The first target of a chunk was predicted in the chunk before and is left out,
so a chunk's loss has ``C - 1`` terms and is known once its last token is read.
A call may end inside a chunk: the state then holds the unfinished chunk's
tokens and the carry at its start, and the chunk is replayed once, when it
closes, for its gradient. Any split of a stream gives the same numbers.

Cost: a chunk is read once forward and once backward while reading, against one
forward for the static network; training differentiates both, and keeps fast
weights of a number of chunks that grows with the root of the length. Each row
of the batch has its own copy of every fast weight.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.layers import ContinuumMemory
from nl_jax.remat import remat_scan

__all__ = ["CMSState", "initial_state", "read", "select_rows"]


class CMSState(NamedTuple):
    """Fast state of the levels, batch first in every leaf."""

    fast: Any
    """Weights of each level, ``[B, n_fast, d_in, d_out]``."""
    gathered: Any
    """Gradients of each level since its last step, like ``fast``."""
    inner: Any
    """State of each level's optimizer."""
    start: Any
    """Nested levels: where all but the slowest return to, like ``fast``, and
    their gradients since."""
    tokens: jax.Array
    """The unfinished chunk's tokens, int32 ``[B, C]``."""
    carry: Any
    """State of the mixers at the start of the unfinished chunk."""
    position: jax.Array
    """Tokens since the slowest level's last step, int32 ``[B]``."""


def initial_state(config, params, mixers, batch_size) -> CMSState:
    """Returns the state before the first token."""
    slow = config.n_layers - (config.cms.layers or config.n_layers)
    stack = jax.tree.map(lambda a: a[slow:], params["blocks"]["cms"])
    fast = jax.tree.map(
        lambda a: jnp.broadcast_to(a, (batch_size, *a.shape)),
        ContinuumMemory.initial_fast(stack, config.cms),
    )
    nested = config.cms.form == "nested"
    return CMSState(
        fast,
        jax.tree.map(jnp.zeros_like, fast),
        tuple(map(_each(_init), config.cms.optimizers, fast)),
        (fast[:-1], jax.tree.map(jnp.zeros_like, fast[:-1])) if nested else (),
        jnp.zeros((batch_size, config.cms.periods[0]), jnp.int32),
        mixers,
        jnp.zeros((batch_size,), jnp.int32),
    )


def read(model, params, tokens, mixers, cms, *, fresh):
    """Reads tokens while the levels learn; see ``LanguageModel.apply``.

    Args:
        model: the ``LanguageModel``.
        params: slow parameters.
        tokens: ids ``[B, T]``.
        mixers: state of the mixers now.
        cms: state of the levels.
        fresh: whether no token was read before, known at trace time.

    Returns:
        ``(logits, mixers, cms)``.
    """
    length, chunk = tokens.shape[1], model.config.cms.periods[0]
    whole = length // chunk * chunk
    if fresh and not whole:
        return _begin_chunk(model, params, tokens, mixers, cms)
    if not whole:
        return _read_tokens(model, params, tokens, mixers, cms)

    def by_chunks(mixers, cms):
        return _read_chunks(model, params, tokens[:, :whole], mixers, cms)

    if fresh:
        logits, mixers, cms = by_chunks(mixers, cms)
        if whole < length:
            rest = tokens[:, whole:]
            more, mixers, cms = _begin_chunk(model, params, rest, mixers, cms)
            logits = jnp.concatenate([logits, more], 1)
        return logits, mixers, cms

    def one_by_one(mixers, cms):
        return _read_tokens(model, params, tokens[:, :whole], mixers, cms)

    logits, mixers, cms = jax.lax.cond(
        jnp.all(cms.position % chunk == 0), by_chunks, one_by_one, mixers, cms
    )
    if whole < length:
        more, mixers, cms = _read_tokens(
            model, params, tokens[:, whole:], mixers, cms
        )
        logits = jnp.concatenate([logits, more], 1)
    return logits, mixers, cms


def _loss_gradient(model, params, tokens, mixers, fast):
    """Gradient of a whole chunk's loss, with its logits and carry."""

    def loss(fast):
        logits, after = model.forward(
            params, tokens, mixers, fast, aligned=True
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], tokens[:, 1:]
        )
        return losses.sum(), (logits, after)

    gradient, out = jax.grad(loss, has_aux=True)(fast)
    if model.config.cms.first_order:
        gradient = jax.lax.stop_gradient(gradient)
    return gradient, out


def _close(model, params, gradient, cms):
    """Adds a chunk's gradient and steps the levels whose period ends here."""
    config = model.config.cms
    _, rates = model.fast_parameters(params)
    position = cms.position + config.periods[0]
    fast, gathered, inner = [], [], []
    dues = [position % period == 0 for period in config.periods]
    for level, due in enumerate(dues):
        total = jax.tree.map(jnp.add, cms.gathered[level], gradient[level])

        def step(weights, total, state, level=level, due=due):
            direction, moved = _direction(
                config.optimizers[level], total, state, weights
            )
            new = _descend(weights, direction, rates[level])
            return select_rows(
                due,
                (new, jax.tree.map(jnp.zeros_like, total), moved),
                (weights, total, state),
            )

        def wait(weights, total, state):
            return weights, total, state

        now = (cms.fast[level], total, cms.inner[level])
        if level:  # Only levels that are due pay.
            now = jax.lax.cond(jnp.any(due), step, wait, *now)
        else:
            now = step(*now)
        for out, part in zip((fast, gathered, inner), now, strict=True):
            out.append(part)
    start = cms.start
    if config.form == "nested":
        fast, inner, start = _return_to_start(
            config, rates, dues, gradient, fast, inner, start
        )
    return cms._replace(
        fast=tuple(fast),
        gathered=tuple(gathered),
        inner=tuple(inner),
        start=start,
        position=position % config.periods[-1],
    )


def _return_to_start(config, rates, dues, gradient, fast, inner, start):
    """Where a slower level stepped, the next faster one begins anew (72).

    It begins from where the slower level's rate and all the gradients of its
    period have moved its start (first-order MAML).
    """
    points, sums = start
    points, sums, fast, inner = map(list, (points, sums, fast, inner))
    for level, point in enumerate(points):
        due = dues[level + 1]
        total = jax.tree.map(jnp.add, sums[level], gradient[level])
        moved = _descend(point, total, rates[level + 1])
        none = jax.tree.map(jnp.zeros_like, total)
        new = _each(_init)(config.optimizers[level], moved)
        points[level], sums[level], fast[level], inner[level] = select_rows(
            due,
            (moved, none, moved, new),
            (point, total, fast[level], inner[level]),
        )
    return fast, inner, (tuple(points), tuple(sums))


def _each(function):
    """Maps ``function(optimizer, *trees)`` over rows and layers."""

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


def _read_chunks(model, params, tokens, mixers, cms):
    """Whole chunks from the start of a chunk on, in every row."""
    batch, chunk = tokens.shape[0], model.config.cms.periods[0]

    def step(carry, chunk_tokens):
        mixers, cms = carry
        gradient, (logits, mixers) = _loss_gradient(
            model, params, chunk_tokens, mixers, cms.fast
        )
        return (mixers, _close(model, params, gradient, cms)), logits

    chunks = tokens.reshape(batch, -1, chunk).swapaxes(0, 1)
    # The carry at the start of the unfinished chunk is set after the scan.
    light = cms._replace(carry=None)
    (mixers, light), logits = remat_scan(step, (mixers, light), chunks)
    logits = logits.swapaxes(0, 1).reshape(batch, tokens.shape[1], -1)
    return logits, mixers, light._replace(carry=mixers)


def _begin_chunk(model, params, tokens, mixers, cms):
    """Part of a chunk from its start on, in every row; nothing closes."""
    length = tokens.shape[1]
    logits, mixers = model.forward(
        params, tokens, mixers, cms.fast, aligned=True
    )
    held = cms.tokens.at[:, :length].set(tokens)
    return (
        logits,
        mixers,
        cms._replace(tokens=held, position=cms.position + length),
    )


def _read_tokens(model, params, tokens, mixers, cms):
    """Token by token, from anywhere, rows at different positions."""
    config = model.config.cms
    chunk = config.periods[0]

    def step(carry, token):
        mixers, cms = carry
        logits, mixers = model.forward(params, token[:, None], mixers, cms.fast)
        place = cms.position % chunk
        held = jax.vmap(lambda row, at, new: row.at[at].set(new))(
            cms.tokens, place, token
        )
        due = place == chunk - 1
        cms = cms._replace(tokens=held)

        def close(mixers, cms):
            gradient, _ = _loss_gradient(
                model, params, cms.tokens, cms.carry, cms.fast
            )
            begun = cms._replace(position=cms.position - place)
            closed = _close(model, params, gradient, begun)
            closed = closed._replace(carry=mixers)
            waiting = cms._replace(position=cms.position + 1)
            return select_rows(due, closed, waiting)

        def wait(mixers, cms):
            del mixers
            return cms._replace(position=cms.position + 1)

        cms = jax.lax.cond(jnp.any(due), close, wait, mixers, cms)
        return (mixers, cms), logits[:, 0]

    if tokens.shape[1] == 1:
        (mixers, cms), logits = step((mixers, cms), tokens[:, 0])
        return logits[:, None], mixers, cms
    (mixers, cms), logits = remat_scan(
        step, (mixers, cms), tokens.swapaxes(0, 1)
    )
    return logits.swapaxes(0, 1), mixers, cms
