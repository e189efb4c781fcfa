r"""AdamW for language models: warm-up, cosine, clipping, groups, frequencies.

.. math:: \theta \leftarrow \theta
   - \eta_t\,(\hat m / (\sqrt{\hat v} + \epsilon) + \lambda\theta)

with :math:`\lambda = 0` for norms, biases, gates, convolutions and initial
memories. Parameters of slower levels of a continuum memory step once per period
on the mean gradient of the period.
"""

from typing import Any

import jax
import optax

from nl_jax.optimizers import continuum
from nl_jax.training.config import OptimizerConfig

__all__ = ["decays", "make_optimizer", "make_schedule"]

_MATRIX_AXES = ("vocab", "embed", "mlp", "mixer")


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

    return jax.tree.map(matrix, axes, is_leaf=lambda x: isinstance(x, tuple))


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
            optax.scale_by_adam(config.b1, config.b2, config.eps),
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
