"""Interface between a model and its sequence mixer.

A mixer is one file: a frozen dataclass derived from :class:`MixerConfig`, named
in ``nl_jax.layers.MIXERS``, and the Linen module that it builds.
"""

import abc
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.checks import check_stream
from nl_jax.errors import InputError
from nl_jax.layers.mixing import Declare
from nl_jax.memory import MemoryState
from nl_jax.nested import LevelRow
from nl_jax.nested.level_table import count_bytes, count_parameters
from pallas_kernels import device, mlp_memory

LONG = 2048
"""Tokens of the sequence for which the level table names a backend."""


class MixerConfig(abc.ABC):
    """Configuration of a mixer, with everything a model needs to know of it."""

    takes_stream: ClassVar[bool] = False
    """Whether the module also takes ``stream``, its input before the norm,
    because its layers add to it."""
    has_grid: ClassVar[bool] = False
    """Whether chunk boundaries matter; the module then takes ``aligned``."""

    @property
    def memory_fields(self) -> tuple[str, ...]:
        """Fields of the state that queries read, for memory caching.

        The module then takes ``recall``, a function of outputs and queries,
        ``[B, H, T, d]``, and applies it before its norm. Empty if the mixer
        cannot be cached.
        """
        return ()

    @property
    def cycle(self) -> int:
        """Tokens until all chunk boundaries coincide; 1 without chunks."""
        return 1

    def check(self, n_heads: int) -> None:
        """Raises ``ValueError`` for an unsupported number of heads."""
        del n_heads

    @abc.abstractmethod
    def build(self, d_model: int, n_heads: int, dtype: Any) -> nn.Module:
        """Returns the module, usually a :class:`Mixer`.

        It has a method ``initial_state(batch_size)`` and is called as
        ``(x, state=None, packed=None) -> (y, state)`` on tokens ``x``,
        ``[B, T, D]``, the fast state after the previous tokens, ``None`` at the
        start, and the documents in the rows, with which it begins anew. If
        ``takes_stream``, it also takes ``stream``; if ``has_grid``,
        ``aligned``: whether every row of ``state`` is known to be at a chunk
        boundary, which saves work.

        Args:
            d_model: model width ``D``.
            n_heads: number of heads of width ``d = D / n_heads``, if any.
            dtype: dtype of products; parameters are float32, as is fast state
                except cached tokens.
        """

    def last_block(self, params: Any) -> Any:
        """Returns initial parameters for a model's last block.

        Args:
            params: of the module, as drawn for any block.
        """
        return params

    @abc.abstractmethod
    def levels(self, params: Any, state: Any) -> list[LevelRow]:
        """Returns the mixer's rows of the level table.

        ``params`` and ``state`` are the shapes of the module's parameters and
        fast state in all blocks, for one batch row.
        """

    def memory_of(self, state: Any) -> Any:
        """Returns arrays that :meth:`answer` needs, ``[B, ...]`` each."""
        return {name: getattr(state, name) for name in self.memory_fields}

    def answer(self, memory: Any, q: jax.Array) -> jax.Array:
        """Returns outputs ``[B, H, T, d]`` for queries, without a write.

        Args:
            memory: what :meth:`memory_of` returns, maybe of an earlier token.
            q: queries as ``recall`` gets them.
        """
        raise NotImplementedError

    def learned(self, state: Any) -> dict[str, Any]:
        """Returns what memories have learned, by the names of their starts.

        Args:
            state: fast state, with any further leading axes in every leaf.

        Returns:
            Values for the module's parameters from which memories start, with
            these axes in front; empty if none has a learned start.
        """
        del state
        return {}


class Mixer(nn.Module):
    """Base class of the mixers' modules."""

    config: Any
    d_model: int
    n_heads: int
    dtype: Any = None
    """Dtype of products and outputs; ``None`` for that of the input."""

    @property
    def head_width(self) -> int:
        """Channels per head."""
        if self.n_heads < 1 or self.d_model % self.n_heads:
            raise InputError(
                f"n_heads={self.n_heads} must divide d_model={self.d_model}"
            )
        return self.d_model // self.n_heads

    @property
    def cache_dtype(self) -> Any:
        """Dtype of the tokens kept in the state."""
        return jnp.result_type(float) if self.dtype is None else self.dtype

    def begin(self, x: Any, state: Any) -> tuple[jax.Array, Any, Declare]:
        """Returns tokens in the dtype of products, a state, and ``Declare``.

        Raises:
            InputError: unless ``x`` is ``[B, T, D]`` and ``state`` has B rows.
        """
        x = check_stream(type(self).__name__, x, self.d_model)
        x = x if self.dtype is None else x.astype(self.dtype)
        if state is None:
            state = self.initial_state(len(x))
        for leaf in jax.tree.leaves(state):
            if leaf.shape[0] != len(x):
                raise InputError(
                    f"{type(self).__name__} got {len(x)} rows, but a state of "
                    f"{leaf.shape[0]}"
                )
        return x, state, Declare(self, x.dtype)


def token_level(
    *, state: Any, params: Any = (), period: int = 1, **words: str
) -> LevelRow:
    """Returns the level-table row of a memory whose period is in tokens.

    ``state`` and ``params`` are its fast state and slow parameters, as arrays
    or shapes; ``words`` are the other fields of ``LevelRow``.
    """
    return LevelRow(
        period=period,
        unit="tokens",
        parameters=count_parameters(params),
        state_bytes=count_bytes(state),
        **words,
    )


def what_scans(
    memory: MemoryState,
    tails: dict[str, Any],
    *,
    chunk_size: int,
    implementation: str | None,
) -> str:
    """Returns the name of the backend for a memory's whole chunks.

    ``memory`` and ``tails`` hold the shapes of its state, heads third from the
    end, and of convolutions' inputs, in the dtype of products.
    """
    if implementation is not None:
        return implementation
    matrices = [
        jax.ShapeDtypeStruct(w.shape[-3:], w.dtype)
        for w in (*memory.weights, *(memory.momentum or ()))
    ]
    heads, width, _ = matrices[0].shape
    dtype = next(iter(tails.values())).dtype
    x = jax.ShapeDtypeStruct((heads, LONG, width), dtype)
    gate = jax.ShapeDtypeStruct(x.shape[:-1], jnp.float32)
    return mlp_memory.implementation_for(
        device.here(),
        matrices,
        [x] * 3,
        [gate] * (2 if memory.momentum is None else 3),
        chunk_size=chunk_size,
    )
