r"""Update rules of named optimizers for the parameters of a model.

Blocks are stacked along leading axes; logical axis names tell a rule which axes
form a matrix. Entries of orthogonalised updates would get smaller as matrices
get larger. They are scaled to the root mean square of Adam's updates, about 0.2
(arXiv 2502.16982), so that one learning rate serves all parameters.
"""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from nl_jax.optimizers import NAMED
from nl_jax.optimizers.muon import map_dimensions

WIDTHS = ("embed", "mlp", "mixer")
"""Logical axes that are dimensions of the model."""
_ADAM_RMS = 0.2


def matrix_dimensions(axes: Any) -> Any:
    """Returns the axes of each parameter that form a matrix for Muon and M3.

    These are the two axes in ``WIDTHS``, inputs before outputs; all others are
    batch axes. Parameters without two such axes get ``None``, and so, as usual
    for Muon, do the embedding and the head.

    Args:
        axes: tuples of logical axis names, ``model.logical_axes()``.

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
    """Returns the axes of each parameter that form a matrix for a memory.

    These are the last two axes of a block's parameter; a vector is a column.
    The axis of blocks is a batch axis, so that their memories do not mix.

    Args:
        axes: tuples of logical axis names, ``model.logical_axes()``.

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
    """Returns the update rule of an optimizer in ``NAMED``.

    Args:
        name: name of the optimizer.
        config: ``OptimizerConfig`` with the values of its options.
        axes: tuples of logical axis names, ``model.logical_axes()``.
    """
    row = NAMED[name]
    options = {
        theirs: getattr(config, ours) for ours, theirs in row.options.items()
    }
    if name == config.name:
        options |= config.options
    if row.sees != "leaves":
        find = {"matrices": matrix_dimensions, "rows": memory_dimensions}
        options["dimension_numbers"] = find[row.sees](axes)
    rule = row.build(**options)
    if not row.orthogonal:
        return rule
    return optax.chain(rule, _at_rms_of_adam(options["dimension_numbers"]))


def _at_rms_of_adam(numbers):
    """Scales orthogonal matrices, whose RMS is 1 / sqrt(longer side)."""

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
