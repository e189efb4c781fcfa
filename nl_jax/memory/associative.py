"""Associative memory = architecture x objective x rule x retention.

arXiv 2512.24695, Def. 1 and section 5. Surprises are taken at the weights of
the chunk's start (eq. 90), so that a chunk is parallel; inside it every layer
is one delta memory and reading stays causal, token by token.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.checks import check_count, choose
from nl_jax.memory import blocks
from nl_jax.memory.architecture import Architecture
from nl_jax.memory.architectures import ARCHITECTURES
from nl_jax.memory.fused import read_whole_chunks
from nl_jax.memory.objective import OBJECTIVES, Objective, check_curvature
from nl_jax.memory.retention import RETENTIONS, Retention
from nl_jax.memory.rule import RULES, Gates, LearningRule, Write
from nl_jax.memory.state import (
    MemoryState,
    StreamState,
    empty_window,
    fresh,
)
from nl_jax.memory.token_wise import advance_by_token
from nl_jax.memory.walk import remat_scan
from pallas_kernels.delta_memory import chunk_step, unit_lower_inverse

Read = Literal["before", "after", "chunk"]
_PARALLEL = 64
"""Tokens at a time where the recurrence is affine."""


class Memory(NamedTuple):
    """The pure functions of a memory; see :func:`associative_memory`."""

    init: Callable[..., StreamState]
    read: Callable[..., jax.Array]
    write: Callable[..., StreamState]
    scan: Callable[..., tuple[jax.Array, StreamState]]
    in_chunks: bool
    """Whether ``scan`` hands whole chunks to ``memory_scan`` where it may."""


def advance(
    architecture: Architecture,
    state: MemoryState,
    writes: tuple[Write, ...],
    gates: Gates,
    q: jax.Array | None,
    *,
    read: Read = "before",
    valid: jax.Array | None = None,
    closes: jax.Array | bool = True,
    anchored: bool = False,
    inverse: Callable[[jax.Array], jax.Array] = unit_lower_inverse,
) -> tuple[jax.Array | None, MemoryState]:
    """Writes a block of tokens into a memory and reads it causally.

    Args:
        architecture: the memory's function.
        state: state before the block.
        writes: what each layer is fed with, from ``LearningRule.writes``.
        gates: retention and momentum, each ``[..., T]``.
        q: where to read, ``[..., T, d_in]``; ``None`` to write only.
        read: the weights that are read, see ``delta_scan``.
        valid: ``[..., T]``, False where a slot holds no token.
        closes: whether the block ends a chunk.
        anchored: retention pulls towards the weights of the chunk's start,
            not towards zero.
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
    start = weights
    if closes is not True:
        start = tuple(
            jnp.where(closes, new, old)
            for new, old in zip(weights, state.start, strict=True)
        )
    moved = None
    if state.momentum is not None:
        moved = tuple(s for _, s in after if s is not None)
    return o, MemoryState(start, weights, moved)


def associative_memory(
    architecture: str | Architecture = "linear",
    objective: str | Objective = "l2",
    rule: str | LearningRule = "dgd",
    *,
    retention: str | Retention = "decay",
    momentum: bool = False,
    chunk_size: int = 64,
    read: Read = "before",
    remat: int = 1,
    implementation: str | None = None,
) -> Memory:
    r"""Builds a memory from its independent choices.

    .. math::

        M_{t} = \alpha_t M_{t-1} (I - \ldots) - \eta_t \nabla
        \mathcal{L}(M; k_t, v_t)

    with the surprise taken at the start of the chunk. The result's functions
    work on one sequence, leading axes being heads; ``jax.vmap`` them over a
    batch:

    * ``init(rng, d_in, d_out, lead=()) -> state``, or ``init(weights)``;
    * ``read(state, q) -> o`` at the present weights;
    * ``write(state, k, v, gates) -> state``;
    * ``scan(state, k, v, q, gates, aligned=False) -> (o, state)``: both,
      causally. Any split of a sequence into calls gives the same numbers. A
      caller who knows that the state stands where a chunk begins, a new one
      for instance, says ``aligned`` and saves a chunk of work.

    With ``chunk_size=1`` every surprise is taken at the present weights: the
    recurrence itself. Where it is affine in the weights (one matrix, an
    objective with a ``curvature``, no momentum, plain decay) it runs in
    parallel all the same, 64 tokens at a time, and stays exact.

    Args:
        architecture: out of ``ARCHITECTURES``, or an ``Architecture``.
        objective: out of ``OBJECTIVES``, or an ``Objective``.
        rule: out of ``RULES``, or a ``LearningRule``.
        retention: out of ``RETENTIONS``, or a ``Retention``. With ``"mean"``
            the step is the mean of a chunk's gradients so far in place of
            their sum, so that token ``i`` of a chunk steps by ``1 / i`` (TTT,
            arXiv 2407.04620), and the gates' retention is not used.
        momentum: whether gates carry ``log_mu``.
        chunk_size: tokens per chunk.
        read: ``"before"`` or ``"after"`` the write of the same token, or at
            the weights of the ``"chunk"``'s start.
        remat: chunks per state that is kept for the backward pass, see
            :func:`nl_jax.memory.walk.remat_scan`.
        implementation: what runs the whole chunks of a stream that is
            ``aligned``, see ``pallas_kernels.mlp_memory.memory_scan``; not for
            what goes token by token, averages chunks, has another ``remat`` or
            an objective without a ``curvature``.

    Raises:
        ValueError: for an unknown name, a ``chunk_size`` below 1, a negative
            ``remat``, or choices that do not go together.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> memory = associative_memory("linear", "l2", "gd", chunk_size=1)
        >>> state = memory.init(jax.random.key(0), 4, 4)
        >>> k, v = jnp.eye(4)[:1], jnp.ones((1, 4))
        >>> gates = Gates(eta=jnp.ones(1), log_alpha=jnp.zeros(1))
        >>> state = memory.write(state, k, v, gates)
        >>> bool(jnp.allclose(memory.read(state, k), v, atol=1e-5))
        True
    """
    arch = choose("architecture", architecture, ARCHITECTURES)
    goal = choose("objective", objective, OBJECTIVES)
    step = choose("rule", rule, RULES)
    keep = choose("retention", retention, RETENTIONS)
    check_count("chunk_size", chunk_size)
    check_count("remat", remat, 0)
    alone = step.window == 1 and not step.orthogonal
    if keep.mean and (momentum or step.delta or not alone):
        raise ValueError(
            "retention='mean' goes with rule 'gd' and momentum=False"
        )
    if step.delta and not keep.bare:
        raise ValueError(
            f"retention={keep.name!r} goes with rules without a delta term: "
            "what is kept are not the weights"
        )
    by_token = not alone or not keep.linear
    in_chunks = keep.linear and alone and not keep.mean and remat == 1
    # Gradients with cases and powers do not compile for TPUs.
    in_chunks = in_chunks and goal.curvature is not None
    if implementation is not None and not in_chunks:
        raise ValueError(
            f"implementation={implementation!r} must be None with "
            f"objective={goal.name!r}, retention={keep.name!r}, "
            f"rule={step.name!r} and remat={remat}: they have only one"
        )
    affine = (
        chunk_size == 1
        and arch.affine
        and goal.curvature is not None
        and not (momentum or by_token or keep.mean)
    )

    def init(rng_or_weights, d_in=None, d_out=None, *, lead=()):
        weights = rng_or_weights
        if not isinstance(weights, tuple):
            weights = arch.init(weights, d_in, d_out, lead=lead)
        held = None
        if step.window > 1:
            before = step.window - 1
            width = arch.width(weights)
            held = empty_window(weights, width, before, goal.threshold)
        state = fresh(weights, momentum, held)
        return StreamState(state, jnp.zeros((), jnp.int32))

    def read_now(state, q):
        weights = tuple(map(keep.weights, state.memory.weights))
        return arch.apply(weights, q)

    def read_and_write(memory, k, v, q, gates, share, **options):
        if by_token:
            return advance_by_token(
                arch, goal, step, keep, memory, k, v, q, gates, **options
            )
        if keep.mean:
            # D_i = ((i - 1) D_{i-1} + g_i) / i, from the chunk's start.
            kept = jnp.log1p(-share) + 0 * gates.log_alpha
            gates = gates._replace(eta=gates.eta * share, log_alpha=kept)
        find = step.affine_writes if affine else step.writes
        writes = find(arch, goal, memory.start, k, v, gates)
        return advance(
            arch, memory, writes, gates, q, anchored=keep.mean, **options
        )

    def read_chunk(memory, tokens, gates, **options):
        k, v, q = tokens
        writes = step.writes(arch, goal, memory.start, k, v, gates)
        return advance(arch, memory, writes, gates, q, read=read, **options)

    def run(state, k, v, q, gates, *, aligned=False):
        if affine:
            check_curvature(goal)
        length = k.shape[-2]
        whole = length - length % chunk_size
        leads = {a.shape[:-2] for a in (*state.memory.weights, k, v)}
        leads |= {gate.shape[:-1] for gate in jax.tree.leaves(gates)}
        fused = aligned and in_chunks and not affine and q is not None
        if fused and whole and len(leads) == 1:
            o, memory = read_whole_chunks(
                read_chunk,
                state.memory,
                tuple(a[..., :whole, :] for a in (k, v, q)),
                jax.tree.map(lambda gate: gate[..., :whole], gates),
                chunk_size=chunk_size,
                implementation=implementation,
            )
            state = state._replace(memory=memory)
            if whole == length:
                return o, state
            k, v, q = (a[..., whole:, :] for a in (k, v, q))
            gates = jax.tree.map(lambda gate: gate[..., whole:], gates)
            more, state = run(state, k, v, q, gates, aligned=True)
            return jnp.concatenate([o, more], -2), state
        position = 0 if aligned or affine else state.position
        size = _PARALLEL if affine else chunk_size
        grid = blocks.cut(length, size, position)

        def split(value, axis):
            return grid.split(jnp.moveaxis(value, axis, 0))

        arrays = jax.tree.map(lambda a: split(a, -2), (k, v, q))
        channels = -2 if keep.channels else -1
        gates = {
            name: split(gate, channels if name == "log_alpha" else -1)
            for name, gate in gates._asdict().items()
            if gate is not None
        }

        def body(memory, block):
            (k, v, q), gates, valid, closes, share = block
            k, v, q = jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2), (k, v, q))
            gates = {
                name: jnp.moveaxis(
                    gate, 0, channels if name == "log_alpha" else -1
                )
                for name, gate in gates.items()
            }
            o, memory = read_and_write(
                memory,
                k,
                v,
                q,
                Gates(**gates),
                share,
                # The start of a chunk of one token is its token's.
                read="before" if affine and read == "chunk" else read,
                valid=valid,
                closes=closes | affine,
            )
            return memory, None if o is None else jnp.moveaxis(o, -2, 0)

        memory, o = remat_scan(
            body,
            state.memory,
            (
                arrays,
                gates,
                grid.valid,
                grid.closes,
                grid.shares(position, size) if keep.mean else None,
            ),
            every=remat,
        )
        if o is not None:
            o = jnp.moveaxis(grid.join(o), 0, -2)
        position = (state.position + length) % chunk_size
        return o, StreamState(memory, position)

    def write(state, k, v, gates):
        return run(state, k, v, None, gates)[1]

    return Memory(init, read_now, write, run, in_chunks and not affine)
