r"""Resetting a level of a running model, or consolidating what it learned.

Consolidation moves the slow parameters of a level, or of the memories of all
mixers, from which every stream starts, towards its fast weights:

.. math:: \theta^{(\ell)}_0 \leftarrow \theta^{(\ell)}_0 + s \Big(
   \sum_r w_r\, \theta^{(\ell)}_r - \theta^{(\ell)}_0 \Big)

with fast weights :math:`\theta_r` and a share :math:`w_r` for each row, the
shares summing to 1, and a step size :math:`s`. This is the knowledge transfer
by initialisation of arXiv 2512.24695, section 3.3, with a step of Reptile
(arXiv 1803.02999) instead of a gradient through the stream.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.checks import check_number
from nl_jax.continual.rows import replace_rows
from nl_jax.continual.validation import (
    ALL_MIXERS,
    check_level,
    check_rows,
    fresh_state,
)
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel
from nl_jax.models.language_model import ModelState
from nl_jax.models.model_state import check_state, params_of


def reset_level(
    model: LanguageModel,
    variables: Any,
    state: ModelState,
    level: int | str,
    rows: int | Iterable[int] | None = None,
) -> ModelState:
    """Resets one level to its initial state; other levels are unchanged.

    The level's fast weights return to its slow parameters; gathered gradients
    and momentum are cleared. The time of its next update does not change,
    unless its period is adaptive. ``"mixers"`` resets the memories of all
    sequence mixers, and discards an unfinished chunk that was to be replayed
    (``next_token``), because it was read with them.

    Args:
        model: model from :func:`nl_jax.models.build`.
        variables: parameters of the model, with the learned initial state.
        state: state of the model.
        level: number of the level in ``describe(model)``, where 1 is the
            fastest, or ``"mixers"``.
        rows: rows to reset; ``None`` for all.

    Returns:
        The new state; ``state`` stays valid.

    Raises:
        ValueError: if the state is of another model, or a level or row does
            not exist.
    """
    check_level(model, level)
    count = check_state(model, state)
    start = fresh_state(model, variables, count)
    cms: Any = state.cms
    if level == ALL_MIXERS:
        fresh = state._replace(mixers=start.mixers)
        if cms is not None:
            config = model.config.cms
            cms = config.goal.drop_chunk(config, cms, start.mixers)
            fresh = fresh._replace(cms=cms)
    else:
        fresh = state._replace(cms=_begin_level(cms, start.cms, int(level) - 1))
    if rows is None:
        return fresh
    return replace_rows(state, fresh, check_rows(rows, count))


def consolidate(
    model: LanguageModel,
    variables: Any,
    state: ModelState,
    level: int | str,
    *,
    row: int | None = None,
    weights: Sequence[float] | None = None,
    share: float = 1.0,
) -> Any:
    """Moves slow parameters to what a level or the mixers have learned.

    New contexts then start from what the level has learned. States stay valid
    and unchanged, except for their distance to the start.

    Args:
        model: model from :func:`nl_jax.models.build`.
        variables: parameters of the model.
        state: state of the model.
        level: number of the level in ``describe(model)``, where 1 is the
            fastest; or ``"mixers"`` for the memories of all mixers, whose
            learned initial weights move.
        row: row to consolidate, if the state has several.
        weights: or shares of all rows, ``[B]``, at least 0 and summing to 1.
        share: step size, in (0, 1]; 1 replaces the slow parameters.

    Returns:
        The new parameters; ``variables`` stay valid.

    Raises:
        ValueError: if the state is of another model, an argument is not as
            described, or the mixers' memories start from nothing learned.

    Example:
        >>> from nl_jax.models import build
        >>> model = build("hope", d_model=8, n_heads=1, n_layers=1)
        >>> tokens = jnp.ones((1, 3), int)
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> _, state = jax.jit(model.apply)(variables, tokens)
        >>> new = consolidate(model, variables, state, "mixers")
        >>> name = "memory_0"
        >>> start = new["params"]["blocks"]["mixer"][name]
        >>> bool((start == state.mixers.memory.weights[0]).all())
        True
    """
    check_level(model, level)
    count = check_state(model, state)
    check_number("share", share)
    if not 0 < share <= 1:
        raise InputError(f"share={share} must be in (0, 1]")
    part, own, learned = _learned(model, state, level)
    if weights is not None:
        learned = _mean(learned, _weights(weights, count, row))
    else:
        if row is None and count > 1:
            raise InputError(
                f"row=None: the state has {count} rows; say which one, or how "
                "much of each with weights="
            )
        (row,) = check_rows(row or 0, count)
        learned = jax.tree.map(lambda leaf: leaf[row], learned)
    params = params_of(variables)
    blocks = params["blocks"]

    def move(old, new):
        """Replaces the leaves of ``old`` that ``new`` has."""
        if isinstance(new, dict):
            return old | {name: move(old[name], new[name]) for name in new}
        old = jnp.asarray(old)
        if share < 1:
            new = old[own] + share * (new - old[own])
        return old.at[own].set(new.astype(old.dtype))

    blocks = blocks | {part: move(blocks[part], learned)}
    return variables | {"params": params | {"blocks": blocks}}


def _learned(model, state, level):
    """Returns a part of the blocks, which of them, and their new parameters."""
    config = model.config
    if level == ALL_MIXERS:
        learned = config.choices.learned(state.mixers)
        if not learned:
            raise InputError(
                f"level={level!r}: the memories of this {config.name} do not "
                "start from learned weights, which could be moved"
            )
        return "mixer", slice(None), learned
    prefix = config.cms.prefixes[level - 1]
    own = config.cms.blocks(config.n_layers)[level - 1]
    fast = state.cms.fast[level - 1].items()
    return "cms", own, {f"{prefix}{name}": leaf for name, leaf in fast}


def _begin_level(cms, start, index):
    def one(old, new):
        return _with(old, index, new[index]) if index < len(old) else old

    signal = cms.signal
    if signal and index:  # Norms of gathered gradients, which are cleared.
        norms = signal.norms.at[:, index - 1].set(0)
        signal = signal._replace(norms=norms)
    return cms._replace(
        signal=signal,
        fast=one(cms.fast, start.fast),
        gathered=one(cms.gathered, start.gathered),
        inner=one(cms.inner, start.inner),
        start=tuple(map(one, cms.start, start.start)),
    )


def _with(levels, index, level):
    return (*levels[:index], level, *levels[index + 1 :])


def _weights(weights, count, row):
    try:
        found = np.asarray(weights, float)
    except (TypeError, ValueError):
        raise InputError(
            f"weights={weights!r} must be numbers, one per row"
        ) from None
    if row is not None:
        raise InputError(f"row={row} and weights are given; give one of them")
    if found.shape != (count,):
        raise InputError(
            f"weights has shape {found.shape}; needs ({count},), one per row"
        )
    if not (found >= 0).all() or abs(found.sum() - 1) > 1e-6:
        raise InputError(
            f"weights={found.tolist()} must be >= 0, with a sum of 1"
        )
    return found


def _mean(fast, weights):
    return jax.tree.map(
        lambda leaf: jnp.tensordot(jnp.asarray(weights, leaf.dtype), leaf, 1),
        fast,
    )
