r"""Self-modifying (self-referential) Titans, arXiv 2512.24695, section 8.1-8.2.

Projections of a token are themselves memories that keep learning, and each
memory generates its own target. The paper's equations, of which the default
keeps the memories of the gates, with keys and values from projections:

.. math::

    k_t = M_k(x_t),\; v_t = M_v(x_t),\; \eta_t = M_\eta(x_t),\;
    \alpha_t = M_\alpha(x_t),\; q_t = x_t W_q \\
    \hat v_{\square,t} = M_\square(v_t) \\
    M_\square \leftarrow M_\square(\alpha_t I - \eta_t k_t k_t^\top)
    - \eta_t \nabla L(M_\square; k_t, \hat v_{\square,t})

(eq. 86-88), everything generated at the weights of the chunk's start (eq. 90).
The generating memories never depend on the answering memory that queries read,
so a call is two scans: the generators over their chunks
(:mod:`nl_jax.layers.mixers.titans_generators`), then the answering memory over
its own.

As printed, the equations overflow within a few chunks if the memories are MLPs;
see ``TitansConfig.literal`` and ``docs/recall.md``.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.layers.mixers.mixer import Mixer
from nl_jax.layers.mixers.titans_config import TitansConfig
from nl_jax.layers.mixers.titans_generators import (
    Generators,
    generate,
    read_shared,
)
from nl_jax.layers.mixing import Declare
from nl_jax.layers.norms import rms_norm
from nl_jax.layers.short_conv import silu_conv
from nl_jax.memory import MemoryState, StreamState
from nl_jax.memory.packed import lay


class TitansState(NamedTuple):
    """Fast state, batch first in every leaf."""

    generators: MemoryState
    """Memories that make k, v, eta, alpha (and q), ``[B, n, H, ...]``; with a
    shared recurrence, ``weights`` is its matrix, ``[B, H, d, d]``."""
    memory: MemoryState
    """Answering memory, ``[B, H, ...]``; ``weights`` is empty if shared."""
    tails: dict[str, jax.Array]
    """Inputs of convolutions at the last tokens, ``[B, width - 1, channels]``:
    of q, k and the stream, or of q, k and v."""
    position: jax.Array
    """Tokens since both chunk boundaries last coincided, int32 ``[B]``."""


class SelfModifyingTitans(Mixer):
    """A sequence mixer whose projections learn in context.

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

    def setup(self):
        """Declares the slow parameters."""
        config, d, width = self.config, self.d_model, self.head_width

        declare = Declare(self)
        architecture, heads = config.memory_architecture, self.n_heads
        shapes = architecture.widths(width, width, config.expansion)

        def memory(name, gain, lead=(), axes=()):
            gains = [gain * own for own in architecture.gains]
            return declare.memory(name, shapes, gains, (*lead, heads), axes)

        self.generators = memory(
            "generators", config.gain, (len(config.generated),), ("memories",)
        )
        self.memory = memory("memory", config.memory_gain)
        self.projections = {
            name: declare.dense(f"w_{name}", d, d, "mixer")
            for name in config.projected
        }
        widths = {"q": d, "k": d, "v": d}
        if config.stream_width:
            widths = {"q": d, "k": d, "stream": self._stream_width}
        self.kernels = {
            name: declare.taps(f"conv_{name}", config.conv_width, channels)
            for name, channels in widths.items()
        }
        self.gates = {
            name: self._gate(declare, name, bias)
            for name, bias in config.gate_biases.items()
        }
        gain = nn.initializers.constant(config.output_gain)
        self.out_scale = declare(
            "out_scale", gain, (heads, width), ("heads", None)
        )
        if config.stream_width:
            self.w_in = declare.dense("w_in", d, self._stream_width, "mixer")
            self.w_past = declare.dense(
                "w_past", self._stream_width, d, "embed", "mixer"
            )
        if config.output_gate:
            gated = self._stream_width or d
            self.w_gate = declare.dense("w_gate", d, gated, "mixer")
        self.w_out = declare(
            "w_out",
            nn.initializers.variance_scaling(
                (config.output_scale / config.output_gain) ** 2,
                "fan_in",
                "truncated_normal",
            ),
            (d, d),
            ("mixer", "embed"),
        )

    @property
    def _stream_width(self):
        """Channels of the stream."""
        return round(self.config.stream_width * self.d_model)

    def _gate(self, declare, name, bias):
        """Returns a gate's readout, if it is learned, and its bias."""
        readout, width = None, self.head_width
        if self.config.gates == "readout":
            init = nn.initializers.normal(width**-0.5)
            shape, axes = (self.n_heads, width), ("heads", "memory_in")
            readout = declare(f"gate_{name}", init, shape, axes)
        return readout, declare.per_head(
            f"gate_{name}_bias", self.n_heads, bias
        )

    def initial_state(self, batch_size: int) -> TitansState:
        """Returns the learned state from which ``batch_size`` rows start."""
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape)),
            self._initial_row(),
        )

    def _initial_row(self):
        config = self.config
        generators = config.generators.init(self.generators).memory
        memory = config.memory.init(self.memory).memory
        if config.shares_recurrence:
            (answers,) = self.memory
            product = jnp.broadcast_to(
                jnp.eye(answers.shape[-1], dtype=answers.dtype), answers.shape
            )
            generators = generators._replace(weights=(product,))
            memory = memory._replace(weights=())
        return TitansState(
            generators,
            memory,
            {
                name: jnp.zeros(
                    (config.conv_width - 1, kernel.shape[1]), self.cache_dtype
                )
                for name, kernel in self.kernels.items()
            },
            jnp.zeros((), jnp.int32),
        )

    def __call__(
        self,
        x: Stream,
        state=None,
        *,
        aligned: bool = False,
        packed=None,
        recall=None,
    ):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        aligned = aligned or state is None
        x, state, _ = self.begin(x, state)
        stream, values, tails = None, None, {}
        if self.config.stream_width:
            stream, tails["stream"] = silu_conv(
                x @ self.w_in.astype(x.dtype),
                self.kernels["stream"].astype(x.dtype),
                state.tails["stream"],
                packed,
            )
            values = stream[..., : self.d_model]
        shares = self.config.shares_recurrence
        read = self._read_shared if shares else self._read
        y, q, state = read((x, values), _inner(state), aligned, packed)
        if recall is not None:
            y = recall(y, q)
        position = state.position + x.shape[1]
        if packed is not None:
            position = packed.advance(state.position)
        position %= self.config.cycle
        y = rms_norm(y.swapaxes(1, 2)) * self.out_scale.astype(y.dtype)
        y = self._out(x, y.reshape(x.shape), stream)
        return y, state._replace(tails=state.tails | tails, position=position)

    def _out(self, x, y, stream):
        """Projects the memories' outputs, and the stream past them."""
        past = y if stream is None else stream
        if self.config.output_gate:
            past = past * jax.nn.silu(x @ self.w_gate.astype(x.dtype))
        if stream is None:
            return past @ self.w_out.astype(y.dtype)
        past = past @ self.w_past.astype(y.dtype)
        return past + y @ self.w_out.astype(y.dtype)

    def _read(self, x, state, aligned, packed):
        config = self.config
        initial = _inner(self._initial_row())

        def make(parts, x, state, options):
            memories = state.generators, state.tails
            return generate(parts, config, x, *memories, **options)

        made, generators, tails = self._each_row(
            make,
            x,
            state,
            aligned,
            packed,
            (initial.generators, initial.tails),
        )
        place = state.position % config.memory_chunk_size
        y, memory = config.memory.scan_rows(
            StreamState(state.memory, place),
            *made,
            aligned=aligned,
            packed=packed,
            initial=initial.memory,
        )
        state = TitansState(generators, memory.memory, tails, state.position)
        return y, made.q, state

    def _read_shared(self, x, state, aligned, packed):
        def read(parts, x, state, options):
            *memories, position = state
            y, q, *memories = read_shared(
                parts, self.config, x, *memories, **options
            )
            return y, q, state._make([*memories, position])

        *initial, _ = _inner(self._initial_row())
        return self._each_row(read, x, state, aligned, packed, tuple(initial))

    def _each_row(self, read, x, state, aligned, packed, initial):
        """Maps ``read`` over rows, with options of ``chunk_scan``."""
        rows = len(state.position)
        # Chunks add to the gradients of what they all share. Were it not a
        # copy for each row, devices would sum these at every chunk.
        shared = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape)),
            (dict(self.kernels), dict(self.gates)),
        )

        def parts(shared):
            kernels, gates = shared
            projections = dict(self.projections)
            return Generators(projections, kernels, gates, self.n_heads)

        if packed is None:

            def row(x, state, shared):
                position = 0 if aligned else state.position
                return read(parts(shared), x, state, {"position": position})

            return jax.vmap(row)(x, state, shared)
        layout = lay(packed, state.position, self.config.chunk_size)

        def documents(x, state, shared, layout):
            options = {
                "initial": initial,
                "drop_start": aligned,
                "layout": layout,
            }
            return read(parts(shared), x, state, options)

        axes = 0, 0, 0, layout.rows
        return jax.vmap(documents, axes)(x, state, shared, layout)


def _inner(state):
    """Returns what is carried from chunk to chunk: no tail of the stream."""
    tails = {n: tail for n, tail in state.tails.items() if n != "stream"}
    return state._replace(tails=tails)
