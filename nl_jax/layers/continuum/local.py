r"""Levels that learn from their own layer's input alone.

As in test-time training (TTT, arXiv 2407.04620; LaCT, arXiv 2505.23884): with
the level's normalised input :math:`h_t`, a key and a value

.. math:: k_t = \mathrm{rms}(h_t W_K), \quad v_t = h_t W_V, \quad
   L_t = \tfrac{1}{2 D} \| \mathrm{rms}(\mathrm{MLP}(k_t)) - v_t \|^2, \quad
   y_t = \mathrm{MLP}(h_t),

the level steps at the end of its period by the sum of :math:`\nabla L_t`. The
input itself is the query, so that at rate 0 the output is that of the static
MLP. The mean over the ``D`` channels makes a rate mean the same at any width.
Since the prediction is normalised, as in TTT, larger weights have smaller
gradients: without, levels that go on from row to row grow until training
diverges. Values begin a tenth as long as predictions, and steps so small that
the first of training are those of a static MLP; their length is learned.
No gradient of the model is needed: a layer reads a whole sequence before the
next one does, and all mixers stay parallel in time. The outer gradient flows
through every inner step, into :math:`W_K` and :math:`W_V`, which learn by
nothing else; with ``first_order`` they do not learn.

Tokens of a chunk of the fastest level meet the same weights, so their gradients
are a sum and may come in any number of calls: nothing is read twice.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.layers.continuum.cms_objective import CMSObjective
from nl_jax.layers.continuum.level_mlp import read_levels, start_levels
from nl_jax.layers.continuum.probes import probed, writes
from nl_jax.layers.continuum.steps import advance_levels
from nl_jax.layers.norms import rms_norm
from nl_jax.memory.packed import lay
from nl_jax.memory.walk import chunk_scan


class Local(CMSObjective):
    """Every level regresses its own values on its own keys."""

    name = "local"
    compresses = "own values"

    def declare(self, declare, prefix, width):
        """Declares the projections to keys and values, ``[D, D]``."""
        square = (width, width), ("embed", "mlp")
        return {
            name: declare(f"{prefix}{name}", _of_length(length), *square)
            for name, length in {"key": 1.0, "value": 0.1}.items()
        }

    def read_layer(self, config, levels, x, state, *, aligned, packed=None):
        """Reads tokens; see :meth:`CMSObjective.read_layer`."""
        size = config.periods[0]
        documents: dict[str, Any] = {}
        if packed is not None:
            fast = start_levels(config, levels, (len(x), 1))
            documents = {
                "layout": lay(packed, state.position, size),
                "initial": self.initial_state(config, fast, ()),
            }

        def step(state, x, valid, closes):
            del closes
            y, state = _read_piece(config, levels, x, valid, state)
            return state, y

        # The steps are written for several blocks; here there is one.
        state, y = chunk_scan(
            step,
            _map_blocks(state, lambda a: a[:, None]),
            x,
            size=size,
            position=0 if aligned else state.position,
            axis=1,
            remat=None,
            **documents,
        )
        return y, _map_blocks(state, lambda a: a[:, 0])


LOCAL = Local()


def _of_length(length):
    return nn.initializers.variance_scaling(
        length**2, "fan_in", "truncated_normal"
    )


def _map_blocks(state, function):
    return state.with_blocks(jax.tree.map(function, state.by_block))


def _read_piece(config, levels, x, valid, state):
    """Up to a chunk, none of it beyond a chunk's end."""
    length = x.shape[1]
    count = length if valid is None else valid.sum(1, dtype=jnp.int32)
    fast = jax.tree.map(lambda a: a[:, 0], state.fast)
    y, inputs = read_levels(levels, fast, x)
    probes = probed(config, fast, length, x.dtype)
    gradients = tuple(
        _gradient(level, h, valid, weights)
        for level, h, weights in zip(levels, inputs, probes, strict=True)
    )
    new = jax.tree.map(lambda a: a[:, None], writes(config, gradients))
    rates = [level.rate[None] for level in levels]
    return y, advance_levels(config, rates, new, state, count, valid=valid)


def _gradient(level, h, valid, weights):
    key = rms_norm(h @ level.extra["key"].astype(h.dtype))
    value = h @ level.extra["value"].astype(h.dtype)

    def loss(weights):
        error = rms_norm(level.mlp(level.weights | weights, key)) - value
        wide = jnp.promote_types(error.dtype, jnp.float32)
        each = jnp.square(error.astype(wide)).mean(-1) / 2
        return (each if valid is None else jnp.where(valid, each, 0)).sum()

    return jax.grad(loss)(weights)
