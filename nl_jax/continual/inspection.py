"""Inspection of a state: progress of its levels and norms of its memories."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.continual.validation import fresh_state
from nl_jax.models import LanguageModel
from nl_jax.models.language_model import ModelState
from nl_jax.models.model_state import check_state


@dataclasses.dataclass(frozen=True)
class LevelReport:
    """Level that learns in context; its arrays have one entry per row."""

    name: str
    """Name of the level in ``describe(model)``."""
    period: int
    """Tokens between updates of the level; the most if it is adaptive."""
    position: np.ndarray
    """Tokens since the last update of the level."""
    norm: np.ndarray
    """Frobenius norm of the fast weights."""
    distance: np.ndarray
    """Frobenius norm of the fast weights' difference to the slow weights."""
    gathered: np.ndarray
    """Frobenius norm of the gradients gathered since the last update."""


@dataclasses.dataclass(frozen=True)
class StateReport:
    """Result of :func:`inspect`; ``str`` formats it as a table per row."""

    levels: tuple[LevelReport, ...]
    """Levels that learn in context, the fastest first; empty if none does."""
    mixers: dict[str, np.ndarray]
    """Frobenius norms ``[B, n_layers]`` of each leaf of the mixers' state."""

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite."""
        norms = list(self.mixers.values())
        for level in self.levels:
            norms += [level.norm, level.distance, level.gathered]
        return all(np.isfinite(norm).all() for norm in norms)

    def __str__(self) -> str:
        lines = []
        rows = len(next(iter(self.mixers.values())))
        for row in range(rows):
            lines.append(f"row {row}")
            for level in self.levels:
                lines.append(
                    f"  {level.name}: token {level.position[row]} of "
                    f"{level.period}, norm {level.norm[row]:.4g}, moved "
                    f"{level.distance[row]:.4g}, gathered "
                    f"{level.gathered[row]:.4g}"
                )
            for name, norms in self.mixers.items():
                each = " ".join(f"{norm:.4g}" for norm in norms[row])
                lines.append(f"  mixers{name}: norm {each}")
        return "\n".join(lines)


def inspect(
    model: LanguageModel, variables: Any, state: ModelState
) -> StateReport:
    """Measures each row of a state.

    Args:
        model: model from :func:`nl_jax.models.build`.
        variables: parameters of the model, from which distances are measured.
        state: state of the model.

    Raises:
        ValueError: if the state is of another model.

    Example:
        >>> from nl_jax.models import build
        >>> model = build("lstm", d_model=8, n_heads=1, n_layers=1)
        >>> tokens = jnp.ones((1, 3), int)
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> report = inspect(model, variables, model.init_state(variables, 1))
        >>> report.finite, report.levels
        (True, ())
    """
    rows = check_state(model, state)
    mixers = {
        jax.tree_util.keystr(path): np.asarray(norm)
        for path, norm in jax.tree_util.tree_leaves_with_path(
            _layer_norms(state.mixers)
        )
    }
    if state.cms is None:
        return StateReport((), mixers)
    start = fresh_state(model, variables, rows).cms
    levels = []
    for index, period in enumerate(model.config.cms.periods):
        fast = state.cms.fast[index]
        moved = jax.tree.map(jnp.subtract, fast, start.fast[index])
        levels.append(
            LevelReport(
                name=f"cms.level_{index + 1}",
                period=period,
                position=_position(model.config.cms, state.cms, index),
                norm=np.asarray(_row_norm(fast)),
                distance=np.asarray(_row_norm(moved)),
                gathered=np.asarray(_row_norm(state.cms.gathered[index])),
            )
        )
    return StateReport(tuple(levels), mixers)


def _position(config, cms, index):
    position, chunk = np.asarray(cms.position), config.periods[0]
    if config.adaptive == "none" or not index:
        return position % config.periods[index]
    return np.asarray(cms.signal.since[:, index - 1]) * chunk + position % chunk


def _norm(leaf, kept):
    """Returns the norm over all but the first ``kept`` axes, in float32."""
    flat = leaf.reshape(*leaf.shape[:kept], -1).astype(jnp.float32)
    return jnp.linalg.norm(flat, axis=-1)


@jax.jit
def _layer_norms(mixers):
    return jax.tree.map(
        lambda leaf: (
            _norm(leaf, 2) if jnp.issubdtype(leaf.dtype, jnp.floating) else None
        ),
        mixers,
    )


@jax.jit
def _row_norm(tree):
    norms = [_norm(leaf, 1) for leaf in jax.tree.leaves(tree)]
    return jnp.linalg.norm(jnp.stack(norms), axis=0)


def state_norms(state: Any) -> dict[str, float]:
    """Returns the Frobenius norm of each floating leaf of a fast state."""
    norms = _norms(state)
    return {
        jax.tree_util.keystr(path): float(norm)
        for path, norm in jax.tree_util.tree_leaves_with_path(norms)
    }


@jax.jit
def _norms(state):
    def norm(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return None
        return jnp.linalg.norm(leaf.astype(jnp.float32).ravel())

    return jax.tree.map(norm, state)
