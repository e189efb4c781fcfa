r"""The outer optimizer: clipping, a rule, decay, warm-up and cosine, frequencies.

.. math:: \theta \leftarrow \theta
   - \eta_t\,(u(g) + \lambda\theta)

with :math:`u` the rule that the configuration names, by default Adam's, which
makes AdamW, and :math:`\lambda = 0` for norms, biases, gates, convolutions and
initial memories. Parameters of slower levels of a continuum memory step once
per period on the sum of the period's gradients.

Muon and M3 orthogonalise matrices, whose steps would then shrink with their
size beside those of the other parameters, which take Adam's. As in arXiv
2502.16982 they are scaled to the root mean square of Adam's, 0.2, so that one
learning rate serves both. Blocks are stacked on leading axes: each rule is told
by logical axis names what is a matrix and what a stack.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from nl_jax.optimizers import (
    continuum,
    scale_by_adam_memory,
    scale_by_deep_momentum,
    scale_by_delta_momentum,
    scale_by_m3,
    scale_by_preconditioned_momentum,
)
from nl_jax.training.config import OptimizerConfig

__all__ = [
    "decays",
    "make_optimizer",
    "make_schedule",
    "matrix_dimensions",
    "memory_dimensions",
]

_WIDTHS = ("embed", "mlp", "mixer")
_MATRIX_AXES = ("vocab", *_WIDTHS)
_ADAM_RMS = 0.2


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns a linear warm-up followed by a cosine to the final rate.

    Example:
        >>> config = OptimizerConfig(learning_rate=1.0, warmup_steps=2)
        >>> schedule = make_schedule(config, steps=10)
        >>> [round(float(schedule(step)), 2) for step in (0, 1, 9)]
        [0.5, 1.0, 0.1]
    """
    rate = config.learning_rate
    # No step has rate 0: step 0 is the first of the warm-up, not before it.
    warmup = max(min(config.warmup_steps, steps), 1)
    fall = optax.cosine_decay_schedule(
        rate, max(steps - warmup, 1), config.final_rate
    )
    if warmup == 1:
        return fall
    rise = optax.linear_schedule(rate / warmup, rate, warmup - 1)
    return optax.join_schedules([rise, fall], [warmup - 1])


def decays(axes: Any) -> Any:
    """Returns, per parameter, whether weight decay applies.

    It does to matrices between the model's own dimensions, told by logical
    axis names: the axes of memories, heads and convolution taps do not count.

    Example:
        >>> decays({"w": ("embed", "mlp"), "memory": ("heads", "memory_in")})
        {'memory': False, 'w': True}
    """

    def matrix(names):
        return sum(name in _MATRIX_AXES for name in names) >= 2

    return jax.tree.map(matrix, axes, is_leaf=_is_names)


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
        widths = [i for i, name in enumerate(names) if name in _WIDTHS]
        if "vocab" in names or len(widths) != 2:
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


def make_optimizer(
    config: OptimizerConfig, steps: int, axes: Any, periods: Any
) -> optax.GradientTransformation:
    """Returns the whole chain.

    Args:
        config: see :class:`OptimizerConfig`.
        steps: length of the run, for the schedule.
        axes: logical axis names of every parameter.
        periods: update period of every parameter, in steps, from
            ``model.parameter_periods``.
    """
    labels = jax.tree.map(
        lambda period, decay: f"every {period}{', decayed' if decay else ''}",
        periods,
        decays(axes),
    )
    pairs = zip(jax.tree.leaves(labels), jax.tree.leaves(periods), strict=True)
    period_of = dict(pairs)
    rules = {
        label: optax.chain(
            _RULES[config.name](config, axes),
            optax.add_decayed_weights(
                config.weight_decay if label.endswith("decayed") else 0.0
            ),
        )
        for label in period_of
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        continuum(period_of, rules, lambda params: labels),
        # Outside the groups: the rate follows the run's steps, not a group's.
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )


def _adam(config, axes=None):
    del axes
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _adam_memory(config, axes):
    del axes
    return scale_by_adam_memory(config.b1, config.b2, config.eps)


def _muon(config, axes):
    numbers = matrix_dimensions(axes)

    def present(updates):
        """The numbers, without those of leaves that this group masks."""
        return _over_leaves(
            lambda d, leaf: leaf if isinstance(leaf, optax.MaskedNode) else d,
            numbers,
            updates,
        )

    def labels(updates):
        return _over_leaves(
            lambda d, leaf: jax.tree.map(lambda _: _kind(d), leaf),
            numbers,
            updates,
        )

    orthogonal = optax.chain(
        scale_by_muon(weight_dimension_numbers=present),
        _at_rms_of_adam(numbers),
    )
    return optax.partition({"muon": orthogonal, "adam": _adam(config)}, labels)


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


_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adam,
    "adam_memory": _adam_memory,
    "muon": _muon,
    "m3": _m3,
    "momentum": _momentum,
    "delta_momentum": _delta_momentum,
    "deep_momentum": _deep_momentum,
}


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


def _over_leaves(function, numbers, tree):
    """Maps over dimension numbers, ``None`` too, and what they are of."""
    return jax.tree.map(
        function,
        numbers,
        tree,
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


def _kind(numbers):
    return "adam" if numbers is None else "muon"


def _is_names(node):
    return isinstance(node, tuple)
