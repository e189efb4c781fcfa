"""Chunk-parallel learning rules: one delta memory per layer.

Gradients are taken at the weights of the chunk's start; reads are causal.
"""

from collections.abc import Callable

import jax

from nl_jax.memory.architecture import Architecture
from nl_jax.memory.rule import Gates, Write
from nl_jax.memory.state import MemoryState
from pallas_kernels.delta_memory import chunk_step, unit_lower_inverse


def advance_by_chunk(
    architecture: Architecture,
    state: MemoryState,
    writes: tuple[Write, ...],
    gates: Gates,
    q: jax.Array | None,
    *,
    read: str = "before",
    valid: jax.Array | None = None,
    closes: jax.Array | bool = True,
    anchored: bool = False,
    inverse: Callable[[jax.Array], jax.Array] = unit_lower_inverse,
) -> tuple[jax.Array | None, MemoryState]:
    """Writes tokens of one chunk into a memory and reads it causally.

    Args:
        architecture: the memory's function.
        state: state before the tokens.
        writes: each layer's inputs, from ``LearningRule.writes``.
        gates: retention and momentum, each ``[..., T]``.
        q: queries, ``[..., T, d_in]``; ``None`` to write only.
        read: which weights are read, see ``delta_scan``.
        valid: ``[..., T]``, False in empty slots.
        closes: whether the tokens end a chunk.
        anchored: whether retention pulls towards the weights of the chunk's
            start instead of zero.
        inverse: see ``chunk_step``.

    Returns:
        ``(o, state)``, outputs ``[..., T, d_out]`` or ``None``.
    """
    momentum = state.momentum or (None,) * len(writes)
    after: list[tuple[jax.Array, jax.Array | None]] = []

    def layer(w, s, write, anchor):
        def call(q):
            o, w_end, s_end = chunk_step(
                w - anchor if anchored else w,
                s,
                write.x,
                write.g,
                q,
                gates.log_alpha,
                write.beta,
                gates.log_mu,
                read=read,
                valid=valid,
                inverse=inverse,
            )
            if anchored:
                w_end = w_end + anchor
                o = o if o is None else o + (q @ anchor.astype(q.dtype))
            after.append((w_end, s_end))
            return o

        return call

    layers = [
        layer(*each)
        for each in zip(
            state.weights, momentum, writes, state.start, strict=True
        )
    ]
    if q is None or read == "chunk":
        for call in layers:
            call(None)
        o = None if q is None else architecture.apply(state.start, q)
    else:
        o = architecture.forward(layers, q)
    weights = tuple(w for w, _ in after)
    moved = None
    if state.momentum is not None:
        moved = tuple(s for _, s in after if s is not None)
    return o, state._replace(weights=weights, momentum=moved).closed(closes)
