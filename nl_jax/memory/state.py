"""Fast state of a memory between calls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Keys, PerToken, Values
from nl_jax.errors import InputError
from nl_jax.memory.architecture import Weights


class Pairs(NamedTuple):
    """Key-value pairs that a memory learns from."""

    k: Keys
    v: Values
    share: PerToken
    """Weight of each pair in the loss; 0 in empty slots."""
    threshold: PerToken | None = None
    """Per-token threshold, for objectives that take one."""


class MemoryState(NamedTuple):
    """Fast state of one memory, or of several on leading axes."""

    start: Weights
    """``weights`` at the start of the current chunk."""
    weights: Weights
    """Current weights, or what ``Retention.weights`` makes them from."""
    momentum: Weights | None
    """Momentum of each layer, or ``None``."""
    window: Pairs | None = None
    """The previous tokens, as many as the rule's window needs."""

    def closed(self, closes: jax.Array | bool) -> "MemoryState":
        """Starts a new chunk at the current weights if this one ``closes``."""
        start = self.weights
        if closes is not True:
            start = jax.tree.map(
                lambda new, old: jnp.where(closes, new, old), start, self.start
            )
        return self._replace(start=start)


class StreamState(NamedTuple):
    """A memory and its position in the stream."""

    memory: MemoryState
    position: jax.Array
    """Tokens read in the current chunk, int32 scalar."""


def fresh(
    weights: Weights, momentum: bool, window: Pairs | None = None
) -> MemoryState:
    """Returns the state of a memory before its first token."""
    zeros = tuple(jnp.zeros_like(w) for w in weights) if momentum else None
    return MemoryState(weights, weights, zeros, window)


def check_inputs(
    memory: MemoryState,
    gates: Any = None,
    *,
    momentum: bool = False,
    **inputs: tuple[jax.Array, int],
) -> None:
    """Raises ``InputError`` for inputs that a memory cannot take.

    Args:
        memory: its state.
        gates: ``Gates``, or ``None`` for reading only.
        momentum: whether the memory has momentum.
        **inputs: keys, values and queries, each with the width it needs.
    """
    lead = memory.weights[0].shape[:-2][::-1]
    length = next(iter(inputs.values()))[0].shape[-2:-1]
    for name, (a, width) in inputs.items():
        fits = a.ndim > 1 and a.shape[-2:] == (*length, width) and a.size
        if not fits or not jnp.issubdtype(a.dtype, jnp.floating):
            raise InputError(
                f"{name} is {a.dtype}{list(a.shape)}; needs real numbers, "
                f"[..., T >= 1, {width}], T as in {next(iter(inputs))}"
            )
        given = a.shape[:-2][::-1]
        pairs = zip(given, lead, strict=False)
        inside = len(given) <= len(lead) and all(n in (1, m) for n, m in pairs)
        if gates is not None and not inside:
            raise InputError(
                f"{name} has leading axes {given[::-1]}, the memory "
                f"{lead[::-1]}; use vmap for a batch"
            )
    if gates is None:
        return
    if {memory.momentum is None, gates.log_mu is None} != {not momentum}:
        raise InputError(
            f"gates.log_mu and the state must be those of a memory with"
            f"{'' if momentum else 'out'} momentum"
        )
    if gates.eta.shape[-1:] != length:
        raise InputError(
            f"gates.eta has shape {gates.eta.shape}; needs one number for each "
            f"of {length[0]} tokens"
        )


def empty_window(
    weights: Weights, d_in: int, tokens: int, threshold: bool
) -> Pairs:
    """Returns the window of a memory before the first token of its stream.

    It has ``tokens`` empty slots for keys of width ``d_in`` and, if
    ``threshold``, thresholds.
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


def starts(state: Any) -> list[Weights]:
    """Returns the ``start`` of every memory in a state."""
    found: list[Weights] = []
    _each_memory(lambda memory: found.append(memory.start), state)
    return found


def without_start(state: Any) -> Any:
    """Drops memories' ``start``, at chunk boundaries equal to ``weights``."""
    return _each_memory(lambda memory: (), state)


def with_start(state: Any, values: list[Weights] | None = None) -> Any:
    """Undoes :func:`without_start`, or sets each ``start`` to a value."""
    if values is None:
        return _each_memory(lambda memory: memory.weights, state)
    each = iter(values)
    return _each_memory(lambda memory: next(each), state)


def _each_memory(start, state):
    return jax.tree.map(
        lambda node: (
            node._replace(start=start(node))
            if isinstance(node, MemoryState)
            else node
        ),
        state,
        is_leaf=lambda node: isinstance(node, MemoryState),
    )
