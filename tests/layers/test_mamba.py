"""Mamba and Samba equal their papers' recurrences, and their derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.layers import Mamba, MambaConfig, SambaConfig, selective_scan
from nl_jax.models import build, configure
from nl_jax.models.block import Block
from tests.layers.papers_tools import (
    applied,
    drawn,
    same,
    same_in_pieces,
    to_numpy,
)
from tests.memory import papers_models

B, T, E, N, CHUNK = 2, 11, 6, 3, 4
precisions = pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-6)]
)
scan = jax.jit(functools.partial(selective_scan, chunk_size=CHUNK))


def draw():
    """h, x, delta, a, b, c."""
    rng = np.random.default_rng(0)
    h, x = rng.normal(size=(B, E, N)), rng.normal(size=(B, T, E))
    delta, a = rng.uniform(0, 2, (B, T, E)), -rng.uniform(0.1, 2, (E, N))
    return h, x, delta, a, *rng.normal(size=(2, B, T, N))


def paper(h, x, delta, a, b, c):
    rows = [
        papers_models.selective_scan(h[i], x[i], delta[i], a, b[i], c[i])
        for i in range(len(x))
    ]
    return tuple(map(np.stack, zip(*rows, strict=True)))


@precisions
@pytest.mark.parametrize("length", [1, CHUNK, T])
def test_scan_equals_the_paper(length, dtype, bound):
    h, x, delta, a, b, c = draw()
    x, delta, b, c = (value[:, :length] for value in (x, delta, b, c))
    expected = paper(h, x, delta, a, b, c)
    with jax.enable_x64(dtype == "float64"):
        args = [jnp.asarray(v, dtype) for v in (h, x, delta, a, b, c)]
        same(scan(*args), expected, bound)


def test_gradient_of_the_scan_equals_the_papers_complex_step():
    args, rng = draw(), np.random.default_rng(1)
    way = [rng.normal(size=a.shape) for a in args]
    weights = rng.normal(size=(B, T, E))

    def value(outs):
        y, h = outs
        return (weights * y).sum() + (h * h).sum()

    moved = [a + 1e-30j * d for a, d in zip(args, way, strict=True)]
    slope = value(paper(*moved)).imag / 1e-30
    with jax.enable_x64(True):
        grads = jax.jit(jax.grad(lambda *args: value(scan(*args)), range(6)))(
            *map(jnp.asarray, args)
        )
        found = sum((g * d).sum() for g, d in zip(grads, way, strict=True))
        np.testing.assert_allclose(found, slope, rtol=1e-10)


def test_steps_of_any_size_stay_finite():
    """A quotient of cumulated decays would be 0 / 0 here."""
    h, x, delta, a, b, c = map(jnp.asarray, draw())

    def total(delta):
        y, end = scan(h, x, delta, a, b, c)
        return y.sum(), (y, end)

    grad, (y, end) = jax.jit(jax.grad(total, has_aux=True))(1e4 * delta)
    assert all(np.isfinite(leaf).all() for leaf in (y, end, grad))


@pytest.fixture(scope="module")
def layer():
    config = MambaConfig(state_size=N, chunk_size=CHUNK, step_rank=4)
    layer = Mamba(config, 8, 1)
    return layer, *drawn(layer, (B, T, 8))


@precisions
def test_layer_equals_the_paper(layer, dtype, bound):
    layer, params, x = layer
    rows = [papers_models.mamba(params, row) for row in x]
    expected = tuple(map(np.stack, zip(*rows, strict=True)))
    with jax.enable_x64(dtype == "float64"):
        params, x = to_numpy((params, x), dtype)
        y, state = applied(layer, dtype)({"params": params}, x)
        same((y, state.hidden), expected, bound)


@pytest.mark.parametrize("sizes", [[1] * T, [1, 5, 5], [5, 1, 5]])
def test_layer_streams_from_anywhere(layer, sizes):
    same_in_pieces(*layer, sizes)


def test_initial_rates_are_s4d_real_and_steps_are_in_their_range():
    layer = Mamba(MambaConfig(), 16, 1)
    init = jax.jit(layer.init)
    params = init(jax.random.key(0), jnp.zeros((1, 1, 16)))["params"]
    rates = np.exp(params["log_rates"].value)
    np.testing.assert_allclose(rates, np.tile(np.arange(1, 17), (32, 1)), 1e-5)
    steps = np.log1p(np.exp(params["b_step"].value))
    assert steps.min() > 0.9e-3 and steps.max() < 0.11
    assert np.log(steps).std() > 0.5


@precisions
def test_samba_block_equals_the_paper(dtype, bound):
    """Mamba, MLP, attention, MLP on one stream, through the model's block."""
    choices = {
        "mamba": {"state_size": N, "chunk_size": CHUNK, "step_rank": 4},
        "attention": {"window": 5},
    }
    config = configure("samba", d_model=8, n_heads=2, samba=choices)
    params, x = drawn(Block(config), (1, T, 8))
    expected = papers_models.samba(params, x[0], heads=2, window=5)
    with jax.enable_x64(dtype == "float64"):
        params, x = to_numpy((params, x), dtype)
        block = Block(configure(config, dtype=dtype))
        y, _ = jax.jit(block.apply)({"params": params}, x)
        same((y[0],), (expected,), bound)


def test_level_table_has_a_row_for_each_part_of_samba():
    rows = [row.name for row in build("samba", d_model=16).levels()]
    assert rows[:3] == ["mamba.state", "samba.mlp", "attention"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: MambaConfig(expansion=0.0), "expansion=0.0 must be positive"),
        (lambda: MambaConfig(state_size=0), "state_size=0 must be an integer"),
        (lambda: SambaConfig(hidden=0.0), "hidden=0.0 must be positive"),
    ],
)
def test_bad_choices_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()
