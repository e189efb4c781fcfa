"""Titans as context, gate and layer equal the paper, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.layers import (
    AttentionConfig,
    CausalAttention,
    DeepMemoryConfig,
    TitansAttention,
    TitansAttentionConfig,
)
from nl_jax.models import build
from tests.layers.papers_tools import drawn, same, to_numpy
from tests.memory import papers_models
from tests.memory.comparisons import check_direction

T, D, HEADS, CHUNK, WINDOW = 8, 8, 2, 3, 4
PAPERS = {
    "context": papers_models.memory_as_context,
    "gate": papers_models.memory_as_gate,
    "layer": papers_models.memory_as_layer,
}
every_case = pytest.mark.parametrize("combine", PAPERS)
slow_alike = pytest.mark.parametrize(
    "combine",
    [
        "context",
        pytest.param("gate", marks=pytest.mark.slow),
        pytest.param("layer", marks=pytest.mark.slow),
    ],
)


@functools.cache
def make(combine):
    config = TitansAttentionConfig(
        combine,
        DeepMemoryConfig(
            chunk_size=CHUNK, expansion=2, normalized=False, eta_max=1.0
        ),
        AttentionConfig(window=WINDOW, persistent=2),
    )
    layer = TitansAttention(config, D, HEADS)
    return layer, *drawn(layer, (1, T, D))


def paper(combine, params, x):
    return PAPERS[combine](
        params, x[0], heads=HEADS, chunk=CHUNK, window=WINDOW
    )[None]


@every_case
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-6)]
)
def test_equals_the_paper(combine, dtype, bound):
    layer, params, x = make(combine)
    expected = paper(combine, params, x)
    with jax.enable_x64(dtype == "float64"):
        own = layer.clone(dtype=jnp.dtype(dtype))
        params, x = to_numpy((params, x), dtype)
        y, _ = jax.jit(own.apply)({"params": params}, x)
        same((y,), (expected,), bound)


@slow_alike
def test_gradient_equals_the_papers_slope(combine):
    """Through every inner step, along one direction of everything."""
    layer, params, x = make(combine)
    rng = np.random.default_rng(1)
    way = jax.tree.map(lambda a: rng.normal(size=a.shape), (params, x))
    weights = rng.normal(size=x.shape)

    def plain(params, x):
        return (weights * paper(combine, params, x)).sum()

    with jax.enable_x64(True):
        own = layer.clone(dtype=jnp.dtype("float64"))

        def loss(params, x):
            return (weights * own.apply({"params": params}, x)[0]).sum()

        grads = jax.jit(jax.grad(loss, (0, 1)))(params, x)
        check_direction(plain, (params, x), way, grads)


def test_rows_may_stand_at_different_places_of_their_segments():
    layer, params, _ = make("context")
    x = np.random.default_rng(2).normal(size=(2, 12, D))
    with jax.enable_x64(True):
        own = layer.clone(dtype=jnp.dtype("float64"))
        apply = jax.jit(functools.partial(own.apply, {"params": params}))
        whole, _ = apply(x)
        begun = [2, 3]  # Inside a segment, and where one ends.
        states = [apply(x[i : i + 1, :n])[1] for i, n in enumerate(begun)]
        state = jax.tree.map(lambda *a: jnp.concatenate(a), *states)
        rest = [x[i, n : n + 8] for i, n in enumerate(begun)]
        y, _ = apply(np.stack(rest), state)
        expected = [whole[i, n : n + 8] for i, n in enumerate(begun)]
        same((y,), (np.stack(expected),), 1e-12)


def test_segments_meet_through_the_memory_alone():
    """Without convolutions and writes the past of a segment is not seen."""
    config = TitansAttentionConfig(
        "context",
        DeepMemoryConfig(chunk_size=CHUNK, conv_width=1, eta_max=1e-30),
        AttentionConfig(conv_width=1, persistent=2),
    )
    layer = TitansAttention(config, D, HEADS)
    params, x = drawn(layer, (1, T, D), noise=0.0)
    apply = jax.jit(layer.apply)
    a, _ = apply({"params": params}, x)
    b, _ = apply({"params": params}, x + np.eye(T)[None, :, 1:2])
    moved = np.abs(a - b).max((0, 2)) > 1e-4
    # Memory still forgets, and reads what attention makes of each token.
    np.testing.assert_array_equal(moved, [0, 1, 1, *[0] * (T - 3)])


@pytest.mark.parametrize("length", [WINDOW, T])
def test_attention_with_persistent_tokens_equals_a_plain_loop(length):
    layer = CausalAttention(AttentionConfig(WINDOW, persistent=3), D, HEADS)
    params, x = drawn(layer, (1, length, D))
    sees = papers_models.last(WINDOW, x[0])
    plain = functools.partial(papers_models.attention, heads=HEADS, sees=sees)
    expected = plain(params, x[0])
    apply = jax.jit(layer.apply)
    y, _ = apply({"params": to_numpy(params, "float32")}, x)
    same((y[0],), (expected,), 1e-6)
    del params["persistent_keys"]
    assert np.abs(plain(params, x[0]) - expected).max() > 0.1


def test_level_table_has_a_row_for_each_memory():
    model = build("titans-mac", d_model=16, n_heads=2)
    rows = {row.name: row for row in model.levels()}
    assert rows["deep.memory"].period == model.config.cycle == 32
    assert "its 32 tokens" in rows["attention"].memory_of
    assert rows["attention"].parameters == 2 * 2 * 4 * 16  # Learned tokens.


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match="combine='mean' must be one of"):
        TitansAttentionConfig(combine="mean")
    with pytest.raises(ValueError, match="persistent=-1 must be an integer"):
        AttentionConfig(persistent=-1)
