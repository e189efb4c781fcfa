r"""Blocks over a sequence that is cut along the mesh axis ``sequence``.

Each device reads its own tokens, and hands every block's state on to the device
with the next ones. A device can go through block :math:`l` once it has the
state of the device before, which meanwhile is in block :math:`l + 1`: all are
busy but in the beginning and the end. With :math:`L` blocks and :math:`n`
devices this takes :math:`L + n - 1` turns of a block, of which each device
idles in :math:`n - 1`, the bubble. What is sent is one block's state per turn.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.errors import InputError

AXIS = "sequence"
TIME = "time"
"""Name of the tokens' dimension in ``MeshConfig.compute_axes``."""


def bubble(n_layers: int, devices: int) -> float:
    """Returns the share of a step in which a device waits.

    Example:
        >>> bubble(24, 8) == 7 / 31
        True
    """
    return (devices - 1) / (n_layers + devices - 1)


def devices_per_sequence() -> int:
    """Number of devices that the tokens of a row are cut over."""
    if (TIME, (AXIS,)) not in nn.get_logical_axis_rules():
        return 1
    return jax.sharding.get_abstract_mesh().shape[AXIS]


def hand_on(step: Callable, x: Any, layers: Any) -> Any:
    """Does what ``jax.lax.scan(step, x, layers)`` does, over blocks.

    Args:
        step: ``(x, (params, state, None)) -> (x, (state, None))`` of a block.
        x: inputs, ``[B, T, D]``.
        layers: parameters of all blocks, stacked; their states before the first
            token, ``[L, B, ...]``; and ``None``.

    Returns:
        ``(x, (states, None))``: outputs, and the states after the last token.
    """
    n, (blocks, states, _) = devices_per_sequence(), layers
    n_layers = len(jax.tree.leaves(blocks)[0])
    if x.shape[1] % n:
        raise InputError(
            f"{x.shape[1]} tokens must be a multiple of mesh.{AXIS}={n}"
        )
    here = jax.P(AXIS)
    tokens = jax.P(None, AXIS)

    def on_each(device, x, blocks, states):
        device = device[0]

        def go_on(carry, turn):
            x, received = carry
            layer = turn - device
            busy = (layer >= 0) & (layer < n_layers)
            params, first = jax.tree.map(
                lambda a: a[jnp.clip(layer, 0, n_layers - 1)], (blocks, states)
            )
            state = _where(device == 0, first, received)
            y, (state, _) = step(x, (params, state, None))
            following = [(i, i + 1) for i in range(n - 1)]
            sent = jax.tree.map(
                lambda a: jax.lax.ppermute(a, AXIS, following), state
            )
            return (_where(busy, y, x), sent), state

        idle = jax.tree.map(lambda a: a[0], states)
        turns = jnp.arange(n_layers + n - 1)
        (x, _), ends = jax.lax.scan(go_on, (x, idle), turns)
        # Those of the last device, which is in block l in turn l + n - 1.
        return x, jax.tree.map(lambda a: a[None, n - 1 :], ends)

    x, ends = jax.shard_map(
        on_each,
        in_specs=(here, tokens, jax.P(), jax.P()),
        out_specs=(tokens, here),
        axis_names={AXIS},
        check_vma=False,
    )(jnp.arange(n), x, blocks, states)
    return x, (jax.tree.map(lambda a: a[-1], ends), None)


def _where(condition, one, other):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
