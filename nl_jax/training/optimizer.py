r"""The optimizer of training: a named rule with clipping, decay and schedule.

.. math:: \theta \leftarrow \theta
   - \eta_t\,(u(g) + \lambda\theta)

with :math:`u` the rule named in the configuration, by default that of AdamW,
and :math:`\lambda = 0` for norms, biases, gates, convolutions and initial
memories. Parameters of slower levels of a continuum memory are updated once per
period, with the sum of the period's gradients.
"""

import dataclasses
from typing import Any

import jax
import optax

from nl_jax.optimizers import NAMED, continuum
from nl_jax.training.train_config import OptimizerConfig
from nl_jax.training.update_rules import WIDTHS, matrix_dimensions, update_rule

_MATRIX_AXES = ("vocab", *WIDTHS)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns a linear warm-up followed by the schedule of the configuration.

    Example:
        >>> config = OptimizerConfig(
        ...     learning_rate=1.0, warmup_steps=2, schedule="wsd"
        ... )
        >>> schedule = make_schedule(config, steps=10)
        >>> [round(float(schedule(step)), 2) for step in (0, 1, 7, 8, 9)]
        [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    rate = config.learning_rate
    # Step 0 already belongs to the warm-up, so that no step has rate 0.
    warmup = max(min(config.warmup_steps, steps), 1)
    rest = max(steps - warmup, 1)
    if config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(rate, rest, config.final_rate)
    elif config.schedule == "constant":
        fall = optax.constant_schedule(rate)
    else:
        decay = min(max(round(config.decay_share * steps), 1), rest)
        fall = optax.linear_schedule(
            rate, rate * config.final_rate, decay, rest - decay
        )
    if warmup == 1:
        return fall
    rise = optax.linear_schedule(rate / warmup, rate, warmup - 1)
    return optax.join_schedules([rise, fall], [warmup - 1])


def decays(axes: Any) -> Any:
    """Returns for each parameter whether it has weight decay.

    Only matrices between dimensions of the model have it, recognised by logical
    axis names; axes of memories, heads and convolution taps do not count.

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
    """Returns the complete optimizer.

    Args:
        config: rule and hyperparameters.
        steps: number of steps of the run, for the schedule.
        axes: logical axis names of each parameter.
        periods: update period of each parameter, in steps, from
            ``model.parameter_periods``.
    """
    others = NAMED[config.name].others
    groups = jax.tree.map(
        lambda period, decayed, numbers: _Group(
            period, decayed, falls_back=others is not None and numbers is None
        ),
        periods,
        decays(axes),
        matrix_dimensions(axes),
    )
    labels = jax.tree.map(str, groups)
    known = {str(group): group for group in jax.tree.leaves(groups)}
    rules = {
        label: optax.chain(
            update_rule(
                others if others and group.falls_back else config.name,
                config,
                axes,
            ),
            optax.add_decayed_weights(
                config.weight_decay if group.decayed else 0.0
            ),
        )
        for label, group in known.items()
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        continuum(
            {label: group.period for label, group in known.items()},
            rules,
            lambda params: labels,
        ),
        # Outside the groups, because the schedule counts steps of the run.
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )


@dataclasses.dataclass(frozen=True)
class _Group:
    """Parameters with the same rule; ``str`` is their key in checkpoints."""

    period: int
    decayed: bool
    falls_back: bool
    """Whether these are no matrices, and the rule is for matrices only."""

    def __str__(self) -> str:
        words = [f"every {self.period}"]
        words += ["decayed"] if self.decayed else []
        words += ["Adam"] if self.falls_back else []
        return ", ".join(words)
