"""When levels of a continuum memory step by a signal, not on a grid."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import require


class Signal(NamedTuple):
    """What levels that adapt decide by, batch first."""

    since: jax.Array
    """Chunks since each slower level's last step, int32 ``[B, k - 1]``."""
    norms: jax.Array
    """Sum of the norms of what each has gathered from them, ``[B, k - 1]``."""
    steps: jax.Array
    """Steps that each has taken, int32 ``[B, k - 1]``."""
    loss: jax.Array
    """Running sum and weight of the chunks' losses, ``[B, 2]``."""


def check_adaptive(config: Any) -> None:
    """Raises ``InputError`` for an adaptive ``CMSConfig`` that cannot be."""
    require(
        config.goal.adapts and len(config.periods) > 1,
        f"cms.adaptive={config.adaptive!r} goes with objective='next_token' "
        f"and at least two levels, not {config.objective!r} and "
        f"{len(config.periods)}; the fastest keeps its period",
    )
    most = config.periods[1] // config.periods[0]
    require(
        config.least <= most,
        f"cms.least={config.least} must be at most {most}, the chunks of "
        f"the shortest period in {config.shown_periods} that adapts",
    )
    limit = 1.0 if config.adaptive == "coherence" else math.inf
    require(
        0 < config.threshold <= limit,
        f"cms.threshold={config.threshold} must be in (0, {limit:g}] with "
        f"adaptive={config.adaptive!r}",
    )
    require(
        config.adaptive != "coherence" or config.least > 1,
        f"cms.least={config.least} must be at least 2 with adaptive="
        "'coherence': one chunk always agrees with itself",
    )


def no_signal(batch: int, slower: int, dtype: Any) -> Signal:
    """Returns the signal of ``slower`` levels before the first token."""
    return Signal(
        jnp.zeros((batch, slower), jnp.int32),
        jnp.zeros((batch, slower), dtype),
        jnp.zeros((batch, slower), jnp.int32),
        jnp.zeros((batch, 2), dtype),
    )


def decide(
    config: Any, signal: Signal, before: Any, totals: Any, loss: jax.Array
) -> tuple[list[jax.Array], Signal]:
    """Returns which slower levels step after a chunk, ``[B]`` each.

    No gradient flows through the decision, only through the updates.

    Args:
        config: a ``CMSConfig``.
        signal: before the chunk.
        before: gradients that each slower level had gathered before the chunk.
        totals: gradients gathered including the chunk.
        loss: mean loss over the chunk, ``[B]``.
    """
    loss, totals, before = jax.lax.stop_gradient((loss, totals, before))
    since = signal.since + 1
    added = [
        _row_norm(jax.tree.map(jnp.subtract, total, old))
        for total, old in zip(totals, before, strict=True)
    ]
    norms = signal.norms + jnp.stack(added, 1)
    if config.adaptive == "coherence":
        sums = jnp.stack([_row_norm(total) for total in totals], 1)
        high = sums >= config.threshold * norms
    else:
        total, weight = signal.loss.T
        high = (weight > 0) & (loss * weight > config.threshold * total)
        high = high[:, None]
    most = jnp.array(config.periods[1:]) // config.periods[0]
    due = ((since >= config.least) & high) | (since >= most)
    seen = jnp.stack([loss, jnp.ones_like(loss)], 1).astype(signal.loss.dtype)
    return list(due.T), Signal(
        jnp.where(due, 0, since),
        jnp.where(due, 0, norms),
        signal.steps + due,
        _KEPT * signal.loss + (1 - _KEPT) * seen,
    )


_KEPT = 0.9
"""Of the running mean of losses, by chunk."""


def _row_norm(tree):
    return jax.vmap(optax.tree.norm)(tree)
