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

Whole chunks are one ``chunk_scan``. A call that begins within a chunk reads
token by token, with a ``cond`` that replays the chunk when it ends: the
gradient needs one forward pass through the whole chunk, so it cannot be summed
over parts. Whether all rows are at a boundary is known only at run time, hence
the ``cond`` between the two ways.

With documents in the rows, ``lay`` cuts each at its own chunks. A piece is read
from the carry with the tokens that the state holds of its chunk in front of its
own: levels have the same weights throughout a chunk, so nothing changes. What
comes after a document's tokens changes no logits of theirs, and the mixers'
state behind an unfinished chunk is computed once, at the end of the call.

Cost: a chunk is read once forward and once backward while reading, against one
forward for the static network; training differentiates both, and keeps fast
weights of a number of chunks that grows with the root of the length. Each row
of the batch has its own copy of every fast weight.
"""

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import require
from nl_jax.layers.continuum.cms_objective import CMSObjective
from nl_jax.layers.continuum.probes import probed, writes
from nl_jax.layers.continuum.steps import advance_levels, begin
from nl_jax.memory.packed import goes_on, lay
from nl_jax.memory.walk import chunk_scan
from nl_jax.nested.level import select_rows


class NextToken(CMSObjective):
    """The model's own loss on the tokens of each chunk."""

    name = "next_token"
    replays = True
    adapts = True

    def check(self, config):
        """Raises ``ValueError`` for chunks too short to hold a target."""
        require(
            config.periods[0] >= 2,
            f"{config.shown_periods}: with objective='next_token' the fastest "
            "must be at least 2 tokens, one of them a target",
        )

    def initial_state(self, config, fast, mixers):
        """Returns a state with an empty chunk whose carry is ``mixers``."""
        batch = len(jax.tree.leaves(fast)[0])
        tokens = jnp.zeros((batch, config.periods[0]), jnp.int32)
        return begin(config, fast, tokens, mixers)

    def read(self, reader, tokens, mixers, cms, *, fresh, packed=None):
        """Reads tokens; see :meth:`CMSObjective.read`."""
        length, chunk = tokens.shape[1], reader.config.periods[0]
        if packed is not None:
            logits, *after = _read_documents(
                reader, tokens, mixers, cms, packed
            )
            return packed.restore(logits), *after
        if fresh:
            return _read_chunks(reader, tokens, mixers, cms)
        whole = length // chunk * chunk
        parts = []
        if whole:
            logits, mixers, cms = jax.lax.cond(
                jnp.all(cms.position % chunk == 0),
                lambda *now: _read_chunks(reader, tokens[:, :whole], *now),
                lambda *now: _read_tokens(reader, tokens[:, :whole], *now),
                mixers,
                cms,
            )
            parts.append(logits)
        if whole < length:
            logits, mixers, cms = _read_tokens(
                reader, tokens[:, whole:], mixers, cms
            )
            parts.append(logits)
        return jnp.concatenate(parts, 1), mixers, cms

    def drop_chunk(self, config, cms, mixers):
        """Drops the tokens of the unfinished chunk, and its old carry."""
        position = cms.position - cms.position % config.periods[0]
        return cms._replace(carry=mixers, position=position)


NEXT_TOKEN = NextToken()


def _close(reader, tokens, mixers, cms, count=None, closes=None):
    """Reads a whole chunk and advances the levels by its gradient.

    With documents, each row holds ``count`` tokens, and only rows that are
    full, ``closes``, advance; the others return ``mixers`` as they were.
    """
    config, before = reader.config, mixers

    def loss(fast):
        logits, after, _ = reader.forward(tokens, mixers, fast, True)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], tokens[:, 1:]
        )
        if closes is not None:
            losses = jnp.where(closes[:, None], losses, 0)
        return losses.sum(), (losses.mean(1), logits, after)

    fast = probed(config, cms.fast, tokens.shape[1], reader.dtype)
    gradient, (mean, logits, mixers) = jax.grad(loss, has_aux=True)(fast)
    new, valid = writes(config, gradient), None
    if closes is not None:
        mixers = select_rows(closes, mixers, before)
        valid = jnp.broadcast_to(closes[:, None], tokens.shape)
    count = config.periods[0] if count is None else count
    cms = advance_levels(
        config, reader.rates, new, cms, count, loss=mean, valid=valid
    )
    return logits, mixers, cms


def _read_documents(reader, tokens, mixers, cms, packed):
    """Reads tokens piece by piece, or token by token if too many would be."""
    chunk = reader.config.periods[0]
    layout = lay(packed, cms.position, chunk)
    length = tokens.shape[1]

    def step(cms, piece, valid, closes):
        place = cms.position % chunk
        held = jnp.where(valid, piece, cms.tokens)
        count = place + valid.sum(1, dtype=jnp.int32)
        begun = cms._replace(tokens=held, position=cms.position - place)
        logits, carry, cms = _close(
            reader, held, cms.carry, begun, count, closes
        )
        return cms._replace(carry=carry), logits

    def by_piece(mixers, cms):
        del mixers
        cms, logits = chunk_scan(
            step,
            cms,
            tokens,
            size=chunk,
            axis=1,
            remat=None,
            layout=layout._replace(late=None),
            initial=reader.initial.cms,
        )
        open_tokens = goes_on(cms.position % chunk, chunk)
        mixers = jax.lax.cond(
            jnp.any(open_tokens.lengths > 0),
            lambda: reader.forward(
                cms.tokens, cms.carry, cms.fast, True, open_tokens
            )[1],
            lambda: cms.carry,
        )
        return logits, mixers, cms

    def by_token(mixers, cms):
        return _read_tokens(reader, tokens, mixers, cms, packed)

    if layout.pieces == length:
        return by_token(mixers, cms)
    # Each branch would also fill in what the other keeps for its gradient.
    by_token = jax.checkpoint(by_token, prevent_cse=False)
    many = jnp.any(jnp.asarray(layout.late))
    return jax.lax.cond(many, by_token, by_piece, mixers, cms)


def _read_chunks(reader, tokens, mixers, cms):
    """Reads tokens from a chunk's start, the same in every row."""
    chunk = reader.config.periods[0]

    def step(state, piece, valid, closes):
        del valid
        mixers, cms = state
        if closes:
            logits, mixers, cms = _close(reader, piece, mixers, cms)
            return (mixers, cms), logits
        count = piece.shape[1]
        logits, after, _ = reader.forward(piece, mixers, cms.fast, True)
        cms = cms._replace(
            tokens=cms.tokens.at[:, :count].set(piece),
            carry=mixers,
            position=cms.position + count,
        )
        return (after, cms), logits

    # The carry of the unfinished chunk is set after the scan.
    light = cms._replace(carry=None)
    (mixers, cms), logits = chunk_scan(
        step, (mixers, light), tokens, size=chunk, axis=1, remat=None
    )
    if tokens.shape[1] % chunk == 0:
        cms = cms._replace(carry=mixers)
    return logits, mixers, cms


def _read_tokens(reader, tokens, mixers, cms, packed=None):
    """Reads token by token, rows at any positions."""
    chunk = reader.config.periods[0]

    def step_document(carry, inputs, *_):
        token, starts, valid = inputs
        before = select_rows(starts[:, 0], tuple(reader.initial[:2]), carry)
        after, logits = step(before, token)
        return select_rows(valid[:, 0], after, before), logits

    def step(carry, token, *_):
        mixers, cms = carry
        logits, mixers, _ = reader.forward(token, mixers, cms.fast, False)
        place = cms.position % chunk
        held = jax.vmap(lambda row, at, new: row.at[at].set(new))(
            cms.tokens, place, token[:, 0]
        )
        due = place == chunk - 1
        waiting = cms._replace(tokens=held, position=cms.position + 1)

        def close(mixers, waiting):
            begun = waiting._replace(position=cms.position - place)
            _, _, closed = _close(reader, held, waiting.carry, begun)
            return select_rows(due, closed._replace(carry=mixers), waiting)

        def wait(mixers, waiting):
            del mixers
            return waiting

        cms = jax.lax.cond(jnp.any(due), close, wait, mixers, waiting)
        return (mixers, cms), logits

    carry, inputs, read = (mixers, cms), tokens, step
    if packed is not None:
        inputs, read = (tokens, packed.starts, packed.valid), step_document
    if tokens.shape[1] == 1:
        (mixers, cms), logits = read(carry, inputs)
    else:
        (mixers, cms), logits = chunk_scan(
            read, carry, inputs, size=1, axis=1, remat=None
        )
    return logits, mixers, cms
