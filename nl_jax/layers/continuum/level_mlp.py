"""The MLP of a level: its forward pass, with weights of any origin."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.layers.continuum.probes import matmul

FastLevel = dict[str, jax.Array]
"""Fast weights of one level: ``up`` and ``down``, and ``gate`` of a SwiGLU."""

MATRICES = {"swiglu": ("gate", "up", "down"), "gelu": ("up", "down")}
"""The matrices of a level, which are what learns, by the kind of the MLP."""


class SlowLevel(NamedTuple):
    """The slow part of a level."""

    mlp: Callable[[Any, jax.Array], jax.Array]
    """``(weights, inputs) -> outputs``."""
    norm: Callable[[jax.Array], jax.Array]
    """Normalisation of its input."""
    weights: dict[str, jax.Array]
    """All weights of the MLP."""
    extra: dict[str, jax.Array]
    """Parameters that its objective declares."""
    rate: jax.Array | None
    """Inner learning rate, a scalar, of levels that learn in context."""
    share: jax.Array | None
    """Weight in the sum of levels side by side."""


def read_levels(
    levels: list[SlowLevel], fast: Any, x: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    """Applies the levels with constant weights.

    Args:
        levels: slow parameters.
        fast: for each level the weights that replace slow ones.
        x: ``[B, T, D]``.

    Returns:
        ``x`` with the levels' outputs added, and each level's normalised input.
    """
    total, inputs = None, []
    for level, weights in zip(levels, fast, strict=True):
        h = level.norm(x)
        inputs.append(h)
        y = level.mlp(level.weights | weights, h)
        if level.share is None:
            x = x + y
        else:
            y = level.share.astype(x.dtype) * y
            total = y if total is None else total + y
    return (x if total is None else x + total), inputs


def start_levels(
    config: Any, levels: list[SlowLevel], rows: tuple[int, ...]
) -> tuple[FastLevel, ...]:
    """Returns the weights from which levels start, with ``rows`` in front."""
    return tuple(
        {
            name: jnp.broadcast_to(w, (*rows, *w.shape))
            for name, w in level.weights.items()
            if name in MATRICES[config.mlp]
        }
        for level in levels
    )


def _swiglu(weights, x):
    gate = jax.nn.silu(matmul(weights, "gate", x))
    return matmul(weights, "down", gate * matmul(weights, "up", x))


def _gelu(weights, x):
    # Biases are not fast: no axis of tokens stands before theirs.
    up, down = (
        weights[name].astype(x.dtype) for name in ("up_bias", "down_bias")
    )
    h = jax.nn.gelu(matmul(weights, "up", x) + up, approximate=True)
    return matmul(weights, "down", h) + down


MLPS = {"swiglu": _swiglu, "gelu": _gelu}
