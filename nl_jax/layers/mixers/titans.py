r"""Self-modifying (self-referential) Titans, arXiv 2512.24695, section 8.1-8.2.

Every projection of a token is itself a memory that goes on learning, and each
memory makes its own target:

.. math::

    k_t = M_k(x_t),\; v_t = M_v(x_t),\; \eta_t = M_\eta(x_t),\;
    \alpha_t = M_\alpha(x_t),\; q_t = x_t W_q \\
    \hat v_{\square,t} = M_\square(v_t) \\
    M_\square \leftarrow M_\square(\alpha_t I - \eta_t k_t k_t^\top)
    - \eta_t \nabla L(M_\square; k_t, \hat v_{\square,t})

(eq. 86-88). Everything generated comes from the weights at the chunk's start
(eq. 90). The generating memories never depend on the one that answers, so a
call is two scans: the generators over their chunks, then the answering memory
over its own. What one block of tokens does is in
:mod:`nl_jax.layers.mixers.titans_block`.

Weakness: taken literally the equations overflow within a few chunks when the
memories are MLPs; see ``TitansConfig.literal`` and ``docs/recall.md``.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.layers.mixers.titans_block import (
    Generators,
    answer,
    answer_block,
    generate_block,
    shared_block,
)
from nl_jax.layers.mixers.titans_config import TitansConfig
from nl_jax.layers.norms import rms_norm
from nl_jax.memory import blocks
from nl_jax.memory.fused import read_whole_chunks
from nl_jax.memory.state import MemoryState, fresh
from nl_jax.remat import remat_scan


class TitansState(NamedTuple):
    """Fast state, batch first in every leaf."""

    generators: MemoryState
    """Memories that make k, v, eta, alpha (and q), ``[B, n, H, ...]``; where
    all share one recurrence, ``weights`` is its matrix, ``[B, H, d, d]``."""
    memory: MemoryState
    """The memory that answers, ``[B, H, ...]``; ``weights`` is empty where the
    recurrence is shared."""
    tails: dict[str, jax.Array]
    """Raw q, k, v of the last tokens, ``[B, width - 1, D]`` each."""
    position: jax.Array
    """Tokens read since the chunk grids last met, int32 ``[B]``."""


class SelfModifyingTitans(nn.Module):
    """A sequence mixer whose projections learn in context.

    Attributes:
        config: choices of the memory and its rule.
        d_model: model width ``D``.
        n_heads: heads; each has memories of width ``D / n_heads``.
        dtype: of products; parameters and fast state stay float32.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> layer = SelfModifyingTitans(TitansConfig(), d_model=8, n_heads=2)
        >>> x = jnp.ones((1, 5, 8))
        >>> variables = jax.jit(layer.init)(jax.random.key(0), x)
        >>> apply = jax.jit(layer.apply)
        >>> y, state = apply(variables, x[:, :3])
        >>> rest, state = apply(variables, x[:, 3:], state)
        >>> y.shape, rest.shape
        ((1, 3, 8), (1, 2, 8))
    """

    config: TitansConfig
    d_model: int
    n_heads: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Declares the slow parameters."""
        config, d = self.config, self.d_model
        if d % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} must divide d_model={d}")
        width = d // self.n_heads

        def declare(name, init, shape, axes):
            init = nn.with_logical_partitioning(init, axes)
            return self.param(name, init, shape, jnp.float32)

        def weights(name, gain, lead, axes):
            shapes = config.memory_architecture.widths(
                width, width, config.expansion
            )
            return tuple(
                declare(
                    f"{name}_{index}",
                    config.initializer(index, gain),
                    (*lead, *shape),
                    (*axes, "memory_in", "memory_out"),
                )
                for index, shape in enumerate(shapes)
            )

        heads = self.n_heads
        names = config.generated
        self.generators = weights(
            "generators",
            config.gain,
            (len(names), heads),
            ("memories", "heads"),
        )
        self.memory = weights(
            "memory", config.memory_gain, (heads,), ("heads",)
        )
        dense = nn.initializers.lecun_normal()
        conv = nn.initializers.normal(config.conv_width**-0.5)
        self.projections = {
            name: declare(f"w_{name}", dense, (d, d), ("embed", "mixer"))
            for name in ("q", "k", "v")
            if name not in names
        }
        self.kernels = {
            name: declare(
                f"conv_{name}", conv, (config.conv_width, d), (None, "mixer")
            )
            for name in ("q", "k", "v")
        }
        gates = {}
        for name, bias in config.gate_biases.items():
            gates[name] = (
                declare(
                    f"gate_{name}",
                    nn.initializers.normal(width**-0.5),
                    (heads, width),
                    ("heads", "memory_in"),
                ),
                declare(
                    f"gate_{name}_bias",
                    nn.initializers.constant(bias),
                    (heads,),
                    ("heads",),
                ),
            )
        self.gates = gates
        self.out_scale = declare(
            "out_scale", nn.initializers.ones, (heads, width), ("heads", None)
        )
        self.w_out = declare("w_out", dense, (d, d), ("mixer", "embed"))

    def initial_state(self, batch_size: int) -> TitansState:
        """Returns the learned state from which ``batch_size`` rows start."""
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape)),
            self._initial(),
        )

    def __call__(self, x: Stream, state=None, *, aligned: bool = False):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state.

        Args:
            x: tokens.
            state: fast state from the tokens before, or ``None`` to begin.
            aligned: the caller knows that every row of ``state`` stands where
                both chunk grids begin; saves the work of finding out.
        """
        x = x.astype(self.dtype)
        config, tokens = self.config, x.shape[1]
        begins = state is None
        aligned = aligned or begins
        state = self._initial() if begins else state
        axes = (0, None if begins else 0)
        over_rows = functools.partial(jax.vmap, in_axes=axes)
        part = functools.partial(
            _shared if config.shares_recurrence else _generate,
            self._parts(),
            config,
            aligned=aligned,
        )
        if config.shares_recurrence:
            y, state = over_rows(part)(x, state)
        else:
            made, generators, tails = over_rows(part)(x, state)
            if begins:
                state = self.initial_state(x.shape[0])
            y, memory = _answer(
                config, made, state.memory, state.position, aligned
            )
            state = TitansState(generators, memory, tails, state.position)
        position = (state.position + tokens) % config.cycle
        state = state._replace(position=position)
        scale = self.out_scale.astype(y.dtype)
        y = rms_norm(y) * scale
        y = y.reshape(x.shape) @ self.w_out.astype(y.dtype)
        return y, state

    def _initial(self) -> TitansState:
        tail = jnp.zeros((self.config.conv_width - 1, self.d_model), self.dtype)
        momentum = self.config.momentum
        generators = fresh(self.generators, momentum)
        memory = fresh(self.memory, momentum)
        if self.config.shares_recurrence:
            (answers,) = self.memory
            product = jnp.broadcast_to(
                jnp.eye(answers.shape[-1], dtype=answers.dtype), answers.shape
            )
            generators = generators._replace(weights=(product,))
            memory = memory._replace(weights=())
        return TitansState(
            generators,
            memory,
            dict.fromkeys(("q", "k", "v"), tail),
            jnp.zeros((), jnp.int32),
        )

    def _parts(self) -> Generators:
        return Generators(
            projections=dict(self.projections),
            kernels=dict(self.kernels),
            gates=dict(self.gates),
            heads=self.n_heads,
        )


def _cut(parts, config, x, state, aligned):
    """Blocks of one sequence, ``[T, D]``, and what they hold."""
    position = 0 if aligned else state.position
    raws = {
        name: x @ w.astype(x.dtype) for name, w in parts.projections.items()
    }
    grid = blocks.cut(x.shape[0], config.chunk_size, position)
    return grid, (
        grid.split(x),
        jax.tree.map(grid.split, raws),
        grid.valid,
        grid.closes,
    )


def _generate(parts, config, x, state, *, aligned):
    """One sequence, ``[T, D]``: ``(Generated, generators, tails)``."""
    grid, inputs = _cut(parts, config, x, state, aligned)
    whole = _whole(grid, config.chunk_size)

    def body(carry, block):
        memories, tails = carry
        *arrays, closes = block
        memories, tails, made = generate_block(
            parts,
            config,
            _unfold(memories, whole),
            tails,
            *arrays,
            closes=whole or closes,
        )
        return (_fold(memories, whole), tails), made

    (generators, tails), made = remat_scan(
        body,
        (_fold(state.generators, whole), state.tails),
        inputs,
        every=config.remat,
    )
    made = jax.tree.map(grid.join, made)
    return made, _unfold(generators, whole), tails


def _answer(config, made, memory, position, aligned):
    """All rows of the answering memory: ``(y [B, T, H, d], memory)``."""
    tokens, chunk = made.q.shape[1], config.memory_chunk_size
    whole = tokens - tokens % chunk
    answered = []
    if aligned and whole and config.in_chunks:
        *first, gates = jax.tree.map(
            lambda a: a[:, :whole].swapaxes(1, 2), made
        )
        y, memory = read_whole_chunks(
            functools.partial(answer, config),
            memory,
            tuple(first),
            gates,
            chunk_size=chunk,
            implementation=config.implementation,
        )
        answered.append(y.swapaxes(1, 2))
        made = jax.tree.map(lambda a: a[:, whole:], made)
    if made.q.shape[1]:
        row = functools.partial(_answer_row, config, aligned=aligned)
        y, memory = jax.vmap(row)(made, memory, position)
        answered.append(y)
    return jnp.concatenate(answered, 1), memory


def _answer_row(config, made, memory, position, *, aligned):
    """One row, wherever it stands: ``(y [T, H, d], memory)``."""
    chunk = config.memory_chunk_size
    grid = blocks.cut(made.q.shape[0], chunk, 0 if aligned else position)
    whole = _whole(grid, chunk)

    def body(memory, block):
        *arrays, closes = block
        memory, y = answer_block(
            config, _unfold(memory, whole), *arrays, closes=whole or closes
        )
        return _fold(memory, whole), y

    memory, y = remat_scan(
        body,
        _fold(memory, whole),
        (jax.tree.map(grid.split, made), grid.valid, grid.closes),
        every=config.remat,
    )
    return grid.join(y), _unfold(memory, whole)


def _whole(grid, chunk_size):
    """Whether every block is a chunk, known while tracing."""
    return grid.valid is None and grid.length == chunk_size


def _fold(memory, whole):
    """Drops the chunk's start where it is what the weights are."""
    return memory._replace(start=()) if whole else memory


def _unfold(memory, whole):
    return memory._replace(start=memory.weights) if whole else memory


def _shared(parts, config, x, state, *, aligned):
    """One sequence where memories share one recurrence: a single scan."""
    grid, inputs = _cut(parts, config, x, state, aligned)

    def step(carry, block):
        return shared_block(parts, config, carry, *block)

    carry = (
        *state.generators.start,
        *state.memory.start,
        *state.generators.weights,
        state.tails,
    )
    (starts, answers, product, tails), y = remat_scan(
        step, carry, inputs, every=config.remat
    )
    return grid.join(y), TitansState(
        MemoryState((starts,), (product,), None),
        MemoryState((answers,), (), None),
        tails,
        state.position,
    )
