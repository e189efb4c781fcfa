"""Optimizers by name: for training, the continuum memory and experiments.

What is under a name gives directions of ascent; whoever uses it scales them by
a learning rate, and decays weights.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from nl_jax.errors import InputError
from nl_jax.optimizers.adaptive import (
    scale_by_adagrad_memory,
    scale_by_adam_memory,
)
from nl_jax.optimizers.deep import scale_by_deep_momentum
from nl_jax.optimizers.m3 import scale_by_m3
from nl_jax.optimizers.momentum import (
    scale_by_delta_momentum,
    scale_by_feature_momentum,
    scale_by_preconditioned_momentum,
)
from nl_jax.optimizers.outputs import scale_by_newton_schulz_memory
from nl_jax.optimizers.preconditioner import scale_by_learned_preconditioner


@dataclasses.dataclass(frozen=True)
class NamedOptimizer:
    """How an optimizer is built, and what it has to be told."""

    build: Callable[..., optax.GradientTransformation]
    """Takes options by keyword, none of them required."""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Which of ``b1``, ``b2`` and ``eps`` it has, and what it calls them."""
    sees: Literal["leaves", "matrices", "rows"] = "leaves"
    """What its ``dimension_numbers`` are of: none; matrices of weights, and
    ``None`` for other leaves; or the matrix that a memory sees of any leaf."""
    orthogonal: bool = False
    """Whether its steps are orthogonal matrices, whose size is their own."""
    others: str | None = None
    """Name of what takes the leaves that are no matrices, if it cannot."""


def map_dimensions(function: Callable, numbers: Any, *trees: Any) -> Any:
    """Maps over dimension numbers, ``None`` too, and what they are of."""
    return jax.tree.map(
        function,
        numbers,
        *trees,
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


def _muon(dimension_numbers: Any = None) -> optax.GradientTransformation:
    def present(updates):
        if dimension_numbers is None:
            return jax.tree.map(
                lambda leaf: MuonDimensionNumbers() if leaf.ndim == 2 else None,
                updates,
            )
        # Muon wants numbers for the group's own leaves and no others.
        return map_dimensions(
            lambda d, leaf: leaf if isinstance(leaf, optax.MaskedNode) else d,
            dimension_numbers,
            updates,
        )

    return scale_by_muon(weight_dimension_numbers=present)


_ADAM = {"b1": "b1", "b2": "b2", "eps": "eps"}
_RETENTION = {"b1": "retention"}
NAMED: dict[str, NamedOptimizer] = {
    "adamw": NamedOptimizer(optax.scale_by_adam, _ADAM),
    "adam_memory": NamedOptimizer(scale_by_adam_memory, _ADAM),
    "muon": NamedOptimizer(
        _muon, sees="matrices", orthogonal=True, others="adamw"
    ),
    "m3": NamedOptimizer(scale_by_m3, sees="matrices", orthogonal=True),
    "momentum": NamedOptimizer(scale_by_preconditioned_momentum, _RETENTION),
    "delta_momentum": NamedOptimizer(
        partial(scale_by_delta_momentum, rho=0.1, normalize=True),
        _RETENTION,
        "rows",
    ),
    "deep_momentum": NamedOptimizer(
        partial(scale_by_deep_momentum, expansion=1), sees="rows"
    ),
    "sign_momentum": NamedOptimizer(
        partial(scale_by_feature_momentum, jnp.sign), _RETENTION
    ),
    "newton_schulz_memory": NamedOptimizer(
        scale_by_newton_schulz_memory,
        _RETENTION,
        "matrices",
        orthogonal=True,
        others="adamw",
    ),
    "adagrad_memory": NamedOptimizer(scale_by_adagrad_memory),
    "learned_preconditioner": NamedOptimizer(
        scale_by_learned_preconditioner, sees="matrices", orthogonal=True
    ),
}
"""By name; options that are not asked for keep their defaults."""
_NOT_BY_NAME = {
    "dgd": "delta_gradient_descent has to be given layer_inputs at each update",
    "ggd": "generalized_gradient_descent needs an objective of the user's",
}


def find_optimizer(field: str, name: str) -> NamedOptimizer:
    """Returns the row of ``NAMED``.

    Args:
        field: what is called so, for messages.
        name: of the optimizer.

    Raises:
        InputError: if there is none.

    Example:
        >>> find_optimizer("name", "m3").sees
        'matrices'
    """
    if name in NAMED:
        return NAMED[name]
    if name in _NOT_BY_NAME:
        raise InputError(
            f"{field}={name!r} cannot be chosen by name: {_NOT_BY_NAME[name]}"
        )
    raise InputError(
        f"{field}={name!r} must be one of {', '.join(map(repr, NAMED))}; a new "
        "name has to be put into nl_jax.optimizers.NAMED first"
    )
