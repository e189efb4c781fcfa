"""The level table follows from the objects."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from nl_jax.layers import SelfModifyingTitans, TitansConfig
from nl_jax.memory import associative_memory
from nl_jax.models import build
from nl_jax.nested import NestedSystem, describe, gradient_level
from nl_jax.nested.level_table import count_bytes
from nl_jax.optimizers import continuum, deep_momentum, every, scale_by_m3
from pallas_kernels import device


def shapes(model):
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)


def rows(*objects, **options):
    return {row.name: row for row in describe(*objects, **options).rows}


def test_every_parameter_is_in_exactly_one_level():
    for options in (
        {},
        {"titans": {"architecture": "mlp"}},
        {"cms": {"objective": "next_token", "token_periods": (16, 32, 64)}},
        {
            "n_layers": 5,
            "cms": {
                "objective": "local",
                "token_periods": (16, 32),
                "placement": "depth",
                "layers": 3,
            },
        },
    ):
        model = build("hope", **options)
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes(model)))
        assert sum(r.parameters for r in model.levels()) == count


def test_the_table_changes_with_the_configuration():
    table = rows(build("hope", titans={"chunk_size": 4, "rule": "gd"}))
    generators = table["titans.generators (eta, alpha)"]
    assert "titans.generators (k, v, eta, alpha)" in rows(build("hope-paper"))
    assert generators.period == 4 and generators.rule.startswith("GD")
    learning = build(
        "hope", cms={"objective": "next_token", "token_periods": (16, 64)}
    )
    level = rows(learning)["cms.level_2"]
    assert (level.period, level.unit) == (64, "tokens")
    assert level.state_bytes > 0
    assert (level.rule, level.objective) == ("GD in context", "next token")
    level = rows(build(learning.config, cms={"rate": 0.0}))["cms.level_2"]
    assert (level.period, level.unit) == (1, "steps")
    across = build(
        learning.config,
        cms={"objective": "local", "placement": "depth", "inner": "dgd"},
    )
    level = rows(across)["cms.level_2"]
    assert level.architecture == "SwiGLU MLP, blocks 2 to 2"
    assert (level.rule, level.objective) == ("DGD in context", "own values")
    assert rows(build("transformer"))["attention"].period == 0


@pytest.mark.parametrize(
    ("name", "choices", "platform", "runs"),
    [
        ("gated-deltanet", {}, "cpu", "chunked"),
        ("gated-deltanet", {}, "tpu", "pallas_tpu"),
        ("gated-deltanet", {"implementation": "reference"}, "tpu", "reference"),
        ("gla", {}, "tpu", ""),
        ("hope", {"architecture": "mlp"}, "tpu", "pallas_tpu"),
        ("hope", {"architecture": "mlp"}, "cuda", "pallas_triton"),
        ("hope", {}, "cpu", "chunked"),
        ("hope", {"remat": 4}, "tpu", "chunked"),
        ("titans", {}, "tpu", "pallas_tpu"),
        ("titans", {"implementation": "chunked"}, "tpu", "chunked"),
        ("miras-moneta", {}, "tpu", ""),
        ("miras-yaad", {}, "tpu", ""),
    ],
)
def test_the_table_says_what_runs(monkeypatch, name, choices, platform, runs):
    monkeypatch.setattr(device, "here", lambda: platform)
    mixer = build(name).config.mixer
    table = describe(build(name, **{mixer: choices}))
    (row,) = [row for row in table.rows if row.name == f"{mixer}.memory"]
    assert row.runs == runs
    (line,) = [line for line in str(table).splitlines() if row.name in line]
    assert line.endswith(runs)


def test_optimizer_states_are_levels_at_their_period():
    params = {"a": jnp.ones((4, 3)), "b": jnp.ones((2,))}
    adam = rows(optax.adamw(1e-3), params=params)["adam"]
    assert adam.state_bytes == 2 * 4 * 14 + 4
    slow = continuum({"s": 8}, optax.adam(1e-3), {"a": "s", "b": "s"})
    assert rows(slow, params=params)["adam"].period == 8


PARAMS = {"a": jnp.ones((4, 3)), "b": {"c": jnp.ones(2)}}
LIKE_PARAMS, COUNT = 4 * 14, 4  # Bytes.


class Mine(NamedTuple):
    speed: Any


OWN = optax.GradientTransformation(
    lambda params: {"rule": Mine(optax.tree.zeros_like(params))},
    lambda updates, state, params=None: (updates, state),
)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.lion(0.1), {"lion": LIKE_PARAMS + COUNT}),
        (optax.rmsprop(0.1), {"rmsprop": LIKE_PARAMS}),
        (optax.amsgrad(0.1), {"amsgrad": 3 * LIKE_PARAMS + COUNT}),
        (optax.adabelief(0.1), {"adabelief": 2 * LIKE_PARAMS + COUNT}),
        # Small leaves are not factored; their factors are numbers, two each.
        (optax.adafactor(0.1), {"adafactor": LIKE_PARAMS + COUNT + 4 * 4}),
        (
            optax.contrib.schedule_free_sgd(0.1),
            {"schedule-free": LIKE_PARAMS + 4 * 4},
        ),
        (optax.inject_hyperparams(optax.trace)(0.9), {"momentum": LIKE_PARAMS}),
        (OWN, {"Mine": LIKE_PARAMS}),
        (optax.sgd(0.1), {}),
    ],
)
def test_any_state_is_a_memory_of_gradients(optimizer, expected):
    table = rows(optimizer, params=PARAMS)
    assert {name: row.state_bytes for name, row in table.items()} == expected
    state = optimizer.init(PARAMS)
    if isinstance(state, tuple):  # The same, without the parameters.
        assert rows(state).keys() == expected.keys()


def test_accumulated_steps_have_their_period():
    slow = optax.MultiSteps(optax.adam(0.1), 4)
    for optimizer in (slow, optax.chain(optax.clip(1.0), slow)):
        table = rows(optimizer, params=PARAMS)
        assert table["adam"].period == 4
        assert table["gathered gradients"].period == 1
    groups = {"a": slow, "b": optax.MultiSteps(optax.adam(0.1), 3)}
    both = optax.partition(groups, {"a": "b", "b": {"c": "a"}})
    table = rows(every(2, both), params=PARAMS)
    assert table["a adam"].period == 6 and table["b adam"].period == 8
    inner = every(2, optax.MultiSteps(optax.trace(0.9), 2))
    chain = optax.chain(inner, optax.MultiSteps(optax.adam(0.1), 3))
    table = rows(chain, params=PARAMS)
    assert table["momentum"].period == 4 and table["adam"].period == 3


def test_rows_say_which_parameters_they_belong_to():
    labels = {"a": "fast", "b": {"c": "slow"}}
    groups = continuum({"fast": 1, "slow": 4}, optax.adam(0.1), labels)
    table = rows(groups, params=PARAMS)
    assert set(table) == {"a adam", "b adam", "b gathered gradients"}
    assert table["b adam"].memory_of == "gradients of 1 of 2 leaves"
    assert table["b adam"].state_bytes == 2 * 2 * 4 + COUNT
    assert (table["a adam"].period, table["b adam"].period) == (1, 4)
    part = optax.masked(optax.lion(0.1), {"a": True, "b": {"c": False}})
    assert rows(part, params=PARAMS)["a lion"].state_bytes == 4 * 12 + COUNT
    twice = optax.chain(optax.trace(0.9), optax.trace(0.5))
    assert set(rows(twice, params=PARAMS)) == {"momentum", "momentum 2"}


def test_levels_move_when_their_optimizer_moves_them():
    model = build("hope", d_model=16, n_heads=2)
    labels = jax.tree.map(str, model.parameter_periods(shapes(model)))
    own = continuum({"1": 1, "4": 4}, optax.adam(0.1), lambda _: labels)
    for optimizers, first, second in (
        ((), 1, 4),
        ((optax.adamw(1e-3),), 1, 1),
        ((own,), 1, 4),
        ((every(3, own),), 3, 12),
    ):
        table = rows(model, *optimizers)
        assert table["cms.level_1"].period == first
        assert table["cms.level_2"].period == second
        assert table["slow parameters"].period == first
    assert table["level_2 adam"].period == 12


@pytest.mark.parametrize(
    "cms",
    [
        {"objective": "next_token", "inner": "adamw", "form": "nested"},
        {"objective": "next_token", "adaptive": "surprise"},
        {"objective": "local", "inner": ("m3", "sgd")},
    ],
)
def test_bytes_in_context_are_those_of_the_state(cms):
    model = build("hope", d_model=16, n_heads=2, cms=cms)
    state = jax.eval_shape(lambda v: model.init_state(v, 1), shapes(model))
    table = rows(model)
    levels = [row for name, row in table.items() if name.startswith("cms.")]
    assert sum(row.state_bytes for row in levels) == count_bytes(state.cms)
    assert sum(row.state_bytes for row in table.values()) == count_bytes(state)


def test_modules_and_memories_describe_themselves():
    layer = SelfModifyingTitans(TitansConfig(), d_model=16, n_heads=2)
    alone = rows(layer)
    assert alone["titans.memory"].period == 16

    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            y, _ = SelfModifyingTitans(layer.config, 16, 2, name="titans")(x)
            return nn.Dense(4)(x + y)

    x = jnp.ones((2, 5, 16))
    table = rows(Around(), optax.adam(0.1), inputs=x)
    inner = table["titans.titans.memory"]
    assert inner.state_bytes == alone["titans.memory"].state_bytes
    assert inner.parameters == alone["titans.memory"].parameters > 0
    more = table["slow parameters"].parameters
    assert more == alone["slow parameters"].parameters + 16 * 4 + 4
    assert "adam" in table
    with pytest.raises(ValueError, match=r"Around is described with inputs="):
        describe(Around())
    linear = nnx.eval_shape(lambda: nnx.Linear(16, 4, rngs=nnx.Rngs(0)))
    assert rows(linear)["slow parameters"].parameters == 16 * 4 + 4
    memory = associative_memory("mlp", "l2", "gd", momentum=True, chunk_size=8)
    (row,) = describe(memory).rows
    assert (row.architecture, row.objective, row.period) == ("mlp", "l2", 8)
    assert row.rule == "GD, momentum, decay"


def test_levels_of_a_system_need_their_own_parameters():
    level = gradient_level(lambda w, others, x: (w - x) ** 2, optax.adam(0.1))
    system = NestedSystem({"slow": level._replace(period=4), "fast": level})
    assert [row.name for row in describe(system).rows] == ["fast", "slow"]
    params = {"slow": jnp.ones(()), "fast": jnp.ones(())}
    assert rows(system, params=params)["slow"].period == 4
    with pytest.raises(ValueError, match=r"fats.*the system has"):
        describe(system, params={"slow": jnp.ones(()), "fats": jnp.ones(())})
    with pytest.raises(ValueError, match="the system has"):
        describe(system, params=jnp.ones(3))


def test_text_and_figure(tmp_path):
    table = describe(build("hope"))
    text = str(table)
    assert "cms.level_2" in text and "4 steps" in text
    assert len(text.splitlines()) == 2 + len(table.rows)
    table.figure(tmp_path / "levels.png")
    assert (tmp_path / "levels.png").stat().st_size > 1000


def test_what_cannot_be_described_is_named():
    for wrong in (3, None, {"a": 1}, [1]):
        name = type(wrong).__name__
        with pytest.raises(TypeError, match=f"{name} has no levels"):
            describe(wrong)
    with pytest.raises(ValueError, match="params="):
        describe(optax.adam(1e-3))
    assert rows(Mine({"a": 3}), params={"a": 1.0})["Mine"].state_bytes == 4
    with pytest.raises(ValueError, match=r"state.speed\['a'\] is a str"):
        describe(Mine({"a": "x"}))
    with pytest.raises(ValueError, match=r"params\['a'\] is a str"):
        describe(optax.adam(0.1), params={"a": "x"})


def test_deep_optimizers_describe_themselves():
    params = {"w": jnp.ones((4, 3))}
    tx = optax.chain(
        optax.clip(1.0), every(2, scale_by_m3(period=4)), optax.scale(-1.0)
    )
    table = rows(tx, params=params)
    assert table["M3, fast"].period == 2 and table["M3, slow"].period == 8
    assert table["M3, slow"].state_bytes == 3 * 12 * 4
    row = rows(deep_momentum(0.1), params=params)["gradient memory"]
    assert (row.architecture, row.objective) == ("mlp", "l2")
