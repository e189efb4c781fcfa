"""The protocol of a continuum memory's objectives.

To add one, subclass :class:`CMSObjective` in a file of this package and add it
to ``CMS_OBJECTIVES``; or pass an instance as ``CMSConfig(objective=...)``. An
objective within a layer overrides ``read_layer``; one that needs the whole
model overrides ``read``.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.layers.continuum.level_mlp import SlowLevel
from nl_jax.layers.continuum.steps import CMSState, begin
from nl_jax.memory.packed import Packed


class Reader(NamedTuple):
    """The parts of a model that an objective may use."""

    config: Any
    """The ``CMSConfig``."""
    forward: Callable[..., tuple[jax.Array, Any, Any]]
    """``(tokens, mixers, fast, aligned, packed) -> (logits, mixers, fast)``.
    ``fast`` is weights, which it returns unchanged, or a ``CMSState``, which
    the layers update by ``read_layer``."""
    rates: tuple[jax.Array, ...]
    """Inner rate of each level, ``[blocks]``."""
    dtype: jnp.dtype
    """Of products."""
    initial: Any = None
    """State of the model before the first token, a ``ModelState``, with which
    documents begin; ``None`` unless there are several."""


class CMSObjective:
    """Source of the gradients of levels."""

    name: ClassVar[str]
    """Name in configurations."""
    unit: ClassVar[Literal["steps", "tokens"]] = "tokens"
    """Unit of the periods; ``"tokens"`` for levels that learn in context."""
    compresses: ClassVar[str] = "next token"
    """The objective in the level table."""
    replays: ClassVar[bool] = False
    """Whether whole chunks of the fastest level are read again, so that they
    must be a multiple of the mixers' chunks and divide training sequences."""
    adapts: ClassVar[bool] = False
    """Whether it provides the loss of a chunk, which adaptive levels need."""

    def __eq__(self, other: object) -> bool:
        # Configurations that hold instances are compared, and are static.
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def check(self, config: Any) -> None:
        """Raises ``ValueError`` for a ``CMSConfig`` that it cannot serve."""

    def declare(
        self, declare: Callable[..., jax.Array], prefix: str, width: int
    ) -> dict[str, jax.Array]:
        """Declares a level's parameters beyond its MLP and its inner rate.

        Args:
            declare: ``(name, init, shape, axes) -> array``.
            prefix: how the level's names begin.
            width: of the model.
        """
        del declare, prefix, width
        return {}

    def initial_state(self, config: Any, fast: Any, mixers: Any) -> CMSState:
        """Returns the state before the first token.

        Args:
            config: the ``CMSConfig``.
            fast: initial weights of each level, batch first.
            mixers: initial state of the mixers.
        """
        del mixers
        return begin(config, fast, (), ())

    def read(
        self,
        reader: Reader,
        tokens: jax.Array,
        mixers: Any,
        cms: Any,
        *,
        fresh: bool,
        packed: Packed | None = None,
    ) -> tuple[jax.Array, Any, Any]:
        """Reads tokens while the levels learn, by default layer by layer.

        Args:
            reader: the model.
            tokens: ids ``[B, T]``.
            mixers: state of the mixers now.
            cms: state of the levels, a ``CMSState``.
            fresh: whether these are the first tokens, a Python ``bool``.
            packed: documents in the rows, with which levels begin anew.

        Returns:
            ``(logits, mixers, cms)``, logits in the order of the call.
        """
        mixers = None if fresh else mixers
        return reader.forward(tokens, mixers, cms, fresh, packed)

    def read_layer(
        self,
        config: Any,
        levels: list[SlowLevel],
        x: jax.Array,
        state: CMSState,
        *,
        aligned: bool,
        packed: Packed | None = None,
    ) -> tuple[jax.Array, CMSState]:
        """Reads tokens while one layer's levels learn.

        Args:
            config: the ``CMSConfig``.
            levels: slow parameters of the levels.
            x: ``[B, T, D]``.
            state: of this layer, ``[B, ...]`` in every leaf.
            aligned: whether all rows are at the start of a chunk.
            packed: documents in the rows, with which levels begin anew.

        Returns:
            ``(y, state)``, ``y`` with the levels' outputs added to ``x``.
        """
        raise NotImplementedError(f"{self.name} does not learn in a layer")

    def drop_chunk(self, config: Any, cms: CMSState, mixers: Any) -> CMSState:
        """Drops the unfinished chunk when the mixers restart as ``mixers``."""
        del config, mixers
        return cms
