"""Levels run at their own frequency and knowledge flows where it is claimed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.memory import Gates, associative_memory
from nl_jax.nested import (
    Level,
    LevelState,
    NestedSystem,
    backpropagation,
    describe,
    direct_nonparametric,
    direct_parametric,
    every,
    fresh_level,
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
    states = system.init(dict.fromkeys(system.order, jnp.zeros(2)))
    fast, slow, waiting = 0.0, 0.0, 0.0
    update = jax.jit(system.update)
    for tick, target in enumerate([1.0, -2.0, 4.0, 0.5]):
        states = update(states, target)
        params = {name: state.params for name, state in states.items()}
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
    states = system.update(system.init(params), 5.0)
    assert float(states["follow"].params) == 5.0


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
        return system.update(system.init(params), 0.0)["a"].params

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


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("decay", [False, True])
def test_a_memory_is_a_level_ticked_token_by_token(chunk, decay):
    """What it gathers since the chunk's start is read, too, in between."""
    length, width = 11, 3
    draw = np.random.default_rng(0)
    k, v, q = draw.normal(size=(3, length, width)).astype(np.float32)
    k /= np.linalg.norm(k, axis=1, keepdims=True)  # The rule's steps are NLMS.
    gates = Gates(
        eta=jnp.asarray(draw.uniform(0.1, 0.4, length), jnp.float32),
        log_alpha=jnp.asarray(-draw.uniform(0, 0.2, length) * decay),
    )
    memory = associative_memory("linear", "l2", "gd", chunk_size=chunk)
    start = memory.init((jnp.eye(width),))
    expected, end = memory.scan(start, k, v, q, gates)

    def loss(w, others, token):
        del others
        k, v, eta, _ = token
        return eta * 0.5 * jnp.sum((k @ w - v) ** 2)

    def gather(state, others, token):
        """Keeps a share of the weights so far and takes off the gradient."""
        kept = jnp.exp(token[3]) * (state.params + state.gathered)
        surprise = jax.grad(loss)(state.params, others, token)
        return kept - surprise - state.params

    def step(state, *seen):
        del seen
        return state.params + state.gathered, ()

    level = Level(fresh_level, step, chunk, gather)
    sign = 1
    if not decay:  # Then it is what ``gradient_level`` makes of the loss.
        level, sign = gradient_level(loss, optax.sgd(1.0), chunk), -1
    system = NestedSystem({"memory": level})
    states = system.init({"memory": jnp.eye(width)})
    update = jax.jit(system.update)
    for t in range(length):
        state = states["memory"]
        now = state.params + sign * state.gathered
        np.testing.assert_allclose(q[t] @ now, expected[t], atol=2e-5)
        states = update(states, (k[t], v[t], gates.eta[t], gates.log_alpha[t]))
    state = states["memory"]
    assert state.since == end.position == length % chunk
    np.testing.assert_allclose(
        state.params + sign * state.gathered, end.memory.weights[0], atol=2e-5
    )
    np.testing.assert_allclose(state.params, end.memory.start[0], atol=2e-5)


def test_every_is_a_level_ticked_by_step():
    period, rule = 3, optax.adam(0.1)
    level = gradient_level(lambda w, others, g: jnp.sum(w * g), rule, period)
    tx = every(period, rule)
    params = jnp.array([1.0, -2.0])
    state, opt_state = level.init(params), tx.init(params)
    for seed in range(2 * period + 1):
        g = jax.random.normal(jax.random.key(seed), (2,))
        state = level.update(state, {}, g)
        updates, opt_state = tx.update(g, opt_state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(state.params, params)
        np.testing.assert_array_equal(state.gathered, opt_state.gathered)
        assert state.since == opt_state.calls
    for a, b in zip(
        *map(jax.tree.leaves, (state.inner, opt_state.inner)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_rows_are_due_by_themselves_and_only_who_is_due_pays():
    ran = []

    def step(state, new):
        jax.debug.callback(lambda: ran.append(1))
        return state.params - state.gathered, ()

    zeros = jnp.zeros((2, 3))
    since = jnp.array([0, 2], jnp.int32)
    state = LevelState(zeros, zeros, (), since)
    level = Level(lambda w: state, step, 4)
    update = jax.jit(level.update)
    for tick in range(1, 5):
        state = update(state, jnp.ones((2, 3)))
        jax.effects_barrier()
        assert len(ran) == (tick >= 2) + (tick >= 4)
        moved = np.array([tick // 4, (tick + 2) // 4])
        np.testing.assert_array_equal(state.since, (since + tick) % 4)
        np.testing.assert_array_equal(
            state.params[:, 0], [-4.0 * moved[0], -2.0 * moved[1]]
        )


def test_rows_that_are_not_due_have_a_gradient():
    """Adam's root of a sum of 0 has an infinite derivative."""
    adam = optax.scale_by_adam()

    def step(state, *_):
        direction, inner = jax.vmap(adam.update)(state.gathered, state.inner)
        return state.params - direction, inner

    level = Level(lambda w: fresh_level(w, jax.vmap(adam.init)(w)), step, 2)

    def loss(weights, new):
        state = level.init(weights)._replace(since=jnp.zeros(2, int))
        due = jnp.array([True, False])
        return level.update(state, new, due=due).params.sum()

    new = jnp.array([[2.0], [0.0]])
    gradients = jax.grad(loss, (0, 1))(jnp.ones((2, 1)), new)
    # A first step of Adam is the sign of its gradient, nearly.
    np.testing.assert_allclose(gradients[0], 1)
    np.testing.assert_allclose(gradients[1], 0, atol=1e-6)


def test_levels_and_systems_are_described():
    level = gradient_level(pull, optax.adam(0.1), 4)
    system = NestedSystem({"slow": level, "fixed": level._replace(period=0)})
    slow, fixed = describe(
        system, params={"slow": jnp.zeros(3), "fixed": jnp.zeros(2)}
    ).rows
    assert (slow.name, slow.period, slow.parameters) == ("slow", 4, 3)
    assert slow.state_bytes == 4 * 3 * 3 + 4  # Gathered, two moments, a count.
    assert (fixed.name, fixed.period) == ("fixed", float("inf"))
    (row,) = describe(level).rows
    assert (row.period, row.unit, row.rule) == (4, "ticks", level.rule)
