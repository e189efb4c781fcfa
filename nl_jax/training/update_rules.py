r"""What each name of ``OptimizerConfig`` does with gradients.

Blocks are stacked on leading axes, so each rule is told by logical axis names
what is a matrix and what a stack. Muon and M3 orthogonalise matrices, whose
steps would then shrink with their size beside those of other parameters, which
step as in Adam. They are scaled to the root mean square that Adam's steps have,
about 0.2 (arXiv 2502.16982), so that one learning rate serves both.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from nl_jax.optimizers import (
    scale_by_adam_memory,
    scale_by_deep_momentum,
    scale_by_delta_momentum,
    scale_by_m3,
    scale_by_preconditioned_momentum,
)

WIDTHS = ("embed", "mlp", "mixer")
"""Logical axes that are widths of the model."""
_ADAM_RMS = 0.2


def matrix_dimensions(axes: Any) -> Any:
    """Returns, per parameter, which axes Muon and M3 take for a matrix.

    Two of the model's widths are one, inputs before outputs; all other axes are
    a stack of such matrices. ``None`` is for what is no matrix, and, as usual
    for Muon, for the embedding and the head.

    Args:
        axes: tree of tuples of logical names, ``model.logical_axes()``.

    Example:
        >>> found = matrix_dimensions(
        ...     {"w": ("layers", "mlp", "embed"), "table": ("vocab", "embed")}
        ... )
        >>> found["w"], found["table"]
        (MuonDimensionNumbers(reduction_axis=1, output_axis=2), None)
    """

    def numbers(names):
        widths = [i for i, name in enumerate(names) if name in WIDTHS]
        if len(widths) != 2:
            return None
        return MuonDimensionNumbers(*widths)

    return jax.tree.map(numbers, axes, is_leaf=_is_names)


def memory_dimensions(axes: Any) -> Any:
    """Returns, per parameter, the matrix that a memory of gradients sees.

    The last two axes of one block's parameter; of a vector one column. Blocks
    are a stack: the memory of one must not mix with that of the next.

    Args:
        axes: tree of tuples of logical names, ``model.logical_axes()``.

    Example:
        >>> memory_dimensions({"scale": ("layers", "embed")})["scale"]
        MuonDimensionNumbers(reduction_axis=(1,), output_axis=())
    """

    def numbers(names):
        own = [i for i, name in enumerate(names) if name != "layers"]
        if len(own) < 2:
            return MuonDimensionNumbers(tuple(own), ())
        return MuonDimensionNumbers(*own[-2:])

    return jax.tree.map(numbers, axes, is_leaf=_is_names)


def _adam(config, axes):
    del axes
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _adam_memory(config, axes):
    del axes
    return scale_by_adam_memory(config.b1, config.b2, config.eps)


def _muon(config, axes):
    del config
    numbers = matrix_dimensions(axes)

    def present(updates):
        # Muon wants numbers for the group's own leaves and no others.
        return _over_leaves(
            lambda d, leaf: leaf if isinstance(leaf, optax.MaskedNode) else d,
            numbers,
            updates,
        )

    return optax.chain(
        scale_by_muon(weight_dimension_numbers=present),
        _at_rms_of_adam(numbers),
    )


def _m3(config, axes):
    del config
    numbers = matrix_dimensions(axes)
    return optax.chain(
        scale_by_m3(dimension_numbers=numbers), _at_rms_of_adam(numbers)
    )


def _momentum(config, axes):
    del axes
    return scale_by_preconditioned_momentum(retention=config.b1)


def _delta_momentum(config, axes):
    return scale_by_delta_momentum(
        0.1,
        config.b1,
        normalize=True,
        dimension_numbers=memory_dimensions(axes),
    )


def _deep_momentum(config, axes):
    del config
    return scale_by_deep_momentum(
        expansion=1, dimension_numbers=memory_dimensions(axes)
    )


def _at_rms_of_adam(numbers):
    """Scales orthogonal matrices, whose elements are 1 / sqrt(longer side)."""

    def scale(d, leaf):
        if d is None or isinstance(leaf, optax.MaskedNode):
            return leaf
        longer = max(leaf.shape[axis] for axis in d)
        return _ADAM_RMS * longer**0.5 * leaf

    return optax.stateless(
        lambda updates, params: _over_leaves(scale, numbers, updates)
    )


def _over_leaves(function, numbers, *trees):
    """Maps over dimension numbers, ``None`` too, and what they are of."""
    return jax.tree.map(
        function,
        numbers,
        *trees,
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


def _is_names(node):
    return isinstance(node, tuple)


UPDATE_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adam,
    "adam_memory": _adam_memory,
    "muon": _muon,
    "m3": _m3,
    "momentum": _momentum,
    "delta_momentum": _delta_momentum,
    "deep_momentum": _deep_momentum,
}
"""Each takes the configuration and the tree of logical axis names."""
