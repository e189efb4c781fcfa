r"""What the optimizer that ``OptimizerConfig`` names does with gradients.

Blocks are stacked on leading axes, so each rule is told by logical axis names
what is a matrix and what a stack. Those that orthogonalise matrices make steps
that would shrink with their size beside those of other parameters, which step
as in Adam. They are scaled to the root mean square that Adam's steps have,
about 0.2 (arXiv 2502.16982), so that one learning rate serves both.
"""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from nl_jax.optimizers import NAMED
from nl_jax.optimizers.named import map_dimensions

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


def update_rule(
    name: str, config: Any, axes: Any
) -> optax.GradientTransformation:
    """Returns the rule of a name in ``NAMED``, for parameters with those axes.

    Args:
        name: of the optimizer.
        config: an ``OptimizerConfig``, whose options it takes.
        axes: tree of tuples of logical names, ``model.logical_axes()``.
    """
    row = NAMED[name]
    options = {
        theirs: getattr(config, ours) for ours, theirs in row.options.items()
    }
    if row.sees != "leaves":
        find = {"matrices": matrix_dimensions, "rows": memory_dimensions}
        options["dimension_numbers"] = find[row.sees](axes)
    rule = row.build(**options)
    if not row.orthogonal:
        return rule
    return optax.chain(rule, _at_rms_of_adam(options["dimension_numbers"]))


def _at_rms_of_adam(numbers):
    """Scales orthogonal matrices, whose elements are 1 / sqrt(longer side)."""

    def scale(d, leaf):
        if d is None or isinstance(leaf, optax.MaskedNode):
            return leaf
        longer = max(leaf.shape[axis] for axis in d)
        return _ADAM_RMS * longer**0.5 * leaf

    return optax.stateless(
        lambda updates, params: map_dimensions(scale, numbers, updates)
    )


def _is_names(node):
    return isinstance(node, tuple)
