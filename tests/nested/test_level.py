"""Levels run at their own frequency and knowledge flows where it is claimed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.nested import (
    NestedSystem,
    backpropagation,
    direct_nonparametric,
    direct_parametric,
    generation,
    gradient_level,
    initialization,
)


def pull(w, others, target):
    return 0.5 * jnp.sum((w - target) ** 2)


def test_levels_update_at_their_period_on_the_sum():
    rate = 0.1
    system = NestedSystem(
        {
            "slow": gradient_level(pull, optax.sgd(rate), 3),
            "fast": gradient_level(pull, optax.sgd(rate), 1),
            "frozen": gradient_level(pull, optax.sgd(rate), 0),
        }
    )
    assert system.order == ("fast", "slow", "frozen")
    params = dict.fromkeys(system.order, jnp.zeros(2))
    states = system.init(params)
    fast, slow, waiting = 0.0, 0.0, 0.0
    update = jax.jit(system.update)
    for tick, target in enumerate([1.0, -2.0, 4.0, 0.5]):
        params, states = update(params, states, target)
        fast -= rate * (fast - target)
        waiting += slow - target
        if tick % 3 == 2:
            slow, waiting = slow - rate * waiting, 0.0
        np.testing.assert_allclose(params["fast"], fast, rtol=1e-6)
        np.testing.assert_allclose(params["slow"], slow, rtol=1e-6)
        assert np.all(params["frozen"] == 0)


def test_a_later_level_sees_the_earlier_ones_new_state():
    follow = gradient_level(
        lambda w, others, c: 0.5 * (w - others["lead"]) ** 2, optax.sgd(1.0)
    )
    lead = gradient_level(pull, optax.sgd(1.0))
    system = NestedSystem({"lead": lead, "follow": follow})
    params = {"lead": jnp.zeros(()), "follow": jnp.zeros(())}
    params, _ = system.update(params, system.init(params), 5.0)
    assert float(params["follow"]) == 5.0


def test_no_gradient_crosses_between_levels_of_a_system():
    """Direct transfer: a level's objective cannot move another level."""

    def product(w, others, c):
        return w * others["b"]

    system = NestedSystem(
        {
            "a": gradient_level(product, optax.sgd(1.0)),
            "b": gradient_level(pull, optax.sgd(0.0)),
        }
    )

    def end(b):
        params = {"a": jnp.array(1.0), "b": b}
        return system.update(params, system.init(params), 0.0)[0]["a"]

    assert float(end(jnp.array(3.0))) == -2.0
    assert float(jax.grad(end)(jnp.array(3.0))) == 0.0


def gradients(function, *args):
    out = jax.grad(lambda *a: jnp.sum(function(*a)), range(len(args)))(*args)
    return [float(jnp.abs(g).max()) for g in out]


SLOW, FAST, X = jnp.array([2.0]), jnp.array([3.0]), jnp.array([1.5])


def test_direct_parametric_stops_the_gradient():
    product = direct_parametric(lambda slow, fast, x: slow * fast * x)
    np.testing.assert_allclose(product(SLOW, FAST, X), 9.0)
    slow, fast, x = gradients(product, SLOW, FAST, X)
    assert slow > 0 and x > 0
    assert fast == 0.0


def test_direct_nonparametric_stops_the_gradient():
    def attend(context, x):
        return jax.nn.softmax(context * x) @ context

    function = direct_nonparametric(lambda s, h, x: s * h * x, attend)
    context = jnp.array([1.0, 2.0])
    slow, to_context, x = gradients(function, SLOW, context, X)
    assert slow > 0 and x > 0
    assert to_context == 0.0


def test_backpropagation_is_one_gradient_flow():
    function = backpropagation(lambda s, h: s * h, lambda f, x: f * x)
    assert gradients(function, SLOW, FAST, X) == [4.5, 3.0, 6.0]


def test_initialization_learns_through_the_inner_steps():
    adapt = initialization(
        lambda w, x: 0.5 * jnp.sum((w - x) ** 2), optax.sgd(0.25)
    )
    contexts = jnp.ones((2, 1))
    np.testing.assert_allclose(adapt(SLOW, contexts), 1 + 0.75**2)
    start, context = gradients(adapt, SLOW, contexts)
    np.testing.assert_allclose([start, context], [0.75**2, 0.25])


def test_generation_reaches_the_generator():
    function = generation(lambda s, c: s * c, lambda w, x: w * x)
    slow, context, _ = gradients(function, SLOW, FAST, X)
    assert slow == 4.5 and context == 3.0


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: gradient_level(pull, optax.sgd(1.0), -1), "period=-1"),
        (lambda: NestedSystem({}), "levels is empty"),
        (
            lambda: NestedSystem(
                {"a": gradient_level(pull, optax.sgd(1.0))}
            ).init({"b": 1.0}),
            r"params has levels \['b'\]; the system has \['a'\]",
        ),
    ],
)
def test_bad_input_is_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()
