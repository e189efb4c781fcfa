"""Levels that learn by their own keys and values, and delta gradient descent.

At the layer, in float64, against the loop over tokens written out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.layers import CMSConfig, CMSObjective, ContinuumMemory, rms_norm
from nl_jax.layers.continuum.level_mlp import read_levels
from nl_jax.models import build

D, LENGTH = 4, 11


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def make(**choices):
    """A layer, its parameters, two rows of inputs and the state before."""
    choices = {"token_periods": (2, 4), "rate": 0.4, "hidden": 1.5} | choices
    config = CMSConfig(**{"objective": "local"} | choices)
    layer = ContinuumMemory(config, D, jnp.float64)
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(2, LENGTH, D)))
    params = nn.meta.unbox(jax.jit(layer.init)(jax.random.key(0), x))["params"]
    params = jax.tree.map(
        lambda a: jnp.asarray(a + 0.1 * draw.normal(size=a.shape)), params
    )
    state = layer.apply({"params": params}, 2, method="initial_state")
    return config, layer, params, x, state


def reader(layer, aligned=False):
    @jax.jit
    def read(params, x, state):
        return layer.apply({"params": params}, x, state, aligned=aligned)

    return read


def swiglu(w, h):
    return (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]


@jax.jit
def slopes(w, key, value):
    """Inputs of the three matrices and the loss's slopes behind them."""

    def loss(added):
        gate = key @ w["gate"] + added["gate"]
        up = key @ w["up"] + added["up"]
        hidden = jax.nn.silu(gate) * up
        out = hidden @ w["down"] + added["down"]
        error = out / jnp.sqrt((out**2).mean() + 1e-6) - value
        return (error**2).mean() / 2, hidden

    zeros = {name: jnp.zeros(a.shape[1]) for name, a in w.items()}
    slope, hidden = jax.grad(loss, has_aux=True)(zeros)
    return {"gate": key, "up": key, "down": hidden}, slope


def plain(config, params, x):
    """One row, token by token."""
    levels = []
    for number, inner in enumerate(config.inners, 1):
        own = {
            name.removeprefix(f"level_{number}_"): leaf
            for name, leaf in params.items()
            if name.startswith(f"level_{number}_")
        }
        start = {name: own[name] for name in ("gate", "up", "down")}
        zeros = jax.tree.map(jnp.zeros_like, start)
        levels.append(
            own
            | {"now": start, "next": start, "sum": zeros, "trace": zeros}
            | {"point": start, "since": zeros, "inner": inner}
            | {"eta": config.rate * jnp.exp(own["log_rate"])}
        )
    out = []
    for t, token in enumerate(x, 1):
        stream, added = token, 0
        for level in levels:
            h = rms_norm(stream, level["scale"])
            y = swiglu(level["now"], h)
            if config.form == "independent":
                added = added + level["share"] * y
            else:
                stream = stream + y
            key, value = rms_norm(h @ level["key"]), h @ level["value"]
            inputs, slope = slopes(level["now"], key, value)
            eta = level["eta"]
            for name, w in level["next"].items():
                a, d = inputs[name], slope[name]
                g = jnp.outer(a, d)
                level["sum"] = level["sum"] | {name: level["sum"][name] + g}
                level["since"] = level["since"] | {
                    name: level["since"][name] + g
                }
                own_eta = eta / (1 + eta * (a @ a))
                w = w - own_eta * jnp.outer(a, a @ w) - own_eta * g
                level["next"] = level["next"] | {name: w}
        out.append(stream + added)
        for level, period in zip(levels, config.periods, strict=True):
            if t % period:
                continue
            total = level["sum"]
            if level["inner"] == "momentum":
                total = level["trace"] = jax.tree.map(
                    lambda m, g: 0.9 * m + g, level["trace"], total
                )
            descended = jax.tree.map(
                lambda w, g, e=level["eta"]: w - e * g, level["now"], total
            )
            dgd = level["inner"] == "dgd"
            level["now"] = level["next"] if dgd else descended
            level["next"] = level["now"]
            level["sum"] = jax.tree.map(jnp.zeros_like, total)
        if config.form == "nested" and t % config.periods[1] == 0:
            first, eta = levels[0], levels[1]["eta"]
            first["point"] = first["now"] = first["next"] = jax.tree.map(
                lambda w, g, e=eta: w - e * g, first["point"], first["since"]
            )
            zeros = jax.tree.map(jnp.zeros_like, first["now"])
            first["since"] = first["trace"] = first["sum"] = zeros
    return jnp.stack(out), [level["now"] for level in levels]


@pytest.mark.parametrize(
    "choices",
    [
        {"inner": ("momentum", "sgd")},
        {"inner": ("dgd", "dgd"), "form": "independent"},
        {"inner": ("momentum", "sgd"), "form": "nested"},
    ],
    ids=lambda choices: choices.get("form", "sequential"),
)
def test_equals_the_loop_over_tokens_however_it_is_cut(choices):
    config, layer, params, x, state = make(**choices)
    whole, end = reader(layer, aligned=True)(params, x, state)
    for row in range(2):
        expected, fast = plain(config, params, x[row])
        np.testing.assert_allclose(whole[row], expected, atol=1e-10)
        for found, wanted in zip(end.fast, fast, strict=True):
            for name, leaf in wanted.items():
                np.testing.assert_allclose(found[name][row], leaf, atol=1e-10)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), end.fast, state.fast)
    assert min(jax.tree.leaves(moved)) > 1e-3

    read = reader(layer)
    for sizes in ([1] * LENGTH, [3, 8]):
        outs, at, now = [], 0, state
        for size in sizes:
            y, now = read(params, x[:, at : at + size], now)
            outs.append(y)
            at += size
        np.testing.assert_allclose(jnp.concatenate(outs, 1), whole, atol=1e-10)
        pairs = zip(*map(jax.tree.leaves, (now, end)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_rows_stand_at_different_places():
    _, layer, params, x, state = make(inner=("dgd", "sgd"))
    read = reader(layer)
    ahead_y, ahead = read(params, x[:, :3], state)
    mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), ahead, state)
    y, _ = read(params, x[:, 3:], mixed)
    whole, _ = reader(layer, aligned=True)(params, x, state)
    alone, _ = read(params, x[:, 3:], state)
    np.testing.assert_allclose(ahead_y[0], whole[0, :3], atol=1e-10)
    np.testing.assert_allclose(y[0], whole[0, 3:], atol=1e-10)
    np.testing.assert_allclose(y[1], alone[1], atol=1e-10)


def test_outer_gradient_equals_finite_differences():
    _, layer, params, x, state = make(inner=("dgd", "sgd"))
    read = reader(layer, aligned=True)

    @jax.jit
    def loss(params, x):
        fast = ContinuumMemory.initial_fast(params, layer.config)
        fast = jax.tree.map(lambda a: jnp.stack([a, a]), fast)
        return jnp.sin(read(params, x, state._replace(fast=fast))[0]).sum()

    grads = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    draw = np.random.default_rng(1)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        along = draw.normal(size=grad.shape)
        place = path[0].idx, path[1].key if len(path) > 1 else None

        def at(step, place=place, along=along):
            moved, moved_x = params, x
            if place[0]:
                moved_x = x + step * along
            else:
                moved = params | {place[1]: params[place[1]] + step * along}
            return loss(moved, moved_x)

        numeric = (at(1e-6) - at(-1e-6)) / 2e-6
        np.testing.assert_allclose(
            np.vdot(grad, along), numeric, rtol=2e-6, atol=1e-7
        )
        assert np.abs(grad).max() > 0


def test_first_order_keeps_outputs_and_the_rates_gradient():
    _, layer, params, x, state = make()
    cheap = make(first_order=True)[1]

    def run(layer):
        def loss(params):
            y, _ = reader(layer, aligned=True)(params, x, state)
            return jnp.sin(y).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    (value, exact), (same, grads) = run(layer), run(cheap)
    np.testing.assert_allclose(value, same, atol=1e-12)
    # Projections learn through the inner gradients alone.
    assert np.abs(grads["level_1_key"]).max() == 0
    assert np.abs(exact["level_1_key"]).max() > 0
    assert np.abs(grads["level_1_log_rate"]) > 0


@pytest.mark.parametrize("inner", ["sgd", "dgd"])
def test_a_learned_rate_of_zero_is_the_static_layer(inner):
    """Weights keep every bit; products of other shapes may round apart."""
    _, layer, params, x, state = make(inner=inner)
    for level in ("level_1_log_rate", "level_2_log_rate"):
        params[level] = jnp.full((), -1e3)  # exp of it is 0.
    y, end = reader(layer, aligned=True)(params, x, state)
    static = jax.jit(lambda x: layer.apply({"params": params}, x))(x)
    np.testing.assert_allclose(y, static, atol=1e-13)
    pairs = zip(*map(jax.tree.leaves, (end.fast, state.fast)), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)


def test_any_transformation_of_optax_is_an_inner_optimizer():
    named = make(inner="adamw", token_periods=(2,))
    given = make(inner=optax.scale_by_adam(), token_periods=(2,))
    assert hash(given[0]) == hash(given[1].config)
    ends = [
        reader(layer, aligned=True)(params, x, state)
        for _, layer, params, x, state in (named, given)
    ]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)
    both = CMSConfig(
        token_periods=(2, 4), objective="local", inner=(optax.trace(0.5), "sgd")
    )
    assert len(both.optimizers) == 2


class Counting(CMSObjective):
    """Counts the tokens that it has read, in place of learning from them."""

    name = "counting"
    compresses = "nothing"

    def read_layer(self, config, levels, x, state, *, aligned):
        del aligned
        y, _ = read_levels(levels, state.fast, x)
        position = (state.position + x.shape[1]) % config.periods[-1]
        return y, state._replace(position=position)


def test_an_objective_of_ones_own_is_given_as_an_object():
    cms = {"objective": Counting(), "token_periods": (4, 8)}
    model = build(
        "lstm", vocab_size=7, d_model=4, n_heads=1, n_layers=1, cms=cms
    )
    outer = {"objective": "outer", "step_periods": (1, 2)}
    static = build(model.config, cms=outer)
    tokens = jnp.arange(6)[None] % 7
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    logits, state = jax.jit(model.apply)(variables, tokens)
    expected, _ = jax.jit(static.apply)(variables, tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert state.cms.position == 6
    row = {row.name: row for row in model.levels()}["cms.level_1"]
    assert (row.objective, row.unit) == ("nothing", "tokens")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner": 3}, "cms.inner=3 must be one of"),
        ({"objective": "global"}, "cms.objective='global' must be one of"),
        ({"inner": (optax.identity(),)}, "one for each of the 2 levels"),
        ({"inner": "dgd", "form": "nested"}, "'dgd' goes with form='seq"),
        ({"adaptive": "surprise"}, "goes with objective='next_token'"),
    ],
)
def test_wrong_choices_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)
