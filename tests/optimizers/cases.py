"""Every optimizer by name, each as a function of its learning rate."""

import jax
import jax.numpy as jnp
import optax

from nl_jax import optimizers as nl


def delta_gradient_descent(lr):
    """With small inputs of its own for each matrix."""
    tx = nl.delta_gradient_descent(lr)

    def inputs_of(w):
        if w.ndim != 2:
            return None
        return 0.01 * jnp.ones((2, len(w)), w.dtype)

    # In a dictionary, for a tree that is one leaf without inputs.
    def init(params):
        return tx.init({"all": params})

    def update(updates, state, params=None, **extra):
        out, state = tx.update(
            {"all": updates},
            state,
            {"all": params},
            layer_inputs={"all": jax.tree.map(inputs_of, params)},
            **extra,
        )
        return out["all"], state

    return optax.GradientTransformationExtraArgs(init, update)


def generalized_gradient_descent(lr):
    """Whose problem is gradient descent's."""

    def total(f, *trees):
        return sum(jax.tree.leaves(jax.tree.map(f, *trees)))

    tx = nl.generalized_gradient_descent(
        lambda w, u, _: total(jnp.vdot, w, u),
        lambda w, g, _: optax.tree.cast_like(g, w),
        lambda w, old: total(
            lambda a, b: 0.5 * jnp.sum((a - b[-1]) ** 2), w, old
        ),
        optax.sgd(1.0),
        steps=1,
        window=2,
    )
    rate = optax.scale_by_learning_rate(lr, flip_sign=False)
    return optax.chain(tx, rate)


def continuum(lr):
    return nl.continuum(
        {"fast": 1, "slow": 2},
        nl.preconditioned_momentum(lr),
        lambda params: jax.tree.map(
            lambda p: "fast" if p.ndim == 2 else "slow", params
        ),
    )


CASES = {
    "preconditioned-momentum": lambda lr: nl.preconditioned_momentum(lr),
    "delta-momentum": lambda lr: nl.delta_momentum(lr, 0.5, normalize=True),
    "deep-momentum": lambda lr: nl.deep_momentum(lr, expansion=2),
    "deep-momentum-dot": lambda lr: nl.deep_momentum(
        lr, "residual", "dot_product", gain=1.0
    ),
    "feature-momentum": lambda lr: nl.feature_momentum(lr, jnp.arcsinh),
    "nonlinear-output": lambda lr: nl.nonlinear_output(lr),
    "newton-schulz-memory": lambda lr: nl.newton_schulz_memory(lr),
    "slow-momentum": lambda lr: nl.preconditioned_momentum(lr, period=2),
    "learned-preconditioner": lambda lr: nl.learned_preconditioner(lr),
    "adam-memory": lambda lr: nl.adam_memory(lr),
    "adagrad-memory": lambda lr: nl.adagrad_memory(lr),
    "adagrad-memory-matrix": lambda lr: nl.adagrad_memory(lr, "matrix"),
    "delta-gradient-descent": delta_gradient_descent,
    "generalized-gradient-descent": generalized_gradient_descent,
    "every": lambda lr: nl.every(2, optax.adam(lr)),
    "continuum": continuum,
    "m3": lambda lr: nl.m3(lr, period=2),
    "m3-as-printed": lambda lr: nl.m3(
        lr, period=2, accumulation="sum", second_moment="absolute"
    ),
}

RATES = {
    "slow-momentum": 0.01,
    "nonlinear-output": 0.2,
    "newton-schulz-memory": 0.3,
    "learned-preconditioner": 0.1,
    "adam-memory": 0.1,
    "adagrad-memory": 1.0,
    "adagrad-memory-matrix": 1.0,
    "generalized-gradient-descent": 0.1,
    "every": 0.1,
    "m3": 0.05,
}
"""Learning rates at which they converge, where it is not 0.05."""

VARIANTS = (
    "deep-momentum-dot",
    "slow-momentum",
    "adagrad-memory-matrix",
    "m3-as-printed",
)
"""Their tests are marked slow."""

NOT_LIKE_PARAMETERS = (
    "deep-momentum",
    "deep-momentum-dot",
    "delta-gradient-descent",
)
"""Their states need have nothing of a parameter's shape."""
