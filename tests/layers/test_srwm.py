"""The self-referential weight matrix equals its paper's recurrence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.layers import SRWM, SRWMConfig, self_referential_scan
from tests.layers.papers_tools import (
    applied,
    drawn,
    same,
    same_in_pieces,
    to_numpy,
)
from tests.memory import papers_models

T, D, CHUNK = 11, 4, 4
precisions = pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-6)]
)
scan = jax.jit(functools.partial(self_referential_scan, chunk_size=CHUNK))


def draw():
    """Matrices [1, d, 3 d + 4] and inputs [1, T, d], far from uniform keys."""
    rng = np.random.default_rng(0)
    return 2 * rng.normal(size=(1, D, 3 * D + 4)), rng.normal(size=(1, T, D))


def paper(w, x):
    y, end = papers_models.srwm(w[0].T, x[0])
    return y[None], end.T[None]


@precisions
@pytest.mark.parametrize("length", [1, CHUNK, T])
def test_scan_equals_the_paper(length, dtype, bound):
    w, x = draw()
    x = x[:, :length]
    expected = paper(w, x)
    assert np.abs(expected[1] - w).max() > 0.1  # It does modify itself.
    with jax.enable_x64(dtype == "float64"):
        same(
            scan(jnp.asarray(w, dtype), jnp.asarray(x, dtype)), expected, bound
        )


def test_gradient_equals_the_papers_complex_step():
    """Along one direction of the initial matrix and of the inputs."""
    args, rng = draw(), np.random.default_rng(1)
    way = [rng.normal(size=a.shape) for a in args]
    weights = rng.normal(size=(1, T, D))

    def value(outs):
        y, w = outs
        return (weights * y).sum() + (w * w).sum()

    moved = [a + 1e-30j * d for a, d in zip(args, way, strict=True)]
    slope = value(paper(*moved)).imag / 1e-30
    with jax.enable_x64(True):
        grads = jax.jit(jax.grad(lambda *args: value(scan(*args)), (0, 1)))(
            *map(jnp.asarray, args)
        )
        found = sum((g * d).sum() for g, d in zip(grads, way, strict=True))
        np.testing.assert_allclose(found, slope, rtol=1e-10)


@pytest.fixture(scope="module")
def layer():
    layer = SRWM(SRWMConfig(chunk_size=CHUNK), 2 * D, 2)
    return layer, *drawn(layer, (2, T, 2 * D))


@precisions
def test_layer_equals_the_paper(layer, dtype, bound):
    layer, params, x = layer
    rows = [papers_models.srwm_layer(params, row, heads=2) for row in x]
    expected = tuple(map(np.stack, zip(*rows, strict=True)))
    with jax.enable_x64(dtype == "float64"):
        params, x = to_numpy((params, x), dtype)
        y, state = applied(layer, dtype)({"params": params}, x)
        same((y, state.memory), expected, bound)


@pytest.mark.parametrize("sizes", [[1] * T, [1, 5, 5], [5, 1, 5]])
def test_layer_streams_from_anywhere(layer, sizes):
    same_in_pieces(*layer, sizes)


def test_one_key_again_and_again_keeps_the_matrix_bounded():
    w, x = draw()
    x = np.broadcast_to(x[:, :1], (1, 4096, D))
    _, end = scan(*map(jnp.asarray, (w, x)))
    assert np.abs(end).max() < 10 * np.abs(w).max()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: SRWMConfig(chunk_size=0), "chunk_size=0 must be an integer"),
        (
            lambda: SRWM(SRWMConfig(), 6, 4).init(
                jax.random.key(0), jnp.zeros((1, 1, 6))
            ),
            "n_heads=4 must divide d_model=6",
        ),
    ],
)
def test_bad_choices_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()
