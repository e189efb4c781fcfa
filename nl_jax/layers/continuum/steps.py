"""How levels of a continuum memory step while a model reads.

Each level is a :class:`nl_jax.nested.Level`, for all rows and blocks at once:
what it gathers are gradients, or the deltas of ``probes.py``, and rows are due
by themselves. One position serves all of them, because each period divides the
next; a :class:`CMSState` therefore keeps that in place of every level's own
``since``, and lists parts by their kind, not by level.
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
        """What is there once for every block, on its second axis."""
        return self.fast, self.gathered, self.inner, self.start

    def with_blocks(self, parts: Any) -> "CMSState":
        """Returns the state with other ``by_block``."""
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
    """Returns one of the levels, in all rows and blocks.

    Args:
        config: a ``CMSConfig``.
        index: which, the fastest first.
        rate: its inner rate, ``[blocks]``; ``init`` needs none.
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
    """Gathers what tokens of one chunk say; steps the levels that are then due.

    Args:
        config: a ``CMSConfig``.
        rates: of each level, ``[blocks]``.
        new: of each level, from :func:`nl_jax.layers.continuum.probes.writes`.
        state: before those tokens.
        count: how many there are in each row, ``[B]``, or in all.
        loss: mean of the chunk in each row, ``[B]``, for levels that adapt.
        valid: which of the probed places are tokens, ``[B, T]``; all.
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
    if isinstance(count, int) and count == config.periods[0]:
        dues[0] = True  # A whole chunk ends in every row.
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
    """Where a slower level stepped, the next faster one begins anew (72).

    Where it begins is a level, too, with the slower one's rate and period, on
    all the gradients of that period (first-order MAML).
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
