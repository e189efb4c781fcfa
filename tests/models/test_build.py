"""Configurations of models: presets, bad choices, changes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.errors import InputError
from nl_jax.layers import CMSConfig
from nl_jax.models import (
    PRESETS,
    ModelConfig,
    build,
    configure,
    names,
    to_json,
)

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
        # The default is no choice, and can be undone.
        assert config.cms.token_periods == ()
        again = configure(config, cms={"objective": "outer"})
        assert again.cms.periods == static.cms.periods


def test_default_periods_follow_what_is_configured_later():
    config = configure("hope", cms={"objective": "next_token"})
    assert config.cms.periods == (16, 64)
    fields = json.loads(json.dumps(to_json(config)))
    saved = configure(ModelConfig(), **fields)
    assert saved == config
    chunks = {"chunk_size": 64, "memory_chunk_size": 64}
    for one in (config, saved):
        assert configure(one, titans=chunks).cms.periods == (64, 256)
        three = configure(one, cms={"step_periods": (1, 4, 16)})
        assert three.cms.periods == (16, 64, 256)
    fields["cms"]["token_periods"] = [32, 64]  # As numbers were once saved.
    given = configure(ModelConfig(), **fields)
    assert given.cms.periods == (32, 64)
    with pytest.raises(ValueError, match="32, must be a multiple of 64 tokens"):
        configure(given, titans=chunks)
    with pytest.raises(ValueError, match=r"unknown field cms\.cycle"):
        configure(config, cms={"cycle": 2})


@pytest.mark.parametrize(
    ("cms", "message"),
    [
        ({"token_periods": (16, 64)}, "token_periods.* are in steps"),
        (CMSConfig(token_periods=(16,)), "token_periods.* are in steps"),
        (
            {"objective": "next_token", "step_periods": (16, 64, 256)},
            "step_periods.* are in tokens",
        ),
        (
            {"objective": "local", "step_periods": (1, 8)},
            "step_periods.* are in tokens",
        ),
    ],
)
def test_periods_in_the_wrong_unit_alone_are_refused(cms, message):
    with pytest.raises(InputError, match=message):
        configure("hope", cms=cms)
    if isinstance(cms, dict):
        both = {"step_periods": (1, 4), "token_periods": (16, 64)} | cms
        assert configure("hope", cms=both)


def test_the_objective_may_be_switched():
    learning = configure("hope", cms=LEVELS | {"objective": "local"})
    outer = configure(learning, cms={"objective": "outer"})
    assert outer.cms.periods == (1, 4)
    again = configure(outer, cms={"objective": "local"})
    assert again == learning


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


@pytest.mark.parametrize(
    ("cache", "n_layers", "scales"),
    [({}, 1, [2.0]), ({"segment": 16}, 3, [0.5, 0.5, 2.0])],
)
def test_the_last_block_has_its_own_scale(cache, n_layers, scales):
    shape = {"d_model": 16, "n_layers": n_layers}
    titans = {"output_scale": 0.5, "last_scale": 2.0, "output_gain": 4.0}
    model = build("hope", **shape, titans=titans, cache=cache)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))
    mixer = variables["params"]["blocks"]["mixer"]
    mixer = mixer["inner"] if cache else mixer
    # Standard deviations of 256 numbers, in 1 / sqrt(16).
    np.testing.assert_array_equal(mixer["out_scale"], 4.0)
    found = 4.0 * 4 * np.std(mixer["w_out"], (1, 2))
    np.testing.assert_allclose(found, scales, rtol=0.15)
    np.testing.assert_allclose(4 * np.std(mixer["w_q"], (1, 2)), 1, rtol=0.15)
