import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.models import LanguageModel
from nl_jax.training import (
    OptimizerConfig,
    TrainState,
    make_schedule,
    make_train_step,
)
from tests.training.conftest import LENGTHS, outer_optimizer, parts


def test_a_batch_is_learned_whole_or_in_accumulated_parts(tiny):
    model, state, optimizer, batch = parts(
        tiny(steps=30, optimizer=OptimizerConfig(warmup_steps=1))
    )
    whole = jax.jit(make_train_step(model, optimizer, LENGTHS))
    cut = jax.jit(make_train_step(model, optimizer, LENGTHS, accumulate=2))
    (a, b), (c, d) = whole(state, batch), cut(state, batch)
    np.testing.assert_allclose(b["grad_norm"], d["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(b["sums"].nats, d["sums"].nats, rtol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5),
        a.variables,
        c.variables,
    )
    losses = []
    for _ in range(15):
        state, metrics = whole(state, batch)
        losses.append(float(metrics["sums"].nats / metrics["sums"].tokens))
    assert losses[-1] < losses[0] - 0.1


def test_bfloat16_keeps_float32_parameters(tiny):
    model, state, optimizer, batch = parts(tiny(model={"dtype": "bfloat16"}))
    step = jax.jit(make_train_step(model, optimizer, LENGTHS))
    after, metrics = step(state, batch)
    assert np.isfinite(metrics["sums"].nats)
    for leaf in jax.tree.leaves(after.variables):
        assert leaf.dtype == jnp.float32


def outer(config):
    """Parameters of all ones, and the optimizer's update and state."""
    model = LanguageModel(config.model)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    optimizer = outer_optimizer(config, model, ones)
    return ones, jax.jit(optimizer.update), jax.jit(optimizer.init)(ones)


def test_only_matrices_of_the_model_decay(tiny):
    """Zero gradients move what decays and nothing else."""
    for name in ("hope", "transformer"):
        config = tiny(name, model={"cms": {"step_periods": (1,)}})
        optimizer = OptimizerConfig(
            warmup_steps=0, learning_rate=0.5, weight_decay=0.1
        )
        config = dataclasses.replace(config, optimizer=optimizer)
        ones, update, state = outer(config)
        zeros = jax.tree.map(jnp.zeros_like, ones)
        updates, _ = update(zeros, state, ones)
        moved = {
            jax.tree_util.keystr(path)[2:-2].split("']['")[-1]
            for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
            if np.any(leaf)
        }
        assert {"embedding", "level_1_up", "w_out"} <= moved
        still = ("norm", "scale", "bias", "gate_", "conv_", "memory", "gener")
        assert not [m for m in moved if m.startswith(still) or "bias" in m]
        found = updates["params"]["embedding"]
        np.testing.assert_allclose(found, -0.05, rtol=1e-4)


def test_slow_levels_step_once_per_period(tiny):
    ones, update, state = outer(
        tiny("hope", model={"cms": {"step_periods": (1, 2)}}, steps=10)
    )
    moved = []
    for _ in range(4):
        updates, state = update(ones, state, ones)
        cms = updates["params"]["blocks"]["cms"]
        moved.append(
            (bool(np.any(cms["level_1_up"])), bool(np.any(cms["level_2_up"])))
        )
    assert moved == [(True, False), (True, True)] * 2


def test_schedule_rises_and_falls():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_rate=0.1)
    schedule = make_schedule(config, 20)
    rates = [float(schedule(step)) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert all(np.diff(rates[3:]) < 0)
    assert rates[-1] == pytest.approx(0.1)
    one = make_schedule(dataclasses.replace(config, warmup_steps=0), 1)
    assert float(one(0)) == 1.0


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, *[1.0] * 9]),
        # A third of ten steps decays, in steps of 0.3; the last is at 0.1.
        ("wsd", [0.5, *[1.0] * 6, 0.7, 0.4, 0.1]),
    ],
)
def test_other_schedules(schedule, rates):
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=2, schedule=schedule, decay_share=0.333
    )
    found = make_schedule(config, 10)
    np.testing.assert_allclose([found(step) for step in range(10)], rates, 1e-6)


def test_the_gradient_is_clipped(tiny):
    ones, update, state = outer(tiny(optimizer=OptimizerConfig(clip_norm=1e-3)))
    _, opt_state = update(ones, state, ones)
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    means = [x for path, x in leaves if ".mu" in jax.tree_util.keystr(path)]
    norm = optax.global_norm(means)
    np.testing.assert_allclose(norm, (1 - 0.9) * 1e-3, rtol=1e-4)


def test_the_loss_is_the_mean_over_targets_that_count(tiny):
    """Over the whole batch: its parts have 3 and 17 targets of 64.

    The part of a target in the sums is its weight.
    """
    model, state, _, batch = parts(tiny())
    weights = np.zeros((4, 17), np.float32)
    weights[0, 2:5] = 1  # Rows 0 and 2 are the first part.
    weights[1, 1:], weights[3, 9] = 1, 0.5
    weights[:, 0] = 7  # Of tokens that are no targets.
    batch = batch._replace(weights=weights)
    lengths = np.arange(256)
    keep = optax.GradientTransformation(
        lambda params: params,
        lambda grads, _, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    )

    def mean(variables):
        logits, _ = model.apply(variables, batch.tokens[:, :-1])
        chosen = jax.nn.one_hot(batch.tokens[:, 1:], 256)
        nats = -(jax.nn.log_softmax(logits) * chosen).sum(-1)
        return jnp.vdot(nats, weights[:, 1:]) / 19.5

    loss, expected = jax.jit(jax.value_and_grad(mean))(state.variables)
    state = TrainState(state.variables, state.variables)
    for accumulate in (1, 2):
        step = make_train_step(model, keep, lengths, accumulate)
        (_, grads, memory), metrics = jax.jit(step)(state, batch)
        assert memory is None
        sums = metrics["sums"]
        assert float(sums.tokens) == 19.5
        counted = np.asarray(batch.tokens) * weights
        assert float(sums.n_bytes) == counted[:, 1:].sum()
        np.testing.assert_allclose(sums.nats, 19.5 * loss, rtol=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
            grads,
            expected,
        )


def test_a_batch_without_targets_moves_nothing(tiny):
    model, state, _, batch = parts(tiny())
    step = make_train_step(model, optax.sgd(1.0), LENGTHS)
    state = state._replace(optimizer=optax.sgd(1.0).init(state.variables))
    batch = batch._replace(weights=np.zeros((4, 17), np.float32))
    after, metrics = jax.jit(step)(state, batch)
    assert float(metrics["sums"].tokens) == float(metrics["grad_norm"]) == 0
    jax.tree.map(
        np.testing.assert_array_equal, after.variables, state.variables
    )
