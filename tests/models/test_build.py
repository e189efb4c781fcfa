"""Configurations of models: presets, bad choices, changes."""

import jax
import jax.numpy as jnp
import pytest

from nl_jax.models import PRESETS, ModelConfig, build, configure, names

LEVELS = {"objective": "next_token", "token_periods": (4, 8), "rate": 0.1}
MILLIONS = {"125m": (90, 180), "760m": (600, 1000), "1.3b": (1000, 1700)}


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        pytest.param(name, preset, marks=pytest.mark.slow)
        if preset != "125m" and name not in ("hope", "transformer")
        else (name, preset)
        for name in names()
        for preset in MILLIONS
    ],
)
def test_large_presets_have_the_size_they_are_named_for(name, preset):
    model = build(name, preset=preset)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    low, high = MILLIONS[preset]
    assert low < count < high
    assert model.config.vocab_size == 32_000


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: build("gpt"), "model 'gpt' does not exist; there are"),
        (lambda: build("hope", preset="huge"), "preset='huge' must be one of"),
        (lambda: build("hope", width=3), "unknown field width"),
        (
            lambda: build("hope", titans={"chunks": 3}),
            "unknown field titans.chunks",
        ),
        (lambda: build("hope", n_heads=3), "n_heads=3 must divide d_model=128"),
        (
            lambda: build("hope", cms={"token_periods": (4, 6)}),
            "4 does not divide 6",
        ),
        (
            lambda: build(
                "hope",
                cms={"objective": "next_token", "token_periods": (8, 16)},
            ),
            "the fastest, 8, must be a multiple of 16 tokens",
        ),
        (
            lambda: build(
                "transformer",
                cms={
                    "objective": "next_token",
                    "token_periods": (4,),
                    "layers": 5,
                },
            ),
            "cms.layers=5 must be at most n_layers=2",
        ),
        (
            lambda: build(
                "transformer",
                cms=LEVELS | {"placement": "depth", "layers": 1},
            ),
            "each level needs a block that learns in context; there are 1",
        ),
    ],
)
def test_bad_configurations_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize("objective", ["next_token", "local"])
@pytest.mark.parametrize("preset", ["tiny", "125m"])
def test_an_objective_alone_makes_levels_learn_in_context(objective, preset):
    """From 16 tokens on, as many levels as without, in any model."""
    for name in names():
        static = configure(name, preset=preset)
        config = configure(name, preset=preset, cms={"objective": objective})
        first, *_ = periods = config.cms.periods
        assert len(periods) == len(static.cms.periods)
        assert first >= 16 and first % config.cycle == 0
        assert first < 16 + config.cycle
        assert periods[-1] == first * 4 ** (len(periods) - 1)
        # The choice is written down, and can be undone.
        assert config.cms.token_periods == periods
        again = configure(config, cms={"objective": "outer"})
        assert again.cms.periods == static.cms.periods


def test_periods_without_a_unit_are_pointed_to_those_with_one():
    message = "cms.periods; CMSConfig has .*step_periods.*token_periods|"
    message += "cms.periods; CMSConfig has .*token_periods.*step_periods"
    with pytest.raises(ValueError, match=message):
        configure("hope", cms={"periods": (1, 4)})


def test_a_configuration_can_be_changed_and_rebuilt():
    config = configure("hope", d_model=64)
    assert isinstance(config, ModelConfig)
    assert build(config, n_layers=3).config.n_layers == 3
    assert set(PRESETS) == {"tiny", "small", "125m", "760m", "1.3b"}
