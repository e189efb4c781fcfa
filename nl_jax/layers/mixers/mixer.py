"""Interface between a model and its sequence mixer.

A mixer is one file: a frozen dataclass derived from :class:`MixerConfig`, named
in ``nl_jax.layers.MIXERS``, and the Linen module that it builds.
"""

import abc
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    def cycle(self) -> int:
        """Tokens until all chunk boundaries coincide; 1 without chunks."""
        return 1

    def check(self, n_heads: int) -> None:
        """Raises ``ValueError`` for an unsupported number of heads."""
        del n_heads

    @abc.abstractmethod
    def build(self, d_model: int, n_heads: int, dtype: Any) -> nn.Module:
        """Returns the module, with a method ``initial_state(batch_size)``.

        It is called as ``(x, state=None) -> (y, state)`` on tokens ``x``,
        ``[B, T, D]``, and the fast state after the previous tokens, ``None`` at
        the start. If ``takes_stream``, it also takes ``stream``; if
        ``has_grid``, ``aligned``: whether every row of ``state`` is known to be
        at a chunk boundary, which saves work.

        Args:
            d_model: model width ``D``.
            n_heads: number of heads of width ``d = D / n_heads``, if any.
            dtype: dtype of products; parameters are float32, as is fast state
                except cached tokens.
        """

    @abc.abstractmethod
    def levels(self, params: Any, state: Any) -> list[LevelRow]:
        """Returns the mixer's rows of the level table.

        ``params`` and ``state`` are the shapes of the module's parameters and
        fast state in all blocks, for one batch row.
        """


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
    gates: int,
    chunk_size: int,
    implementation: str | None,
) -> str:
    """Returns the name of the backend for a memory's whole chunks.

    ``memory`` and ``tails`` hold the shapes of its state, heads third from the
    end, and of its convolutions' inputs; ``gates`` is the number of gates per
    token.
    """
    if implementation is not None:
        return implementation
    matrices = [
        jax.ShapeDtypeStruct(w.shape[-3:], w.dtype)
        for w in (*memory.weights, *(memory.momentum or ()))
    ]
    heads = matrices[0].shape[0]
    width = tails["q"].shape[-1] // heads
    x = jax.ShapeDtypeStruct((heads, LONG, width), tails["q"].dtype)
    gate = jax.ShapeDtypeStruct(x.shape[:-1], jnp.float32)
    return mlp_memory.implementation_for(
        device.here(),
        matrices,
        [x] * 3,
        [gate] * gates,
        chunk_size=chunk_size,
    )
