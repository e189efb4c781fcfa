r"""Memory caching: old states of a memory that later tokens may still read.

"Memory Caching: RNNs with Growing Memory", arXiv 2602.24281. A stream is cut
into segments. The memory's state at the end of each is kept, and a token reads
its current memory and those kept, each weighted by a gate (gated residual
memory):

.. math::

    y_t = \gamma_t^{(s)} M_t(q_t) + \sum_{i < s} \gamma_t^{(i)} M^{(i)}(q_t),
    \qquad \gamma_t = \operatorname{softmax}_i \langle u_t, \bar x^{(i)} \rangle

with :math:`u_t = x_t W_u` and :math:`\bar x^{(i)}` the mean of the inputs of
segment ``i``. Decided here: the mean of the segment being read is over its
tokens so far, the last ``segments`` states are kept, and mixtures precede a
mixer's norm. Writes do not depend on what is recalled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_count, check_fields
from nl_jax.errors import InputError
from nl_jax.layers.mixers.mixer import Mixer, MixerConfig, token_level
from nl_jax.memory.packed import goes_on, lay
from nl_jax.memory.walk import chunk_scan
from nl_jax.nested.level import select_rows


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """What a model's mixers keep of their earlier states.

    Raises:
        ValueError: for an invalid field, naming it and the allowed values.
    """

    segment: int = 0
    """Tokens per segment, whose last state is kept; 0 for no caching."""
    segments: int = 32
    """States kept; the oldest goes first."""
    top_k: int = 0
    """Kept states that a token reads, those with the largest gates (sparse
    selective caching); 0 for all."""
    restart: bool = False
    """Whether the memory begins each segment anew, or goes on learning."""

    def __post_init__(self):
        check_fields(self, "cache.", segment=0, top_k=0)
        if self.top_k > self.segments:
            raise InputError(
                f"cache.top_k={self.top_k} must be at most "
                f"cache.segments={self.segments}"
            )
        for field in () if self.segment else dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                raise InputError(
                    f"cache.{field.name}={value} has no effect with "
                    "cache.segment=0, which caches nothing"
                )


@dataclasses.dataclass(frozen=True)
class CachedConfig(MixerConfig):
    """Configuration of :class:`CachedMixer`.

    Raises:
        ValueError: for a mixer whose memory cannot be read without a write, or
            segments that are not whole chunks.
    """

    has_grid: ClassVar[bool] = True

    inner: MixerConfig
    """The mixer whose memory is cached."""
    cache: CacheConfig
    """What is kept."""

    def __post_init__(self):
        inner, size = self.inner, self.cache.segment
        check_count("cache.segment", size)
        if not inner.memory_fields:
            raise InputError(
                f"cache.segment={size} must be 0 with this "
                f"{type(inner).__name__}: no memory in it is one that a "
                "later query can read"
            )
        if size % inner.cycle:
            raise InputError(
                f"cache.segment={size} must be a multiple of {inner.cycle} "
                "tokens, where the mixer's chunks meet"
            )

    @property
    def cycle(self) -> int:
        """Tokens per segment."""
        return self.cache.segment

    def check(self, n_heads: int) -> None:
        """Raises ``ValueError`` for an unsupported number of heads."""
        self.inner.check(n_heads)

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return CachedMixer(self, d_model, n_heads, dtype)

    def last_block(self, params):
        """Returns initial parameters for a model's last block."""
        return params | {"inner": self.inner.last_block(params["inner"])}

    def levels(self, params, state):
        """Returns the rows of the mixer, and one of what is kept."""
        cache = self.cache
        read = f", the best {cache.top_k}" if cache.top_k else ""
        return [
            *self.inner.levels(params.get("inner", {}), state.inner),
            token_level(
                name="cache",
                memory_of=f"the last {cache.segments} segments{read}",
                architecture="states of the memory",
                objective="none",
                rule="copy" + (", then restart" if cache.restart else ""),
                period=cache.segment,
                params=params.get("w_recall", ()),
                state=state[1:],
            ),
        ]

    def learned(self, state):
        """Returns what the mixer's memory has learned."""
        learned = self.inner.learned(state.inner)
        return {"inner": learned} if learned else {}


class Recall(NamedTuple):
    """Mixes what is read from the current memory and from those kept."""

    gates: jax.Array
    """Weight of the current memory and of each kept one, ``[B, T, 1 + N]``."""
    kept: Any
    """Memories, ``[B, N, ...]`` in every leaf."""
    answer: Callable[[Any, jax.Array], jax.Array]
    """``MixerConfig.answer``."""

    def __call__(self, o: jax.Array, q: jax.Array) -> jax.Array:
        """Returns outputs for outputs ``o`` and queries, ``[B, H, T, d]``."""

        # Reads of all memories are many: the backward pass makes them again.
        @jax.checkpoint
        def mixed(gates, kept, o, q):
            past = jax.vmap(self.answer, (1, None), 1)(kept, q)
            now = gates[:, None, :, 0, None] * o
            return now + jnp.einsum("btn,bnhtd->bhtd", gates[..., 1:], past)

        return mixed(self.gates, self.kept, o, q).astype(o.dtype)


class CachedState(NamedTuple):
    """Fast state, batch first."""

    inner: Any
    """State of the mixer."""
    kept: Any
    """Memories at the ends of segments, oldest first, ``[B, N, ...]``."""
    means: jax.Array
    """Mean input of each of these segments, ``[B, N, D]``."""
    total: jax.Array
    """Sum of the inputs of the segment being read, ``[B, D]``."""
    held: jax.Array
    """Number of memories kept so far, int32 ``[B]``."""
    position: jax.Array
    """Tokens read of the current segment, int32 ``[B]``."""


class CachedMixer(Mixer):
    """A mixer that also reads states of its memory from earlier segments.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.layers import CacheConfig, CachedConfig
        >>> from nl_jax.layers import MatrixMemoryConfig
        >>> config = CachedConfig(MatrixMemoryConfig(), CacheConfig(segment=2))
        >>> layer = config.build(d_model=8, n_heads=2, dtype=None)
        >>> x = jnp.ones((1, 5, 8))
        >>> y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x)
        >>> y[1].held.tolist(), y[1].position.tolist()
        ([2], [1])
    """

    config: CachedConfig

    def setup(self):
        """Makes the mixer."""
        shared = (self.d_model, self.n_heads, self.dtype)
        self.inner = self.config.inner.build(*shared)

    def initial_state(self, batch_size: int) -> CachedState:
        """Returns a state without kept memories."""
        count = self.config.cache.segments
        inner = self.inner.initial_state(batch_size)
        kept = jax.tree.map(
            lambda a: jnp.zeros((batch_size, count, *a.shape[1:]), a.dtype),
            self.config.inner.memory_of(inner),
        )
        wide = jnp.result_type(float)
        return CachedState(
            inner,
            kept,
            jnp.zeros((batch_size, count, self.d_model), wide),
            jnp.zeros((batch_size, self.d_model), wide),
            jnp.zeros(batch_size, jnp.int32),
            jnp.zeros(batch_size, jnp.int32),
        )

    @nn.compact
    def __call__(
        self, x: Stream, state=None, *, aligned: bool = False, packed=None
    ):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        aligned = aligned or state is None
        x, state, declare = self.begin(x, state)
        # All gates are equal at first, so that recall is learned sooner.
        zeros, shape = nn.initializers.zeros, (self.d_model, self.d_model)
        u = x @ declare("w_recall", zeros, shape, ("embed", None))
        if self.is_initializing():
            self.inner(x)
        initial = self.initial_state(1)
        # JAX's loops need functions without modules' parameters inside.
        inner, params = self.inner.unbind()
        fields, cache = self.config.inner.memory_fields, self.config.cache
        options: dict[str, Any] = {}
        if self.config.inner.has_grid:
            options["aligned"] = aligned and packed is None

        def segment(state, inputs, closes, part=None):
            """Reads tokens of one segment, in front of any empty slots."""
            x, u = inputs
            gates, means = _gates(state, x, u, part, cache.top_k)
            recall = Recall(gates, state.kept, self.config.inner.answer)
            found: Any = inner.apply(
                params,
                x,
                state.inner,
                recall=recall,
                **options,
                **({} if part is None else {"packed": part}),
            )
            y, fast = found
            read = x.shape[1] if part is None else part.lengths
            position = state.position + read
            total, mean = means
            going = state._replace(inner=fast, total=total, position=position)
            if closes is False:
                return going, y
            if cache.restart:
                fast = fast._replace(
                    **{name: getattr(initial.inner, name) for name in fields}
                )
                fast = jax.tree.map(
                    lambda a, b: jnp.broadcast_to(a, b.shape), fast, going.inner
                )
            memory = self.config.inner.memory_of(going.inner)
            kept, past = jax.tree.map(
                lambda old, new: jnp.concatenate(
                    [old[:, 1:], new[:, None].astype(old.dtype)], 1
                ),
                (state.kept, state.means),
                (memory, mean),
            )
            ended = CachedState(
                fast,
                kept,
                past,
                jnp.zeros_like(total),
                jnp.minimum(state.held + 1, cache.segments),
                jnp.zeros_like(position),
            )
            if closes is True:
                return ended, y
            return select_rows(closes, ended, going), y

        def piece(state, inputs, valid, closes):
            if valid is None:
                return segment(state, inputs, closes)
            first = jnp.argmax(valid, 1)[:, None]

            def turn(a, by):
                at = (jnp.arange(a.shape[1]) + by) % a.shape[1]
                return jnp.take_along_axis(a, at[..., None], 1)

            part = goes_on(valid.sum(1, dtype=jnp.int32), valid.shape[1])
            inputs = [turn(a, first) for a in inputs]
            state, y = segment(state, inputs, closes, part)
            return state, turn(y, -first)

        where: dict[str, Any] = {"position": 0 if aligned else state.position}
        if packed is not None:
            layout = lay(packed, state.position, cache.segment)
            where = {"layout": layout, "initial": initial}
        state, y = chunk_scan(
            piece,
            state,
            (x, u),
            size=cache.segment,
            axis=1,
            remat=0,
            **where,
        )
        return y, state


def _gates(state, x, u, part, top_k):
    """Returns the gates ``[B, T, 1 + N]``, and the sum and mean after them."""
    wide = state.total.dtype
    x, u = x.astype(wide), u.astype(wide)
    count = state.position[:, None] + jnp.arange(1, x.shape[1] + 1)
    if part is not None:
        x = jnp.where(part.valid[..., None], x, 0)
    sums = state.total[:, None] + jnp.cumsum(x, 1)
    now = (u * sums).sum(-1) / count
    scores = jnp.einsum("btd,bnd->btn", u, state.means)
    slots = state.means.shape[1]
    held = jnp.arange(slots) >= slots - state.held[:, None]
    scores = jnp.where(held[:, None], scores, -jnp.inf)
    if top_k:
        least = jax.lax.top_k(scores, top_k)[0][..., -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    gates = jax.nn.softmax(jnp.concatenate([now[..., None], scores], -1))
    last = sums[:, -1]
    read = x.shape[1] if part is None else part.lengths
    # A row may hold no token yet.
    tokens = jnp.maximum(state.position + read, 1)
    return gates, (last, last / tokens[:, None])
