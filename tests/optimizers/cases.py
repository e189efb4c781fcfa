"""Every optimizer by name, each as a function of its learning rate."""

import jax.numpy as jnp

from nl_jax import optimizers as nl

CASES = {
    "preconditioned-momentum": lambda lr: nl.preconditioned_momentum(lr),
    "delta-momentum": lambda lr: nl.delta_momentum(lr, 0.5, normalize=True),
    "deep-momentum": lambda lr: nl.deep_momentum(lr, expansion=2),
    "deep-momentum-l2": lambda lr: nl.deep_momentum(lr, objective="l2"),
    "feature-momentum": lambda lr: nl.feature_momentum(lr, jnp.arcsinh),
    "nonlinear-output": lambda lr: nl.nonlinear_output(lr),
    "newton-schulz-memory": lambda lr: nl.newton_schulz_memory(lr),
    "slow-momentum": lambda lr: nl.preconditioned_momentum(lr, period=2),
    "adam-memory": lambda lr: nl.adam_memory(lr),
    "adagrad-memory": lambda lr: nl.adagrad_memory(lr),
    "adagrad-memory-matrix": lambda lr: nl.adagrad_memory(lr, "matrix"),
    "m3": lambda lr: nl.m3(lr, period=2),
    "m3-sum": lambda lr: nl.m3(lr, period=2, accumulation="sum"),
}

RATES = {
    "slow-momentum": 0.01,
    "nonlinear-output": 0.3,
    "newton-schulz-memory": 0.3,
    "adam-memory": 0.1,
    "adagrad-memory": 1.0,
    "adagrad-memory-matrix": 1.0,
    "m3": 0.05,
}
"""Learning rates at which they converge, where it is not 0.05."""
