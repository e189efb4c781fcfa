"""What a model asks of a sequence mixer.

A mixer is one file: a frozen dataclass of its choices, which derives from
:class:`MixerConfig`, and the Linen module that they build. A row of
``nl_jax.layers.MIXERS`` gives it a name.
"""

import abc
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.memory import MemoryState
from nl_jax.nested import LevelRow
from nl_jax.nested.describe import count_bytes, count_parameters
from pallas_kernels import device, mlp_memory

LONG = 2048
"""Tokens of the long sequence of which the level table says what runs it."""


class MixerConfig(abc.ABC):
    """Choices of a mixer, and all that a model needs to know of it."""

    takes_stream: ClassVar[bool] = False
    """Whether the module is also given ``stream``, what its input was before
    the norm, because it adds to that layer by layer."""
    has_grid: ClassVar[bool] = False
    """Whether results depend on where chunks begin; the module is then told
    ``aligned``, whether every row of the state stands there."""

    @property
    def cycle(self) -> int:
        """Tokens after which every chunk begins anew; 1 without chunks."""
        return 1

    def check(self, n_heads: int) -> None:
        """Raises ``ValueError`` for a number of heads that does not fit."""
        del n_heads

    @abc.abstractmethod
    def build(self, d_model: int, n_heads: int, dtype: Any) -> nn.Module:
        """Returns the module.

        It is called as ``(x, state=None) -> (y, state)``, on ``x`` of
        ``[B, T, D]``, with ``stream=`` and ``aligned=`` where the choices say
        so, and has ``initial_state(batch_size)``.
        """

    @abc.abstractmethod
    def levels(self, params: Any, state: Any) -> list[LevelRow]:
        """Returns the mixer's rows of the level table.

        Args:
            params: shapes of the module's parameters in all blocks.
            state: shapes of its fast state in all blocks, of one batch row.
        """


def token_level(
    *, state: Any, params: Any = (), period: int = 1, **words: str
) -> LevelRow:
    """Returns the row of a memory whose period is a number of tokens.

    Args:
        state: its fast state, or the shapes.
        params: its slow parameters, or the shapes.
        period: tokens between updates.
        **words: all other fields of ``LevelRow``.
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
    """Names what runs whole chunks of a memory on the devices here.

    Args:
        memory: shapes of its state, heads third from the end.
        tails: raw inputs of its convolutions, of which ``q`` is looked at.
        gates: how many gates a token has.
        chunk_size: tokens per chunk.
        implementation: the one that is asked for, if any.
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
