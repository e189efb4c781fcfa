"""Matrix memories stay bounded whatever they read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.layers import MatrixMemory, MatrixMemoryConfig
from nl_jax.models import configure, names

D, T = 8, 1024
MATRIX = [n for n in names() if configure(n).mixer == "matrix"]


@pytest.mark.parametrize("name", MATRIX)
def test_one_large_token_again_and_again_stays_bounded(name):
    """No more than a sum of all writes; what overshoots knows no end."""
    layer = MatrixMemory(configure(name).matrix, D, 1)
    x = jnp.broadcast_to(
        30 * jax.random.normal(jax.random.key(0), (D,)), (1, T, D)
    )
    variables = jax.jit(layer.init)(jax.random.key(1), x[:, :2])
    variables = jax.tree.map(lambda a: 3 * a, variables)
    y, state = jax.jit(layer.apply)(variables, x)
    assert np.isfinite(y).all()
    raw = 1000.0**2  # Above the product of a key and a value.
    assert np.abs(state.memory).max() < T * raw


def test_what_runs_is_a_choice_and_changes_nothing():
    config = configure("comba").matrix
    x = jax.random.normal(jax.random.key(0), (1, 20, D))
    init = jax.jit(MatrixMemory(config, D, 2).init)
    variables = init(jax.random.key(1), x)

    def run(implementation):
        chosen = dataclasses.replace(config, implementation=implementation)
        layer = MatrixMemory(chosen, D, 2)
        program = jax.jit(layer.apply).lower(variables, x)
        return program.as_text(), program.compile()(variables, x)

    (token_by_token, expected), (chunks, actual) = map(
        run, ("reference", "chunked")
    )
    assert token_by_token != chunks
    for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"implementation": "cuda"}, "implementation='cuda' must be one of"),
        (
            {
                "rule": "hebbian",
                "decay": "channel",
                "implementation": "chunked",
            },
            "implementation='chunked' must be None with decay='channel'",
        ),
    ],
)
def test_bad_choices_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        MatrixMemoryConfig(**fields)
