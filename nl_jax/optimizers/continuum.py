"""Groups of parameters that learn at their own frequencies (eq. 71)."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from nl_jax.nested.frequency import every


def continuum(
    periods: Mapping[Any, int],
    transformation: optax.GradientTransformation
    | Mapping[Any, optax.GradientTransformation],
    labels: Any | Callable[[Any], Any],
    *,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gives each group of parameters its own update period.

    Args:
        periods: calls between two updates of each group.
        transformation: for all groups, or one for each.
        labels: a tree like the parameters whose leaves name a group, or a
            function from the parameters to it.
        state_dtype: see :func:`every`.

    Raises:
        ValueError: for a period below 1, or a group without a transformation.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> params = {"fast": jnp.zeros(()), "slow": jnp.zeros(())}
        >>> tx = continuum(
        ...     {"a": 1, "b": 2}, optax.sgd(1.0), {"fast": "a", "slow": "b"}
        ... )
        >>> updates, _ = tx.update(
        ...     {"fast": jnp.ones(()), "slow": jnp.ones(())}, tx.init(params)
        ... )
        >>> {name: abs(float(u)) for name, u in updates.items()}
        {'fast': 1.0, 'slow': 0.0}
    """
    if isinstance(transformation, Mapping):
        missing = set(periods) - set(transformation)
        if missing:
            raise ValueError(
                f"groups {sorted(map(str, missing))} have a period but no "
                "transformation"
            )
        rules = dict(transformation)
    else:
        rules = dict.fromkeys(periods, transformation)
    groups = {
        name: every(period, rules[name], state_dtype=state_dtype)
        for name, period in periods.items()
    }
    return optax.with_extra_args_support(optax.partition(groups, labels))
