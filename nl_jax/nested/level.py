r"""Levels: optimisation problems that are solved one inside the other.

Def. 2-3 of arXiv 2512.24695: each problem has an objective, a context and
parameters, and takes the linearised proximal step
:math:`\theta^+ = \arg\min_\Phi \langle\nabla L(\theta), \Phi\rangle +
\|\Phi-\theta\|^2/(2\eta)`, which is gradient descent; any optax transformation
may take its place. Levels are ordered by their update frequency.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from nl_jax.checks import check_count
from nl_jax.nested.frequency import every

LevelObjective = Callable[[Any, Mapping[str, Any], Any], jax.Array]


class Level(NamedTuple):
    """One optimisation problem as two pure functions."""

    init: Callable[[Any], Any]
    """``params -> state``."""
    update: Callable[..., tuple[Any, Any]]
    """``(params, state, others, context) -> (params, state)``, one tick."""
    period: int
    """Ticks between two updates; 0 for a level that never learns."""

    @property
    def frequency(self) -> float:
        """Updates per tick (Def. 2)."""
        return 1 / self.period if self.period else 0.0


def gradient_level(
    objective: LevelObjective,
    optimizer: optax.GradientTransformation,
    period: int = 1,
) -> Level:
    """Builds a level that follows the gradient of its objective.

    Args:
        objective: ``(params, others, context) -> loss``; ``others`` maps the
            names of the system's other levels to their parameters, through
            which no gradient flows.
        optimizer: any optax transformation.
        period: ticks over which gradients are summed before the optimizer
            runs; 0 freezes the level.

    Raises:
        ValueError: if ``period`` is negative.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> level = gradient_level(
        ...     lambda w, others, x: 0.5 * (w - x) ** 2, optax.sgd(1.0)
        ... )
        >>> w, state = jnp.array(0.0), level.init(jnp.array(0.0))
        >>> w, state = level.update(w, state, {}, jnp.array(3.0))
        >>> float(w)
        3.0
    """
    check_count("period", period, least=0)
    if period == 0:
        return Level(
            lambda params: None,
            lambda params, state, others, context: (params, state),
            0,
        )
    step = every(period, optimizer)

    def update(params, state, others, context):
        others = jax.lax.stop_gradient(others)
        grads = jax.grad(objective)(params, others, context)
        updates, state = step.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return Level(step.init, update, period)


class NestedSystem:
    """Named levels, ordered by frequency, that advance tick by tick.

    ``A`` comes before ``B`` when it is updated more often; among levels of
    equal frequency the order given says which needs the other's state
    (Def. 2), and a level that comes later sees the earlier one's new state.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> pull = lambda w, others, x: 0.5 * jnp.sum((w - x) ** 2)
        >>> system = NestedSystem(
        ...     {
        ...         "slow": gradient_level(pull, optax.sgd(0.1), 4),
        ...         "fast": gradient_level(pull, optax.sgd(0.5), 1),
        ...     }
        ... )
        >>> system.order
        ('fast', 'slow')
    """

    def __init__(self, levels: Mapping[str, Level]):
        if not levels:
            raise ValueError("levels is empty; a system has at least one")
        self.levels = dict(levels)
        self.order = tuple(
            sorted(levels, key=lambda name: -levels[name].frequency)
        )

    def init(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the state of every level for its parameters."""
        self._check(params)
        return {n: self.levels[n].init(params[n]) for n in self.order}

    def update(
        self, params: Mapping[str, Any], states: Mapping[str, Any], context: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Advances every level by one tick on the same context."""
        self._check(params)
        params, states = dict(params), dict(states)
        for name in self.order:
            others = {n: p for n, p in params.items() if n != name}
            params[name], states[name] = self.levels[name].update(
                params[name], states[name], others, context
            )
        return params, states

    def _check(self, params: Iterable[str]):
        if set(params) != set(self.levels):
            raise ValueError(
                f"params has levels {sorted(params)}; the system has "
                f"{sorted(self.levels)}"
            )
