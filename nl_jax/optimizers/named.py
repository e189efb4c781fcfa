"""Optimizers by name, for training, the continuum memory and experiments.

They return directions of ascent: the learning rate, its sign and weight decay
are left to the caller.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_choice, is_number
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
from nl_jax.optimizers.muon import directions_of_muon
from nl_jax.optimizers.outputs import (
    scale_by_newton_schulz_memory,
    scale_by_nonlinear_output,
)
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

    @property
    def keywords(self) -> dict[str, inspect.Parameter]:
        """Keywords of ``build`` without those that training sets."""
        own = {"dimension_numbers", *self.options.values()}
        found = inspect.signature(self.build).parameters
        return {
            name: keyword
            for name, keyword in found.items()
            if name not in own and keyword.kind != keyword.VAR_KEYWORD
        }


_ADAM = {"b1": "b1", "b2": "b2", "eps": "eps"}
_RETENTION = {"b1": "retention"}
NAMED: dict[str, NamedOptimizer] = {
    "sgd": NamedOptimizer(optax.identity),
    "adamw": NamedOptimizer(optax.scale_by_adam, _ADAM),
    "adam_memory": NamedOptimizer(scale_by_adam_memory, _ADAM),
    "muon": NamedOptimizer(
        directions_of_muon, sees="matrices", orthogonal=True, others="adamw"
    ),
    "m3": NamedOptimizer(scale_by_m3, sees="matrices", orthogonal=True),
    "momentum": NamedOptimizer(scale_by_preconditioned_momentum, _RETENTION),
    "delta_momentum": NamedOptimizer(
        scale_by_delta_momentum, _RETENTION, "rows"
    ),
    "deep_momentum": NamedOptimizer(scale_by_deep_momentum, sees="rows"),
    "feature_momentum": NamedOptimizer(
        scale_by_feature_momentum, _RETENTION, "rows"
    ),
    "nonlinear_output": NamedOptimizer(
        scale_by_nonlinear_output,
        _RETENTION,
        "matrices",
        orthogonal=True,
        others="adamw",
    ),
    "newton_schulz_memory": NamedOptimizer(
        scale_by_newton_schulz_memory,
        _RETENTION,
        "matrices",
        orthogonal=True,
        others="adamw",
    ),
    "adagrad_memory": NamedOptimizer(scale_by_adagrad_memory, sees="matrices"),
    "learned_preconditioner": NamedOptimizer(
        scale_by_learned_preconditioner, sees="matrices", orthogonal=True
    ),
}
"""Optimizers by name."""
_NOT_BY_NAME = {
    "adam": "its name is 'adamw'; with weight_decay=0, and in levels, it is "
    "Adam",
    "preconditioned_momentum": "its name is 'momentum'; put one with a "
    "preconditioner of yours into nl_jax.optimizers.NAMED",
    "delta_gradient_descent": "it has to be given the layer_inputs of every "
    "matrix at each update, which a step of training does not record; "
    "docs/optimizers.md has a loop that does",
    "generalized_gradient_descent": "it needs an objective of yours; put one "
    "with it into nl_jax.optimizers.NAMED",
}
_NOT_BY_NAME["dgd"] = _NOT_BY_NAME["delta_gradient_descent"]
_NOT_BY_NAME["ggd"] = _NOT_BY_NAME["generalized_gradient_descent"]


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


def check_options(field: str, name: str, options: Mapping[str, Any]) -> None:
    """Checks options of an optimizer in ``NAMED`` by building it.

    Args:
        field: name of the configuration field, for error messages.
        name: name of the optimizer.
        options: values of some of its ``keywords``.

    Raises:
        InputError: for an option that it does not have, or a wrong value.

    Example:
        >>> check_options("options", "adamw", {"period": 4})
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: options.period is no option of 'adamw'; it \
has eps_root, mu_dtype, nesterov
    """
    row = find_optimizer("name", name)
    fields = {theirs: ours for ours, theirs in row.options.items()}
    for key, value in options.items():
        if key in fields:
            raise InputError(
                f"{field}.{key} of {name!r} is the field {fields[key]!r}"
            )
        if key not in row.keywords:
            raise InputError(
                f"{field}.{key} is no option of {name!r}; it has "
                f"{', '.join(row.keywords) or 'none'}"
            )
        default = row.keywords[key].default
        if isinstance(default, bool):
            check_choice(f"{field}.{key}", value, (True, False))
        elif isinstance(default, float) and not is_number(value):
            raise InputError(f"{field}.{key}={value!r} must be a number")
    if not options:
        return
    try:
        jax.eval_shape(row.build(**options).init, jnp.zeros((2, 2)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{field} of {name!r}: {error}") from error
