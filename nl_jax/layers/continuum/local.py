r"""Levels that learn from their own layer's input alone.

As in test-time training (TTT, arXiv 2407.04620; LaCT, arXiv 2505.23884): with
the level's normalised input :math:`h_t`, a key and a value

.. math:: k_t = \mathrm{rms}(h_t W_K), \quad v_t = \mathrm{rms}(h_t W_V),
   \quad L_t = \tfrac{1}{2 D} \| \mathrm{MLP}(k_t) - v_t \|^2, \quad
   y_t = \mathrm{MLP}(h_t),

the level steps at the end of its period by the sum of :math:`\nabla L_t`. The
input itself is the query, so that at rate 0 the output is that of the static
MLP. The mean over the ``D`` channels makes a rate mean the same at any width.
No gradient of the model is needed: a layer reads a whole sequence before the
next one does, and all mixers stay parallel in time. The outer gradient flows
through every inner step, into :math:`W_K` and :math:`W_V`, which learn by
nothing else.

Tokens of a chunk of the fastest level meet the same weights, so their gradients
are a sum and may come in any number of calls: nothing is read twice. A call
that does not know that it stands at a chunk's start lays its tokens on the grid
of chunks, which takes up to one more chunk than the tokens fill.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.layers.continuum.cms_config import CMSConfig
from nl_jax.layers.continuum.steps import (
    CMSState,
    advance_levels,
    probed,
    writes,
)
from nl_jax.layers.norms import rms_norm
from nl_jax.memory.walk import remat_scan


class LocalLevel(NamedTuple):
    """The slow part of a level."""

    mlp: Callable[[Any, jax.Array], jax.Array]
    """Of weights and inputs."""
    norm: Callable[[jax.Array], jax.Array]
    """In front of it."""
    weights: dict[str, jax.Array]
    """Its weights, those that do not become fast among them."""
    key: jax.Array
    value: jax.Array
    """Projections, ``[D, D]``."""
    rate: jax.Array
    """Inner learning rate, a scalar."""
    share: jax.Array | None
    """Its part in the sum of levels that stand side by side."""


def read_local(
    config: CMSConfig,
    levels: list[LocalLevel],
    x: jax.Array,
    state: CMSState,
    *,
    aligned: bool,
) -> tuple[jax.Array, CMSState]:
    """Reads tokens while one layer's levels learn.

    Args:
        config: of the levels.
        levels: their slow parts.
        x: ``[B, T, D]``.
        state: of this layer, ``[B, ...]`` in every leaf.
        aligned: all rows stand at the start of a chunk.

    Returns:
        ``(y, state)``, ``y`` with the levels' outputs added to ``x``.
    """
    # The steps are written for several blocks; here there is one.
    inside = ("fast", "gathered", "inner", "start")
    one = state._replace(
        **{
            name: jax.tree.map(lambda a: a[:, None], getattr(state, name))
            for name in inside
        }
    )
    y, one = _on_the_grid(config, levels, x, one, aligned)
    return y, one._replace(
        **{
            name: jax.tree.map(lambda a: a[:, 0], getattr(one, name))
            for name in inside
        }
    )


def _on_the_grid(config, levels, x, state, aligned):
    """Cuts rows, each from its own place in a chunk, into chunks."""
    batch, length, width = x.shape
    chunk = config.periods[0]

    def step(state, piece):
        x, valid = piece
        y, state = _read_piece(config, levels, x, valid, state)
        return state, y

    if length == 1 or (aligned and length < chunk):
        state, y = step(state, (x, None))
        return y, state
    if aligned:
        offset, count = jnp.zeros((batch,), jnp.int32), -(-length // chunk)
    else:
        offset = state.position % chunk
        count = -(-(length + chunk - 1) // chunk)
    slots = jnp.arange(count * chunk) - offset[:, None]
    valid = (slots >= 0) & (slots < length)
    laid = jnp.zeros((batch, count * chunk, width), x.dtype)
    laid = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))(
        laid, x, offset, 0
    )

    def cut(a):
        return a.reshape(batch, count, chunk, *a.shape[2:]).swapaxes(0, 1)

    full = aligned and length % chunk == 0
    pieces = cut(laid), None if full else cut(valid)
    state, y = remat_scan(step, state, pieces)
    y = y.swapaxes(0, 1).reshape(laid.shape)
    return jax.vmap(
        lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, length, 0)
    )(y, offset), state


def _read_piece(config, levels, x, valid, state):
    """Up to a chunk, none of it beyond a chunk's end."""
    length = x.shape[1]
    count = length if valid is None else valid.sum(1, dtype=jnp.int32)
    total, gradients = None, []
    fast = jax.tree.map(lambda a: a[:, 0], state.fast)
    probes = probed(config, fast, length, x.dtype)
    for level, weights, probe in zip(levels, fast, probes, strict=True):
        h = level.norm(x)
        gradients.append(_gradient(level, h, valid, probe))
        y = level.mlp(level.weights | weights, h)
        if level.share is None:
            x = x + y
        else:
            y = level.share.astype(x.dtype) * y
            total = y if total is None else total + y
    new = jax.tree.map(lambda a: a[:, None], writes(config, tuple(gradients)))
    rates = [level.rate[None] for level in levels]
    state = advance_levels(config, rates, new, state, count, valid=valid)
    return x if total is None else x + total, state


def _gradient(level, h, valid, weights):
    key = rms_norm(h @ level.key.astype(h.dtype))
    value = rms_norm(h @ level.value.astype(h.dtype))

    def loss(weights):
        error = level.mlp(level.weights | weights, key) - value
        wide = jnp.promote_types(error.dtype, jnp.float32)
        each = jnp.square(error.astype(wide)).mean(-1) / 2
        return (each if valid is None else jnp.where(valid, each, 0)).sum()

    return jax.grad(loss)(weights)
