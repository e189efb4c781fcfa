"""How levels of a continuum memory step while a model reads.

Each level is a :class:`nl_jax.nested.Level` over all rows and blocks. It
gathers gradients, or the deltas of ``probes.py``, and each row is due
independently of the others. Because each period divides the next, one position
serves all levels: a :class:`CMSState` stores it in place of their ``since``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.layers.continuum.adaptation import decide, no_signal
from nl_jax.layers.continuum.probes import gather_deltas
from nl_jax.nested.level import (
    Level,
    LevelState,
    add_up,
    fresh_level,
    select_rows,
)


class CMSState(NamedTuple):
    """Fast state of the levels, batch first in every leaf."""

    fast: Any
    """Weights of each level, ``[B, blocks, d_in, d_out]`` of the blocks in
    which it learns."""
    gathered: Any
    """Gradients of each level since its last step, like ``fast``; with delta
    gradient descent what will be taken off its weights."""
    inner: Any
    """State of each level's optimizer."""
    start: Any
    """Nested levels: where all but the slowest return to, like ``fast``, and
    their gradients since."""
    tokens: Any
    """The unfinished chunk's tokens, int32 ``[B, C]`` (``next_token``)."""
    carry: Any
    """State of the mixers at the start of that chunk (``next_token``)."""
    position: jax.Array
    """Tokens since the slowest level's period began, int32 ``[B]``."""
    signal: Any = ()
    """Levels that adapt: a ``Signal``."""

    @property
    def by_block(self) -> tuple[Any, Any, Any, Any]:
        """The parts whose second axis is the blocks."""
        return self.fast, self.gathered, self.inner, self.start

    def with_blocks(self, parts: Any) -> "CMSState":
        """Returns the state with ``by_block`` replaced."""
        fast, gathered, inner, start = parts
        return self._replace(
            fast=fast, gathered=gathered, inner=inner, start=start
        )


def begin(config: Any, fast: Any, tokens: Any, carry: Any) -> CMSState:
    """Returns the state before the first token, from the initial weights."""
    first = jax.tree.leaves(fast)[0]
    levels = [
        make_level(config, index, None).init(weights)
        for index, weights in enumerate(fast)
    ]
    fast, gathered, inner, _ = zip(*levels, strict=True)
    adapts = config.adaptive != "none"
    return CMSState(
        fast,
        gathered,
        inner,
        (fast[:-1], gathered[:-1]) if config.form == "nested" else (),
        tokens,
        carry,
        jnp.zeros((len(first),), jnp.int32),
        no_signal(len(first), len(fast) - 1, first.dtype) if adapts else (),
    )


def make_level(config: Any, index: int, rate: Any) -> Level:
    """Returns one level over all rows and blocks.

    Args:
        config: a ``CMSConfig``.
        index: index of the level, 0 for the fastest.
        rate: its inner rate, ``[blocks]``; ``init`` works without.
    """
    optimizer, delta = config.optimizers[index], config.deltas[index]

    def init(weights):
        inner = _each(lambda tx, w: tx.init(w))(optimizer, weights)
        return fresh_level(weights, inner)

    def gather(state, new, valid):
        if not delta:
            return add_up(state, new)
        return gather_deltas(rate, new, state.params, state.gathered, valid)

    def step(state, *seen):
        del seen
        direction, inner = _direction(
            optimizer, state.gathered, state.inner, state.params
        )
        # Deltas are gathered with the rate in them.
        own = jnp.ones_like(rate) if delta else rate
        return _descend(state.params, direction, own), inner

    return Level(init, step, config.periods[index], gather)


def advance_levels(
    config: Any,
    rates: Any,
    new: Any,
    state: CMSState,
    count: Any,
    *,
    loss: Any = None,
    valid: jax.Array | None = None,
) -> CMSState:
    """Adds the gradients of up to a chunk; steps the levels that are due.

    Args:
        config: a ``CMSConfig``.
        rates: inner rate of each level, ``[blocks]``.
        new: gradients of each level, from ``probes.writes``.
        state: before these tokens.
        count: number of tokens, one for all rows or ``[B]``.
        loss: mean loss of the chunk in each row, ``[B]``, for adaptive levels.
        valid: ``[B, T]``, False where a probed slot holds no token; ``None`` if
            all slots do.
    """
    levels = [make_level(config, i, rate) for i, rate in enumerate(rates)]
    before = [
        LevelState(fast, gathered, inner, state.position % level.period)
        for level, fast, gathered, inner in zip(
            levels, state.fast, state.gathered, state.inner, strict=True
        )
    ]
    dues: list[Any] = [
        own.since + count >= level.period
        for level, own in zip(levels, before, strict=True)
    ]
    signal = state.signal
    if config.adaptive != "none":
        totals = [
            level.gather(own, added, valid)
            for level, own, added in zip(levels, before, new, strict=True)
        ]
        dues[1:], signal = decide(
            config, signal, state.gathered[1:], totals[1:], loss
        )
        if not isinstance(count, int):  # Some rows complete no chunk.
            dues[1:] = [due & dues[0] for due in dues[1:]]
            signal = select_rows(dues[0], signal, state.signal)
    if isinstance(count, int) and count == config.periods[0]:
        dues[0] = True  # Every row completes a chunk.
    after = [
        level.update(own, added, valid, due=due, count=count)
        for level, own, added, due in zip(
            levels, before, new, dues, strict=True
        )
    ]
    start = state.start
    if config.form == "nested":
        after, start = _return_to_start(
            levels, rates, dues, new, before, after, start
        )
    fast, gathered, inner, _ = zip(*after, strict=True)
    return state._replace(
        fast=fast,
        gathered=gathered,
        inner=inner,
        start=start,
        position=(state.position + count) % config.periods[-1],
        signal=signal,
    )


def _return_to_start(levels, rates, dues, new, before, after, start):
    """Resets each faster level when the next slower one steps (72).

    The start it returns to is a level itself, with the rate and period of the
    slower one and the faster one's gradients (first-order MAML).
    """
    points, sums = map(list, start)
    for index in range(len(points)):
        level, rate, due = levels[index], rates[index + 1], dues[index + 1]

        def step(own, *seen, rate=rate):
            del seen
            return _descend(own.params, own.gathered, rate), ()

        own = LevelState(
            points[index], sums[index], (), before[index + 1].since
        )
        at = Level(level.init, step, levels[index + 1].period).update(
            own, new[index], due=due
        )
        points[index], sums[index] = at.params, at.gathered
        fresh = after[index]._replace(
            params=at.params, inner=level.init(at.params).inner
        )
        after[index] = select_rows(due, fresh, after[index])
    return after, (tuple(points), tuple(sums))


def _each(function):
    """Maps ``function(optimizer, *trees)`` over rows and blocks."""

    def run(optimizer, *trees):
        one = lambda *args: function(optimizer, *args)  # noqa: E731
        return jax.vmap(jax.vmap(one))(*trees)

    return run


@_each
def _direction(optimizer, gradient, state, weights):
    return optimizer.update(gradient, state, weights)


def _descend(weights, direction, rate):
    rate = rate[None, :, None, None]
    return jax.tree.map(lambda w, g: w - rate * g, weights, direction)
