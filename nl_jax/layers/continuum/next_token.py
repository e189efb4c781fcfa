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

import jax
import jax.numpy as jnp
import optax

from nl_jax.layers.continuum.module import ContinuumMemory
from nl_jax.layers.continuum.steps import (
    CMSState,
    advance_levels,
    begin,
    probed,
    select_rows,
    writes,
)
from nl_jax.memory.walk import remat_scan


def initial_state(config, params, mixers, batch_size) -> CMSState:
    """Returns the state before the first token."""
    fast = jax.tree.map(
        lambda a: jnp.broadcast_to(a, (batch_size, *a.shape)),
        ContinuumMemory.initial_fast(
            params["blocks"]["cms"], config.cms, config.n_layers
        ),
    )
    if config.cms.objective == "local":
        return begin(config.cms, fast, (), ())
    tokens = jnp.zeros((batch_size, config.cms.periods[0]), jnp.int32)
    return begin(config.cms, fast, tokens, mixers)


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


def _differentiate(model, params, tokens, mixers, fast):
    """What a whole chunk's loss writes, that loss, its logits and carry."""
    config = model.config

    def loss(fast):
        logits, after = model.forward(
            params, tokens, mixers, fast, aligned=True
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], tokens[:, 1:]
        )
        return losses.sum(), (losses.mean(1), logits, after)

    fast = probed(config.cms, fast, tokens.shape[1], jnp.dtype(config.dtype))
    gradient, out = jax.grad(loss, has_aux=True)(fast)
    return writes(config.cms, gradient), *out


def _close(model, params, new, loss, cms):
    """Ends a chunk."""
    config = model.config.cms
    _, rates = model.fast_parameters(params)
    return advance_levels(config, rates, new, cms, config.periods[0], loss=loss)


def _read_chunks(model, params, tokens, mixers, cms):
    """Whole chunks from the start of a chunk on, in every row."""
    batch, chunk = tokens.shape[0], model.config.cms.periods[0]

    def step(carry, chunk_tokens):
        mixers, cms = carry
        new, loss, logits, mixers = _differentiate(
            model, params, chunk_tokens, mixers, cms.fast
        )
        return (mixers, _close(model, params, new, loss, cms)), logits

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
            new, loss, _, _ = _differentiate(
                model, params, cms.tokens, cms.carry, cms.fast
            )
            begun = cms._replace(position=cms.position - place)
            closed = _close(model, params, new, loss, begun)
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
