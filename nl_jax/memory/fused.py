"""Whole chunks of a memory in one operation, which has kernels.

A stream that stands where a chunk begins has no token inside a chunk to go on
from: what it reads up to the last boundary is one scan of the chunk step.
"""

from collections.abc import Callable

import jax

from nl_jax.memory.rule import Gates
from nl_jax.memory.state import MemoryState
from pallas_kernels.mlp_memory import memory_scan


def read_whole_chunks(
    step: Callable[..., tuple[jax.Array, MemoryState]],
    memory: MemoryState,
    tokens: tuple[jax.Array, ...],
    gates: Gates,
    *,
    chunk_size: int,
    implementation: str | None = None,
) -> tuple[jax.Array, MemoryState]:
    """Writes whole chunks into a memory and reads it causally.

    Args:
        step: ``(memory, tokens, gates, valid=, inverse=) -> (o, memory)``, one
            chunk, see ``memory_scan``.
        memory: at the start of a chunk, ``[*lead, d_in, d_out]``, no window.
        tokens: ``[*lead, T, d]`` each, whole chunks.
        gates: ``[*lead, T]`` each.
        chunk_size: tokens per chunk.
        implementation: see ``memory_scan``.

    Returns:
        ``(o, memory)``, outputs ``[*lead, T, d_out]``.
    """
    layers = len(memory.weights)
    given = {n: g for n, g in gates._asdict().items() if g is not None}

    def unpack(state):
        weights, momentum = state[:layers], state[layers:] or None
        return MemoryState(weights, weights, momentum)

    def pack(memory):
        return (*memory.weights, *(memory.momentum or ()))

    def run(state, tokens, values, valid, inverse):
        o, after = step(
            unpack(state),
            tokens,
            Gates(**dict(zip(given, values, strict=True))),
            valid=valid,
            inverse=inverse,
        )
        return o, pack(after)

    o, state = memory_scan(
        run,
        pack(memory),
        tokens,
        tuple(given.values()),
        chunk_size=chunk_size,
        implementation=implementation,
    )
    return o, unpack(state)
