"""``every`` and ``continuum``: frequency composes with any optax pipeline."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.errors import InputError
from nl_jax.nested import describe
from nl_jax.optimizers import continuum, every, preconditioned_momentum

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros((2,)), "none": None}


def gradients(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "w": jax.random.normal(keys[0], (3, 2)),
        "b": jax.random.normal(keys[1], (2,)),
        "none": None,
    }


def run(tx, count, params=PARAMS):
    update = jax.jit(tx.update)
    state, outs = tx.init(params), []
    for seed in range(count):
        out, state = update(gradients(seed), state, params)
        outs.append(out)
    return outs, state


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_equals_the_inner_rule_on_gathered_gradients(reduce):
    outs, _ = run(every(3, optax.adam(0.1), reduce=reduce), 6)
    inner = optax.adam(0.1)
    state = inner.init(PARAMS)
    for group in range(2):
        for wait in range(2):
            assert all(
                np.all(leaf == 0)
                for leaf in jax.tree.leaves(outs[3 * group + wait])
            )
        total = jax.tree.map(
            lambda *g: sum(g) / (3 if reduce == "mean" else 1),
            *(gradients(3 * group + i) for i in range(3)),
        )
        expected, state = inner.update(total, state, PARAMS)
        for a, b in zip(
            *map(jax.tree.leaves, (outs[3 * group + 2], expected)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_gathers_in_float32_what_bfloat16_could_not_count():
    ones = jnp.ones(2, jnp.bfloat16)

    def total(tx):
        def step(state, _):
            updates, state = tx.update(ones, state)
            return state, updates

        return jax.lax.scan(step, tx.init(ones), length=512)[1][-1]

    out = total(every(512, optax.sgd(1.0)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(np.float32), -512)
    # In bfloat16, 256 + 1 is 256.
    out = total(every(512, optax.sgd(1.0), state_dtype="bfloat16"))
    np.testing.assert_array_equal(out.astype(np.float32), -256)
    with pytest.raises(InputError, match=r"^state_dtype='int8' must be a dt"):
        every(2, optax.sgd(1.0), state_dtype="int8").init(ones)


def test_the_inner_rule_runs_only_when_due():
    calls = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda: calls.append(1))
        return updates, state

    counted = optax.GradientTransformation(lambda p: optax.EmptyState(), update)
    run(every(4, counted), 9)
    jax.effects_barrier()
    assert len(calls) == 2


def test_schedules_inside_count_real_updates():
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.0})
    tx = every(2, optax.sgd(schedule))
    outs, _ = run(tx, 4)
    assert np.abs(outs[1]["w"]).max() > 0
    assert np.all(outs[3]["w"] == 0)  # The second real update has rate 0.


def test_continuum_gives_each_group_its_period():
    labels = {"w": "fast", "b": "slow", "none": None}
    tx = continuum({"fast": 1, "slow": 2}, optax.sgd(1.0), labels)
    outs, _ = run(tx, 2)
    np.testing.assert_allclose(outs[0]["w"], -gradients(0)["w"])
    assert np.all(outs[0]["b"] == 0)
    np.testing.assert_allclose(
        outs[1]["b"], -(gradients(0)["b"] + gradients(1)["b"]), rtol=1e-6
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        lambda tx: optax.masked(tx, {"w": True, "b": False, "none": None}),
        lambda tx: optax.inject_hyperparams(
            lambda learning_rate: every(2, optax.sgd(learning_rate))
        )(learning_rate=0.1),
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: optax.apply_if_finite(tx, 3),
    ],
    ids=["chain", "masked", "inject", "multi-steps", "apply-if-finite"],
)
def test_composes(wrap):
    outs, _state = run(wrap(every(2, optax.adam(0.1))), 4)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(outs))
    moved = jax.tree.map(lambda *a: np.abs(jnp.stack(a)).max(), *outs)
    assert moved["w"] > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_kept_and_nothing_recompiles(dtype):
    params = {"w": jnp.ones((3, 2), dtype)}
    tx = every(2, optax.adam(0.1))
    state = tx.init(params)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    traces = []

    @jax.jit
    def update(g, s):
        traces.append(1)
        return tx.update(g, s, params)

    for _ in range(3):
        out, state = update(params, state)
        assert out["w"].dtype == dtype
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == shapes
    assert len(traces) == 1


def test_gradients_of_another_dtype_do_not_change_the_state():
    params = {"w": jnp.ones(3, "bfloat16")}
    tx = every(2, optax.sgd(0.1))
    state = tx.init(params)
    _, after = tx.update({"w": jnp.ones(3, "float32")}, state, params)
    assert after.gathered["w"].dtype == state.gathered["w"].dtype


def test_a_state_of_a_longer_period_is_due_at_once():
    params = {"w": jnp.ones(2)}
    state = every(8, optax.sgd(1.0)).init(params)
    state = state._replace(calls=jnp.array(5, jnp.int32))
    out, state = every(3, optax.sgd(1.0)).update(params, state)
    assert (out["w"] == -1).all() and state.calls == 0


def go_on(before, after, steps, more):
    """Updates of ones by ``after``, once ``before`` has had ``steps``."""
    one, outs = {"w": jnp.ones(1)}, []
    txs = itertools.chain([before] * steps, [after] * more)
    state = before.init(one)
    for tx in txs:
        out, state = tx.update(one, state, one)
        outs.append(float(out["w"][0]))
    return outs[steps:], describe(state, params=one).rows[-1].period


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize(
    ("periods", "steps", "windows"),
    [
        ((4, 2), 3, [4, 0, 2, 0]),
        ((2, 3), 1, [0, 3, 0, 0]),
        ((4, 1), 3, [4, 1, 1]),
        ((1, 3), 2, [0, 0, 3, 0]),
    ],
)
def test_a_period_may_change(reduce, periods, steps, windows):
    """Each update has what came since the one before, whatever its number."""
    # A momentum that forgets at once, for a row in the table.
    rule = optax.sgd(1.0, momentum=0.0)
    before, after = (every(n, rule, reduce=reduce) for n in periods)
    outs, period = go_on(before, after, steps, len(windows))
    want = windows if reduce == "sum" else [min(n, 1) for n in windows]
    assert outs == [-n for n in want]
    assert period == periods[1]


def test_a_period_changes_behind_a_guard_and_in_a_loop():
    params = {"w": jnp.ones(2)}
    four, two = (
        optax.apply_if_finite(every(n, optax.sgd(1.0)), 3) for n in (4, 2)
    )

    def step(state, _):
        out, state = two.update(params, state)
        return state, out["w"][0]

    _, outs = jax.lax.scan(step, four.init(params), length=4)
    assert outs.tolist() == [0, -2, 0, -2]


def test_every_call_of_a_longer_period_is_that_period():
    nested = every(1, every(2, optax.sgd(1.0)))
    assert go_on(nested, nested, 0, 4) == ([0, -2, 0, -2], 1)


def test_the_period_of_a_memory_may_change():
    """Momentum that halves; its output holds until the next write."""
    for periods, steps, wanted in (
        ((4, 1), 2, [3, 2.5, 2.25]),
        ((1, 2), 2, [1.5, 2.75, 2.75]),
        ((4, 2), 3, [4, 4, 4]),
    ):
        before, after = (
            preconditioned_momentum(1.0, retention=0.5, period=n)
            for n in periods
        )
        outs, period = go_on(before, after, steps, len(wanted))
        assert outs == [-n for n in wanted]
        assert period == periods[1]


def test_init_on_shapes_and_vmap():
    tx = every(np.int64(2), optax.adam(0.1))
    shape = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    state = jax.eval_shape(tx.init, shape)
    assert state.gathered["w"].shape == (3,)
    stacked = {"w": jnp.ones((5, 3))}
    states = jax.vmap(tx.init)(stacked)
    out, _ = jax.vmap(tx.update)(stacked, states)
    assert out["w"].shape == (5, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: every(0, optax.sgd(1.0)), "period=0 must be"),
        (lambda: every(True, optax.sgd(1.0)), "period=True must be"),
        (lambda: every(2, optax.sgd(1.0), reduce="max"), "reduce='max'"),
        (
            lambda: continuum({"a": 1}, {"b": optax.sgd(1.0)}, {}),
            r"groups \['a'\] have a period but no transformation",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
