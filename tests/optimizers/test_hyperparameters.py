"""Options of every optimizer, and ``optax.inject_hyperparams``."""

import inspect

import jax
import optax
import pytest

from nl_jax import optimizers as nl
from nl_jax.errors import InputError
from tests.optimizers.cases import (
    CASES,
)
from tests.optimizers.contract import (
    PARAMS,
    assert_same,
    compiled,
    every_case,
    gradients,
    run,
    run_once,
)


@every_case
def test_inject_hyperparams_changes_nothing(name):
    tx, update = compiled(name)
    injected = CASES[name].injected(0.1)
    own = jax.jit(injected.update)
    assert_same(
        run(tx, update, 3)[0],
        run(injected, own, 3)[0],
        rtol=1e-5,
        atol=1e-6,
    )
    # The next updates are those of the values that the state now holds.
    state = injected.init(PARAMS)
    for key in set(state.hyperparams) - {"initial"}:
        state.hyperparams[key] *= 0.75
    values = {k: float(v) for k, v in state.hyperparams.items()}
    rate = values.pop("learning_rate" if "learning_rate" in values else "lr")
    case = CASES[name]
    changed = case.factory(rate, **{**case.options, **values})
    assert_same(
        own(gradients(1), state, PARAMS)[0],
        run_once(changed),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "factory",
    {
        case.factory: None
        for case in CASES.values()
        if case.factory.__module__.startswith("nl_jax.")
    },
    ids=lambda factory: factory.__name__,
)
def test_inject_hyperparams_takes_factories_at_their_defaults(factory):
    tx = optax.inject_hyperparams(factory)(0.1)
    state = jax.eval_shape(tx.init, PARAMS)
    jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    with pytest.raises(InputError, match=r"^learning_rate='0.1' must be a f"):
        factory("0.1")
    with pytest.raises(InputError, match=r"^learning_rate=nan must be a fin"):
        factory(float("nan"))


def test_factories_have_the_options_of_what_they_chain():
    names = [
        name.removeprefix("scale_by_")
        for name in nl.__all__
        if name.startswith("scale_by_") and name != "scale_by_memory"
    ]
    assert len(names) == 10
    for name in names:
        options, factory = (
            inspect.signature(getattr(nl, prefix + name)).parameters
            for prefix in ("scale_by_", "")
        )
        assert "state_dtype" in options
        assert {"learning_rate", *options} <= {*factory}, name
        for key, option in options.items():
            assert factory[key].default == option.default, (name, key)
            assert factory[key].annotation == option.annotation, (name, key)


def test_integers_must_be_static_under_inject_hyperparams():
    tx = optax.inject_hyperparams(nl.m3)(0.1, period=2)
    with pytest.raises(InputError, match=r"static_args='period'\)$"):
        tx.init(PARAMS)
