"""The level table follows from the objects."""

import jax
import jax.numpy as jnp
import optax
import pytest

from nl_jax.models import build
from nl_jax.nested import describe
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
    generators = table["titans.generators (k, v, eta, alpha)"]
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
    adam = rows(optax.adamw(1e-3), params=params)["ScaleByAdamState"]
    assert adam.state_bytes == 2 * 4 * 14 + 4
    slow = continuum({"s": 8}, optax.adam(1e-3), {"a": "s", "b": "s"})
    assert rows(slow, params=params)["ScaleByAdamState"].period == 8


def test_text_and_figure(tmp_path):
    table = describe(build("hope"))
    text = str(table)
    assert "cms.level_2" in text and "4 steps" in text
    assert len(text.splitlines()) == 2 + len(table.rows)
    table.figure(tmp_path / "levels.png")
    assert (tmp_path / "levels.png").stat().st_size > 1000


def test_what_cannot_be_described_is_named():
    with pytest.raises(TypeError, match="int has no levels"):
        describe(3)
    with pytest.raises(ValueError, match="params="):
        describe(optax.adam(1e-3))


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
