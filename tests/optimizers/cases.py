"""Every optimizer by name, each as a function of its learning rate."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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


def every(lr):
    return nl.every(2, optax.adam(lr))


def continuum(lr):
    return nl.continuum(
        {"fast": 1, "slow": 2},
        nl.preconditioned_momentum(lr),
        lambda params: jax.tree.map(
            lambda p: "fast" if p.ndim == 2 else "slow", params
        ),
    )


class Case(NamedTuple):
    """A factory as users call it."""

    factory: Callable[..., optax.GradientTransformation]
    options: Mapping[str, Any] = MappingProxyType({})

    def __call__(self, lr):
        return self.factory(lr, **self.options)

    def injected(self, lr):
        static = [
            name
            for name, value in self.options.items()
            if isinstance(value, int) or callable(value)
        ]
        factory = optax.inject_hyperparams(self.factory, static_args=static)
        return factory(lr, **self.options)


CASES = {
    "preconditioned-momentum": Case(nl.preconditioned_momentum),
    "delta-momentum": Case(nl.delta_momentum, {"rho": 0.5, "normalize": True}),
    "deep-momentum": Case(nl.deep_momentum, {"expansion": 2}),
    "deep-momentum-dot": Case(
        nl.deep_momentum,
        {"architecture": "residual", "objective": "dot_product", "gain": 1.0},
    ),
    "feature-momentum": Case(nl.feature_momentum, {"feature_map": jnp.arcsinh}),
    "nonlinear-output": Case(nl.nonlinear_output),
    "newton-schulz-memory": Case(nl.newton_schulz_memory),
    "slow-momentum": Case(nl.preconditioned_momentum, {"period": 2}),
    "learned-preconditioner": Case(nl.learned_preconditioner),
    "adam-memory": Case(nl.adam_memory),
    "adagrad-memory": Case(nl.adagrad_memory),
    "adagrad-memory-matrix": Case(nl.adagrad_memory, {"form": "matrix"}),
    "delta-gradient-descent": Case(delta_gradient_descent),
    "generalized-gradient-descent": Case(generalized_gradient_descent),
    "every": Case(every),
    "continuum": Case(continuum),
    "m3": Case(nl.m3, {"period": 2}),
    "m3-as-printed": Case(
        nl.m3,
        {"period": 2, "accumulation": "sum", "second_moment": "absolute"},
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

KEEP_DTYPE = ("generalized-gradient-descent", "every", "continuum")
"""Their states hold past parameters or those of other transformations."""
