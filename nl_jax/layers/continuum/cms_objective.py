"""What moves the levels of a continuum memory: the protocol of an objective.

An objective of one's own is a subclass of :class:`CMSObjective` in a file
beside this one and a row of ``CMS_OBJECTIVES``, or is given to ``CMSConfig`` as
an object. One whose layers learn by themselves overrides ``read_layer``; one
that needs the whole model overrides ``read``.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.layers.continuum.level_mlp import SlowLevel
from nl_jax.layers.continuum.steps import CMSState, begin


class Reader(NamedTuple):
    """A model as its levels' objective sees it."""

    config: Any
    """The ``CMSConfig``."""
    forward: Callable[..., tuple[jax.Array, Any, Any]]
    """``(tokens, mixers, fast, aligned) -> (logits, mixers, fast)``. As weights
    ``fast`` stands still; a ``CMSState`` is moved by ``read_layer``."""
    rates: tuple[jax.Array, ...]
    """Inner rate of each level, ``[blocks]``."""
    dtype: jnp.dtype
    """Of products."""


class CMSObjective:
    """Where the gradients of levels come from, and when."""

    name: ClassVar[str]
    """What users type."""
    unit: ClassVar[Literal["steps", "tokens"]] = "tokens"
    """Of the periods: optimizer steps, or tokens for what learns in context."""
    compresses: ClassVar[str] = "next token"
    """What a level predicts, in the level table."""
    replays: ClassVar[bool] = False
    """Whether the model reads whole chunks of the fastest level again, so that
    chunks of mixers and training sequences must fit them."""
    adapts: ClassVar[bool] = False
    """Whether it tells the loss of a chunk, which adaptive levels need."""

    def check(self, config: Any) -> None:
        """Raises ``ValueError`` for a ``CMSConfig`` that does not fit."""

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
    ) -> tuple[jax.Array, Any, Any]:
        """Reads tokens while the levels learn; layers learn by themselves.

        Args:
            reader: the model.
            tokens: ids ``[B, T]``.
            mixers: state of the mixers now.
            cms: state of the levels, a ``CMSState``.
            fresh: whether no token was read before, known at trace time.

        Returns:
            ``(logits, mixers, cms)``.
        """
        return reader.forward(tokens, None if fresh else mixers, cms, fresh)

    def read_layer(
        self,
        config: Any,
        levels: list[SlowLevel],
        x: jax.Array,
        state: CMSState,
        *,
        aligned: bool,
    ) -> tuple[jax.Array, CMSState]:
        """Reads tokens while one layer's levels learn.

        Args:
            config: the ``CMSConfig``.
            levels: their slow parts.
            x: ``[B, T, D]``.
            state: of this layer, ``[B, ...]`` in every leaf.
            aligned: all rows stand at the start of a chunk.

        Returns:
            ``(y, state)``, ``y`` with the levels' outputs added to ``x``.
        """
        raise NotImplementedError(f"{self.name} does not learn in a layer")

    def drop_chunk(self, config: Any, cms: CMSState, mixers: Any) -> CMSState:
        """Forgets an unfinished chunk where mixers begin anew as ``mixers``."""
        del config, mixers
        return cms
