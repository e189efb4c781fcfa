"""Deep optimizers: optax transformations that are memories."""

from nl_jax.nested.frequency import every
from nl_jax.optimizers.adaptive import (
    ScaleByAdaGradMemoryState,
    ScaleByAdamMemoryState,
    adagrad_memory,
    adam_memory,
    scale_by_adagrad_memory,
    scale_by_adam_memory,
)
from nl_jax.optimizers.continuum import continuum
from nl_jax.optimizers.deep import deep_momentum, scale_by_deep_momentum
from nl_jax.optimizers.delta import (
    DeltaGradientDescentState,
    delta_gradient_descent,
    with_layer_inputs,
)
from nl_jax.optimizers.generalized import (
    GeneralizedGradientDescentState,
    generalized_gradient_descent,
)
from nl_jax.optimizers.m3 import ScaleByM3State, m3, scale_by_m3
from nl_jax.optimizers.matrices import orthogonalize
from nl_jax.optimizers.memory import ScaleByMemoryState, scale_by_memory
from nl_jax.optimizers.meta import begin_with, meta_learn
from nl_jax.optimizers.momentum import (
    delta_momentum,
    delta_objective,
    feature_momentum,
    preconditioned_momentum,
    scale_by_delta_momentum,
    scale_by_feature_momentum,
    scale_by_preconditioned_momentum,
)
from nl_jax.optimizers.named import (
    NAMED,
    NamedOptimizer,
    check_options,
    find_optimizer,
)
from nl_jax.optimizers.outputs import (
    newton_schulz_memory,
    nonlinear_output,
    scale_by_newton_schulz_memory,
    scale_by_nonlinear_output,
)
from nl_jax.optimizers.preconditioner import (
    ScaleByLearnedPreconditionerState,
    learned_preconditioner,
    scale_by_learned_preconditioner,
)

__all__ = [
    "NAMED",
    "DeltaGradientDescentState",
    "GeneralizedGradientDescentState",
    "NamedOptimizer",
    "ScaleByAdaGradMemoryState",
    "ScaleByAdamMemoryState",
    "ScaleByLearnedPreconditionerState",
    "ScaleByM3State",
    "ScaleByMemoryState",
    "adagrad_memory",
    "adam_memory",
    "begin_with",
    "check_options",
    "continuum",
    "deep_momentum",
    "delta_gradient_descent",
    "delta_momentum",
    "delta_objective",
    "every",
    "feature_momentum",
    "find_optimizer",
    "generalized_gradient_descent",
    "learned_preconditioner",
    "m3",
    "meta_learn",
    "newton_schulz_memory",
    "nonlinear_output",
    "orthogonalize",
    "preconditioned_momentum",
    "scale_by_adagrad_memory",
    "scale_by_adam_memory",
    "scale_by_deep_momentum",
    "scale_by_delta_momentum",
    "scale_by_feature_momentum",
    "scale_by_learned_preconditioner",
    "scale_by_m3",
    "scale_by_memory",
    "scale_by_newton_schulz_memory",
    "scale_by_nonlinear_output",
    "scale_by_preconditioned_momentum",
    "with_layer_inputs",
]
