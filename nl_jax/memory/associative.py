"""Associative memory = architecture x objective x rule x retention.

arXiv 2512.24695, Def. 1 and section 5. Gradients are taken at the weights of
the chunk's start (eq. 90).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.checks import check_count, choose
from nl_jax.memory.architecture import Architecture, Weights
from nl_jax.memory.architectures import ARCHITECTURES
from nl_jax.memory.chunk_wise import advance_by_chunk
from nl_jax.memory.objective import OBJECTIVES, Objective, check_curvature
from nl_jax.memory.packed import Packed, lay
from nl_jax.memory.retention import RETENTIONS, Retention
from nl_jax.memory.rule import RULES, LearningRule
from nl_jax.memory.state import (
    MemoryState,
    StreamState,
    check_inputs,
    empty_window,
    fresh,
    with_start,
    without_start,
)
from nl_jax.memory.token_wise import advance_by_token
from nl_jax.memory.walk import chunk_scan
from nl_jax.nested.level_table import LevelRow, count_bytes, count_parameters
from pallas_kernels.mlp_memory import memory_scan

Read = Literal["before", "after", "chunk"]
_PARALLEL = 64
"""Tokens processed at a time if the recurrence is affine."""


class Memory(NamedTuple):
    """Pure functions of a memory; see :func:`associative_memory`."""

    init: Callable[..., StreamState]
    read: Callable[..., jax.Array]
    write: Callable[..., StreamState]
    scan: Callable[..., tuple[jax.Array, StreamState]]
    step: Callable[..., tuple[jax.Array | None, MemoryState]]
    in_chunks: bool
    """Whether ``scan`` can pass whole chunks to ``memory_scan``."""
    parallel: int
    """Tokens that ``scan`` processes at a time between documents' starts."""
    row: LevelRow
    """Its row of the level table, without sizes."""

    def levels(self) -> list[LevelRow]:
        """Returns the rows of the level table."""
        return [self.row]

    def levels_of(self, weights: Any) -> list[LevelRow]:
        """Returns the same with sizes, if ``weights`` are a tuple or list."""
        if not isinstance(weights, (tuple, list)):
            return [self.row]
        state = jax.eval_shape(self.init, tuple(weights))
        return [
            dataclasses.replace(
                self.row,
                parameters=count_parameters(weights),
                state_bytes=count_bytes(state),
            )
        ]

    def scan_rows(
        self,
        state,
        *inputs,
        aligned: bool,
        packed: Packed | None = None,
        initial: MemoryState | None = None,
    ) -> tuple[jax.Array, StreamState]:
        """Scans k, v, q and gates of a batch, the first axis of every array.

        Rows that are all ``aligned`` are scanned by one call: the kernels
        support batch and head axes. Documents of ``packed`` are not; each
        begins with the ``initial`` memory, which has no axis of rows.
        """
        if packed is not None:
            layout = lay(packed, state.position, self.parallel)

            def scan(layout, *inputs):
                options = {"layout": layout, "initial": initial}
                return self.scan(*inputs, aligned=aligned, **options)

            axes = (layout.rows, *[0] * (1 + len(inputs)))
            y, after = jax.vmap(scan, axes)(layout, state, *inputs)
            position = packed.advance(state.position) % self.row.period
            return y, after._replace(position=position)
        if aligned:
            return self.scan(state, *inputs, aligned=True)
        return jax.vmap(self.scan)(state, *inputs)


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
    target: Callable[[Weights, jax.Array], jax.Array] | None = None,
) -> Memory:
    r"""Builds a memory from its independent choices.

    .. math::

        M_{t} = \alpha_t M_{t-1} (I - \ldots) - \eta_t \nabla
        \mathcal{L}(M; k_t, v_t)

    with the gradient taken at the start of the chunk. The returned functions
    work on one sequence whose leading axes are heads; ``jax.vmap`` them over a
    batch:

    * ``init(rng, d_in, d_out, lead=()) -> state``, or ``init(weights)``;
    * ``read(state, q) -> o`` at the current weights;
    * ``write(state, k, v, gates) -> state``;
    * ``scan(state, k, v, q, gates, aligned=False) -> (o, state)``: writes and
      reads causally. Any split of a sequence into calls gives the same numbers.
      ``aligned=True`` asserts that the state is at a chunk boundary, as a new
      one is, and saves a chunk of work. For documents, see ``scan_rows``;
    * ``step(memory, k, v, q, gates, valid=None, closes=True) -> (o, memory)``:
      the same for tokens of one chunk, where ``memory`` is that field of a
      state, for custom loops with :func:`nl_jax.memory.walk.chunk_scan`. Not
      for ``retention="mean"``, which depends on the tokens' positions in the
      chunk.

    With ``chunk_size=1`` every gradient is taken at the current weights: the
    exact recurrence. If that is affine in the weights (one matrix, an objective
    with a ``curvature``, no momentum, plain decay), it still runs in parallel,
    64 tokens at a time, and stays exact.

    Args:
        architecture: a name in ``ARCHITECTURES`` or an ``Architecture``.
        objective: a name in ``OBJECTIVES`` or an ``Objective``.
        rule: a name in ``RULES`` or a ``LearningRule``.
        retention: a name in ``RETENTIONS`` or a ``Retention``. With ``"mean"``,
            a step is the mean of the chunk's gradients so far instead of their
            sum, so token ``i`` of a chunk steps by ``1 / i`` (TTT, arXiv
            2407.04620), and the gates' retention is ignored.
        momentum: whether gates carry ``log_mu``.
        chunk_size: tokens per chunk.
        read: weights that a query reads: ``"before"`` or ``"after"`` the write
            of its token, or those at the start of the ``"chunk"``.
        remat: chunks per state kept for the backward pass, see
            :func:`nl_jax.memory.walk.remat_scan`.
        implementation: backend for the whole chunks of ``aligned`` streams, see
            ``pallas_kernels.mlp_memory.memory_scan``. Must be ``None`` for
            memories that go token by token or average chunks, for ``remat``
            other than 1 and for objectives without a ``curvature``.
        target: ``(weights, v) -> v``, a pure function without arrays that makes
            the values to learn from the given ones and the weights at the
            chunk's start, for memories that generate their own targets.

    Raises:
        ValueError: for an unknown name, a ``chunk_size`` below 1, a negative
            ``remat``, or incompatible choices.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.memory import Gates
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
    descent = choose("rule", rule, RULES)
    keep = choose("retention", retention, RETENTIONS)
    check_count("chunk_size", chunk_size)
    check_count("remat", remat, 0)
    alone = descent.window == 1 and not descent.orthogonal
    if keep.mean and (momentum or descent.delta or not alone):
        raise ValueError(
            "retention='mean' goes with rule 'gd' and momentum=False"
        )
    if descent.delta and not keep.bare:
        raise ValueError(
            f"retention={keep.name!r} goes with rules without a delta term: "
            "what is kept are not the weights"
        )
    by_token = not alone or not keep.linear
    in_chunks = keep.linear and alone and not keep.mean and remat == 1
    # Gradients with branches or powers do not compile for TPUs.
    in_chunks = in_chunks and goal.curvature is not None
    if implementation is not None and not in_chunks:
        raise ValueError(
            f"implementation={implementation!r} must be None with "
            f"objective={goal.name!r}, retention={keep.name!r}, "
            f"rule={descent.name!r} and remat={remat}: they have only one"
        )
    affine = (
        chunk_size == 1
        and arch.affine
        and goal.curvature is not None
        and target is None
        and not (momentum or by_token or keep.mean)
    )

    parallel = _PARALLEL if affine else chunk_size

    def init(rng_or_weights, d_in=None, d_out=None, *, lead=()):
        weights = rng_or_weights
        if not isinstance(weights, tuple):
            check_count("d_in", d_in)
            check_count("d_out", d_out)
            weights = arch.init(weights, d_in, d_out, lead=lead)
        held = None
        if descent.window > 1:
            before, width = descent.window - 1, arch.width(weights)
            held = empty_window(weights, width, before, goal.threshold)
        state = fresh(weights, momentum, held)
        return StreamState(state, jnp.zeros((), jnp.int32))

    def read_now(state, q):
        width = arch.width(state.memory.weights)
        check_inputs(state.memory, q=(q, width))
        weights = tuple(map(keep.weights, state.memory.weights))
        return arch.apply(weights, q)

    def step(memory, k, v, q, gates, *, valid=None, closes=True, **options):
        if target is not None:
            v = target(tuple(map(keep.weights, memory.start)), v)
        options |= {"read": read, "valid": valid, "closes": closes}
        if by_token:
            return advance_by_token(
                arch, goal, descent, keep, memory, k, v, q, gates, **options
            )
        if affine:  # Each token is its own chunk.
            options["closes"] = True
            options["read"] = "before" if read == "chunk" else read
        given = arch, goal, memory.start, k, v, gates
        writes = descent.writes(*given, affine=affine)
        return advance_by_chunk(
            arch, memory, writes, gates, q, anchored=keep.mean, **options
        )

    def piece(memory, inputs, valid, closes):
        k, v, q, gates = inputs
        gates = gates.narrow(keep.channels)
        o, memory = step(memory, k, v, q, gates, valid=valid, closes=closes)
        return memory, o

    def whole(memory, inputs):
        *tokens, gates = inputs
        gates, kinds = jax.tree.flatten(gates.narrow(keep.channels))
        state, parts = jax.tree.flatten(without_start(memory))

        def run(state, tokens, gates, valid, inverse):
            k, v, q = tokens
            memory, gates = parts.unflatten(state), kinds.unflatten(gates)
            options = {"valid": valid, "inverse": inverse}
            o, after = step(with_start(memory), k, v, q, gates, **options)
            return o, tuple(jax.tree.leaves(without_start(after)))

        o, state = memory_scan(
            run,
            tuple(state),
            tuple(tokens),
            tuple(gates),
            chunk_size=chunk_size,
            implementation=implementation,
        )
        return with_start(parts.unflatten(state)), o

    def scan(state, k, v, q, gates, *, aligned=False, **documents):
        if affine:
            check_curvature(goal)
        inputs = {"k": (k, arch.width(state.memory.weights))}
        if target is None:  # Else it is made from values of any width.
            inputs["v"] = v, state.memory.weights[-1].shape[-1]
        if q is not None:
            inputs["q"] = q, inputs["k"][1]
        check_inputs(state.memory, gates, momentum=momentum, **inputs)
        length, position = k.shape[-2], state.position
        if aligned or affine:
            position = 0
        if keep.mean:
            # D_i = ((i - 1) D_{i-1} + g_i) / i since the chunk's start.
            place = (position + jnp.arange(length)) % chunk_size
            if documents:
                place = documents["layout"].place
            share = 1 / (place + 1)
            kept = jnp.log1p(-share) + 0 * gates.log_alpha
            gates = gates._replace(eta=gates.eta * share, log_alpha=kept)
        leads = {a.shape[:-2] for a in (*state.memory.weights, k, v)}
        leads |= {gate.shape[:-1] for gate in jax.tree.leaves(gates)}
        fused = in_chunks and not affine and q is not None and len(leads) == 1
        memory, o = chunk_scan(
            piece,
            state.memory,
            (k, v, q, gates.widen(keep.channels)),
            size=parallel,
            position=position,
            axis=-2,
            remat=remat,
            whole=whole if fused else None,
            drop_start=not documents or (aligned and not affine),
            **documents,
        )
        return o, StreamState(memory, (state.position + length) % chunk_size)

    def write(state, k, v, gates):
        return scan(state, k, v, None, gates)[1]

    in_chunks = in_chunks and not affine
    kept = keep.name if keep.words is None else keep.words
    words = descent.words, "momentum" if momentum else "", kept
    row = LevelRow(
        name="memory",
        memory_of="keys to values",
        architecture=arch.name,
        objective=goal.name.replace("_", " "),
        rule=", ".join(filter(None, words)),
        period=chunk_size,
        unit="tokens",
        parameters=0,
        state_bytes=0,
    )
    return Memory(init, read_now, write, scan, step, in_chunks, parallel, row)
