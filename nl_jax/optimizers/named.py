"""Optimizers by name, for training, the continuum memory and experiments.

They return directions of ascent: the learning rate, its sign and weight decay
are left to the caller.
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
    """Entry of ``NAMED``: an optimizer's constructor and its requirements."""

    build: Callable[..., optax.GradientTransformation]
    """Constructor of the optimizer; all its arguments are optional keywords."""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keywords of ``build`` for ``b1``, ``b2`` and ``eps``, where supported."""
    sees: Literal["leaves", "matrices", "rows"] = "leaves"
    """The ``dimension_numbers`` that ``build`` takes: none; of weight matrices,
    with ``None`` for other leaves; or of a matrix view of each leaf."""
    orthogonal: bool = False
    """Whether updates are orthogonal matrices, whose scale is fixed."""
    others: str | None = None
    """Optimizer of leaves that are no matrices, if this one takes none."""


def map_dimensions(function: Callable, numbers: Any, *trees: Any) -> Any:
    """Maps over trees and their dimension numbers, which may be ``None``."""
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
        # Muon takes dimension numbers only for leaves that are not masked.
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
        scale_by_delta_momentum, _RETENTION, "rows"
    ),
    "deep_momentum": NamedOptimizer(scale_by_deep_momentum, sees="rows"),
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
"""Optimizers by name; options that are not listed keep their defaults."""
_NOT_BY_NAME = {
    "dgd": "delta_gradient_descent has to be given layer_inputs at each update",
    "ggd": "generalized_gradient_descent needs an objective of the user's",
}


def find_optimizer(field: str, name: str) -> NamedOptimizer:
    """Returns an optimizer's entry in ``NAMED``.

    Args:
        field: name of the configuration field, for error messages.
        name: name of the optimizer.

    Raises:
        InputError: if there is no such optimizer.

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
