"""What a memory remembers between calls."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Keys, PerToken, Values
from nl_jax.memory.architecture import Weights


class Pairs(NamedTuple):
    """Tokens that a memory learns from."""

    k: Keys
    v: Values
    share: PerToken
    """Weight of each in the loss; 0 where a slot holds no token."""
    threshold: PerToken | None = None
    """The objective's number, if it takes one per token."""


class MemoryState(NamedTuple):
    """Fast state of one memory (or of several, on leading axes)."""

    start: Weights
    """What is kept, at the start of the current chunk."""
    weights: Weights
    """What is kept now: the weights, or what ``Retention.weights`` makes them
    from."""
    momentum: Weights | None
    """Momentum of each layer, or ``None``."""
    window: Pairs | None = None
    """The tokens before, as many as a rule looks back."""

    def closed(self, closes: jax.Array | bool) -> "MemoryState":
        """Begins a chunk at the present weights where one ``closes``."""
        start = self.weights
        if closes is not True:
            start = jax.tree.map(
                lambda new, old: jnp.where(closes, new, old), start, self.start
            )
        return self._replace(start=start)


class StreamState(NamedTuple):
    """A memory and its place in the stream."""

    memory: MemoryState
    position: jax.Array
    """Tokens read in the current chunk, int32 scalar."""


def fresh(
    weights: Weights, momentum: bool, window: Pairs | None = None
) -> MemoryState:
    """Returns the state of a memory that has learned nothing yet."""
    zeros = tuple(jnp.zeros_like(w) for w in weights) if momentum else None
    return MemoryState(weights, weights, zeros, window)


def empty_window(
    weights: Weights, d_in: int, tokens: int, threshold: bool
) -> Pairs:
    """Returns what a memory of ``weights`` looks back on before its stream.

    Args:
        weights: tell the other sizes.
        d_in: width of keys.
        tokens: how many.
        threshold: whether the objective takes a number per token.
    """
    lead = (*weights[0].shape[:-2], tokens)
    dtype = weights[0].dtype
    none = jnp.zeros(lead, dtype)
    return Pairs(
        jnp.zeros((*lead, d_in), dtype),
        jnp.zeros((*lead, weights[-1].shape[-1]), dtype),
        none,
        none if threshold else None,
    )
