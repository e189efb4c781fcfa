"""The outer optimizer by name: what each learns, and what it is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.models import build
from nl_jax.nested import describe
from nl_jax.optimizers import NAMED
from nl_jax.training import (
    OptimizerConfig,
    TrainState,
    make_optimizer,
    make_schedule,
    make_train_step,
)
from nl_jax.training.update_rules import matrix_dimensions
from tests.training.conftest import LENGTHS, outer_optimizer, parts

NAMES = tuple(NAMED)
RATES = {
    "momentum": 0.1,
    "delta_momentum": 0.1,
    "deep_momentum": 0.1,
    "sgd": 0.1,
    "feature_momentum": 2e-3,
    "adagrad_memory": 3e-2,
}


def config(name, **changes):
    rate = RATES.get(name, 1e-2)
    fields = {"learning_rate": rate, "warmup_steps": 1, "weight_decay": 0.0}
    return OptimizerConfig(name=name, **fields | changes)


@pytest.fixture(scope="module")
def gradients(tiny):
    """A step whose optimizer leaves gradients as its state and moves nothing.

    It is compiled once, and each rule's update for itself.
    """
    model, state, _, batch = parts(tiny())
    keep = optax.GradientTransformation(
        lambda params: params,
        lambda grads, _, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    step = jax.jit(make_train_step(model, keep, LENGTHS))

    def find(variables):
        after, metrics = step(TrainState(variables, variables), batch)
        sums = metrics["sums"]
        return after.optimizer, float(sums.nats / sums.tokens)

    return model, state.variables, find


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns_a_batch(tiny, gradients, name):
    model, before, find = gradients
    run = tiny(steps=30, optimizer=config(name))
    optimizer = outer_optimizer(run, model, before)

    @jax.jit
    def update(grads, state, variables):
        updates, state = optimizer.update(grads, state, variables)
        return optax.apply_updates(variables, updates), state

    after, state = before, jax.jit(optimizer.init)(before)
    losses = []
    for _ in range(12):
        grads, loss = find(after)
        after, state = update(grads, state, after)
        losses.append(loss)
    assert losses[-1] < losses[0] - 0.1
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        found = after
        for key in path:
            found = found[key.key]
        assert np.isfinite(found).all()
        assert np.any(found != leaf), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def declared():
    """Shapes, logical axes and periods of Hope's parameters."""
    model = build("hope")
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
    return shapes, model.logical_axes(), model.parameter_periods(shapes)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sgd"])
def test_the_level_table_shows_it(declared, name):
    shapes, *names = declared
    optimizer = make_optimizer(config(name), 10, *names)
    rows = describe(optimizer, params=shapes).rows
    expected = {
        "adamw": ("adam", "compress gradients"),
        "adam_memory": ("Adam's memory", "l2"),
        "muon": ("muon", "compress gradients"),
        "m3": ("M3, slow", "dot product"),
        "momentum": ("gradient memory", "dot product"),
        "delta_momentum": ("gradient memory", "delta"),
        "deep_momentum": ("gradient memory", "l2"),
        "feature_momentum": ("gradient memory", "dot product"),
        "nonlinear_output": ("gradient memory", "dot product"),
        "newton_schulz_memory": ("gradient memory", "dot product"),
        "adagrad_memory": ("AdaGrad's memory", "l2"),
        "learned_preconditioner": ("learned preconditioner", "l2"),
    }
    words, objective = expected[name]
    found = [
        row
        for row in rows
        if row.name.endswith(words) and row.objective == objective
    ]
    assert any(row.name == f"level_2 {words}" for row in found)
    # Hope's slower level has a row of its own, four times as slow.
    periods = {row.period for row in found}
    assert max(periods) == 4 * min(periods)
    assert all(row.state_bytes for row in rows)
    deep = {row.architecture for row in found} == {"mlp"}
    assert deep == (name == "deep_momentum")


@pytest.mark.parametrize(
    ("name", "matrices", "others"),
    [
        (
            "transformer",
            {"w_q", "w_k", "w_v", "w_out"},
            {"conv_q", "conv_k", "conv_v"},
        ),
        (
            "hope",
            {"w_in", "w_q", "w_gate", "w_out"},
            {
                "memory_0",
                "generators_0",
                "conv_stream",
                "gate_eta",
                "out_scale",
            },
        ),
        ("deltanet", {"w_q", "w_out"}, {"w_beta", "b_beta", "conv_k"}),
    ],
)
def test_matrices_are_between_widths_of_the_model(name, matrices, others):
    model = build(name, tie_embeddings=False)
    numbers = matrix_dimensions(model.logical_axes())["params"]
    for leaf in ("embedding", "head", "norm_scale"):
        assert numbers[leaf] is None
    mixer, cms = (numbers["blocks"][part] for part in ("mixer", "cms"))
    assert cms["level_1_scale"] is None
    # Axis 0 is the stack of blocks; what is multiplied is [T, in] @ [in, out].
    for leaf in (
        *(mixer[key] for key in matrices),
        *(cms[f"level_1_{key}"] for key in ("gate", "up", "down")),
    ):
        assert leaf == optax.contrib.MuonDimensionNumbers(1, 2)
    assert all(mixer[key] is None for key in others)


def test_attention_with_heads_of_its_own_is_a_matrix_too():
    axes = {"o": ("mixer", "layers", "embed"), "three": ("embed",) * 3}
    numbers = matrix_dimensions(axes)
    assert numbers["o"] == optax.contrib.MuonDimensionNumbers(0, 2)
    assert numbers["three"] is None


# An MLP memory draws its weights for the whole stack and scales it as one.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NAMES if name != "deep_momentum"),
        ("adagrad_memory", {"form": "matrix"}),
        ("feature_momentum", {"feature_map": "newton_schulz"}),
    ],
)
def test_stacked_blocks_learn_as_they_would_alone(name, options):
    axes = {
        "w": ("embed", "mlp"),
        "scale": ("embed",),
        "memory": ("heads", "memory_in", "memory_out"),
        "rate": (),
        "table": ("vocab", "embed"),
    }
    shapes = {
        "w": (4, 6),
        "scale": (4,),
        "memory": (2, 3, 3),
        "rate": (),
        "table": (7, 4),
    }
    keys = iter(jax.random.split(jax.random.key(0), 5))
    params = {
        k: jax.random.normal(next(keys), (2, *s)) for k, s in shapes.items()
    }

    def trained(axes, starts):
        tx = make_optimizer(
            config(name, clip_norm=1e9, weight_decay=0.1, options=options),
            9,
            axes,
            dict.fromkeys(axes, 1),
        )

        @jax.jit
        def train(params):
            def step(t, carry):
                params, state = carry
                grads = jax.tree.map(lambda p: jnp.sin(3 * p) + p * t, params)
                updates, state = tx.update(grads, state, params)
                return optax.apply_updates(params, updates), state

            return jax.lax.fori_loop(0, 9, step, (params, tx.init(params)))[0]

        return [train(params) for params in starts]

    (stacked,) = trained({k: ("layers", *v) for k, v in axes.items()}, [params])
    starts = [jax.tree.map(lambda p, i=i: p[i], params) for i in range(2)]
    for block, alone in enumerate(trained(axes, starts)):
        for key, value in alone.items():
            np.testing.assert_allclose(
                stacked[key][block], value, rtol=2e-4, atol=1e-5, err_msg=key
            )


@pytest.mark.parametrize("name", ["muon", "m3"])
def test_matrices_step_as_far_as_adam_does(name):
    """Whatever their shape; the embedding takes Adam's own first step."""
    shapes = {"wide": (16, 256), "tall": (256, 16), "table": (32, 16)}
    keys = iter(jax.random.split(jax.random.key(0), 3))
    grads = {k: jax.random.normal(next(keys), s) for k, s in shapes.items()}
    axes = {
        "wide": ("embed", "mlp"),
        "tall": ("mlp", "embed"),
        "table": ("vocab", "embed"),
    }
    tx = make_optimizer(
        config(name, learning_rate=1.0, final_rate=1.0),
        9,
        axes,
        jax.tree.map(lambda _: 1, grads),
    )
    updates = jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])(grads)
    for key in ("wide", "tall"):
        size = float(jnp.sqrt(jnp.mean(updates[key] ** 2)))
        assert 0.12 < size < 0.3, (key, size)
    np.testing.assert_allclose(
        updates["table"], -jnp.sign(grads["table"]), atol=1e-3
    )


def test_adamw_is_that_of_optax():
    chosen = OptimizerConfig(learning_rate=0.1)
    axes = {"w": ("embed", "mlp"), "scale": ("embed",)}
    params = {"w": jnp.ones((4, 6)), "scale": jnp.ones(4)}
    ours = make_optimizer(chosen, 9, axes, {"w": 1, "scale": 1})
    theirs = optax.chain(
        optax.clip_by_global_norm(chosen.clip_norm),
        optax.adamw(
            make_schedule(chosen, 9),
            chosen.b1,
            chosen.b2,
            chosen.eps,
            weight_decay=chosen.weight_decay,
            mask={"w": True, "scale": False},
        ),
    )
    ends = []
    for tx in (ours, theirs):
        at, state = params, tx.init(params)
        update = jax.jit(tx.update)
        for t in range(3):
            grads = jax.tree.map(lambda p, t=t: jnp.sin(9 * p + t), at)
            updates, state = update(grads, state, at)
            at = optax.apply_updates(at, updates)
        ends.append(at)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends
    )
    # Checkpoints know the groups by these names.
    groups = ours.init(params)[1].inner_states
    assert set(groups) == {"every 1", "every 1, decayed"}


def test_options_of_the_named_optimizer_reach_it_alone():
    """Not the AdamW of what is no matrix, which has no such options."""
    chosen = config("newton_schulz_memory", options={"zeta": 0.125, "steps": 1})
    axes = {"w": ("embed", "mlp"), "scale": ("embed",)}
    params = {"w": jnp.diag(jnp.array([3.0, 4.0])), "scale": jnp.ones(2)}
    tx = make_optimizer(chosen, 9, axes, {"w": 1, "scale": 1})
    updates, _ = jax.jit(lambda p: tx.update(p, tx.init(p), p))(params)
    # One step from s / |s| with half the size of the cubic's:
    # s - 0.125 * 2 s (s^2 - 1) * 2; then the RMS of Adam.
    s = np.array([0.6, 0.8])
    expected = s + 0.5 * (1.5 * s - 0.5 * s**3 - s)
    rate = chosen.learning_rate * 0.2 * 2**0.5
    np.testing.assert_allclose(
        updates["w"], -rate * np.diag(expected), rtol=1e-5, atol=1e-8
    )
    np.testing.assert_allclose(
        updates["scale"], -chosen.learning_rate, rtol=1e-4
    )


def test_options_reach_the_rule():
    """``b1`` is momentum's retention; the second step shows it."""
    changed = dataclasses.replace(config("momentum"), b1=0.5, clip_norm=1e9)
    axes, params = {"w": ("embed",)}, {"w": jnp.ones(3)}
    tx = make_optimizer(changed, 1000, axes, {"w": 1})
    update = jax.jit(tx.update)
    _, state = update(params, tx.init(params), params)
    updates, _ = update(params, state, params)
    np.testing.assert_allclose(updates["w"], -0.15, rtol=1e-3)
