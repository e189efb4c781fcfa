"""Normalisations, the short convolution, attention, the continuum memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.layers import (
    AttentionConfig,
    CausalAttention,
    CMSConfig,
    ContinuumMemory,
    l2_normalize,
    next_tail,
    rms_norm,
    short_conv,
)
from nl_jax.models import build, to_json

D, HEADS, WINDOW = 8, 2, 5


def test_norms_equal_their_formulas_and_keep_the_dtype():
    x = np.random.default_rng(0).normal(size=(3, D)).astype(np.float32)
    mean = np.sqrt((x**2).mean(-1, keepdims=True))
    length = np.sqrt((x**2).sum(-1, keepdims=True))
    scale = jnp.arange(1.0, D + 1)
    np.testing.assert_allclose(rms_norm(x, scale), x / mean * scale, rtol=1e-5)
    np.testing.assert_allclose(l2_normalize(x), x / length, rtol=1e-5)
    low = jnp.asarray(x, jnp.bfloat16)
    assert rms_norm(low).dtype == l2_normalize(low).dtype == jnp.bfloat16
    for norm in (rms_norm, l2_normalize):  # A zero vector has a gradient.
        grad = jax.grad(lambda x, norm=norm: norm(x).sum())(jnp.zeros(D))
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("width", [1, 2, 4])
def test_short_conv_equals_numpy_and_streams(width):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(7, D)), rng.normal(size=(width, D))
    expected = np.stack(
        [np.convolve(x[:, d], kernel[::-1, d])[:7] for d in range(D)], -1
    )
    empty = jnp.zeros((width - 1, D))
    whole = short_conv(jnp.asarray(x), jnp.asarray(kernel), empty)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    tail, pieces = empty, []
    for piece in (x[:2], x[2:3], x[3:]):  # Shorter than the tail, too.
        piece = jnp.asarray(piece)
        pieces.append(short_conv(piece, jnp.asarray(kernel), tail))
        tail = next_tail(piece, tail)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_without_positions_the_order_of_what_is_seen_is_nothing():
    config = AttentionConfig(rope_base=None, conv_width=1)
    layer = CausalAttention(config, D, HEADS)
    x = jax.random.normal(jax.random.key(0), (1, 6, D))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    swapped = x[:, jnp.array([3, 1, 0, 2, 4, 5])]
    apply = jax.jit(layer.apply)
    y, other = (apply(variables, a)[0] for a in (x, swapped))
    np.testing.assert_allclose(y[:, 4:], other[:, 4:], atol=1e-6)


@pytest.fixture(scope="module")
def attention():
    layer = CausalAttention(AttentionConfig(window=WINDOW), D, HEADS)
    x = jax.random.normal(jax.random.key(0), (2, 13, D))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    return layer, jax.jit(layer.apply), variables, x


def plain_attention(params, x):
    """Softmax over the window, one query at a time, in NumPy."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(x, np.float64)
    heads = {}
    for name in ("q", "k", "v"):
        raw = x @ p[f"w_{name}"]
        y = sum(
            p[f"conv_{name}"][3 - lag]
            * np.concatenate([np.zeros((lag, D)), raw[: len(raw) - lag]])
            for lag in range(4)
        )
        heads[name] = (y / (1 + np.exp(-y))).reshape(len(x), HEADS, -1)
    d = D // HEADS
    frequency = 10_000.0 ** (-np.arange(d // 2) / (d // 2))

    def turn(vectors, position):
        pair = vectors[..., : d // 2] + 1j * vectors[..., d // 2 :]
        pair = pair * np.exp(1j * position * frequency)
        return np.concatenate([pair.real, pair.imag], -1)

    out = []
    for t in range(len(x)):
        seen = range(max(0, t - WINDOW + 1), t + 1)
        q = turn(heads["q"][t], t)
        scores = np.stack(
            [(q * turn(heads["k"][s], s)).sum(-1) for s in seen]
        ) / np.sqrt(d)
        weights = np.exp(scores) / np.exp(scores).sum(0)
        y = sum(
            w[:, None] * heads["v"][s]
            for w, s in zip(weights, seen, strict=True)
        )
        out.append(y.reshape(-1) @ p["w_out"])
    return np.stack(out)


@pytest.mark.parametrize("length", [WINDOW - 1, 13])
def test_attention_equals_a_plain_loop(attention, length):
    _, apply, variables, x = attention
    y, _ = apply(variables, x[:, :length])
    params = jax.tree.map(np.asarray, unboxed(variables)["params"])
    for row in range(2):
        expected = plain_attention(params, x[row, :length])
        np.testing.assert_allclose(y[row], expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 13, [1, 6, 6], [6, 1, 6]])
def test_attention_streams_at_constant_memory(attention, sizes):
    layer, apply, variables, x = attention
    whole, end = apply(variables, x)
    state = layer.apply(variables, 2, method="initial_state")
    shapes = jax.tree.map(jnp.shape, state)
    pieces, at = [], 0
    for size in sizes:
        y, state = apply(variables, x[:, at : at + size], state)
        pieces.append(y)
        at += size
    assert jax.tree.map(jnp.shape, state) == shapes
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (state, end)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_forgets_what_left_the_window():
    layer = CausalAttention(AttentionConfig(window=3, conv_width=1), D, HEADS)
    x = jax.random.normal(jax.random.key(0), (1, 6, D))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    apply = jax.jit(layer.apply)
    a, _ = apply(variables, x)
    b, _ = apply(variables, x.at[0, 0].add(1.0))
    moved = np.abs(a - b).max((0, 2))
    assert (moved[:3] > 0).all() and (moved[3:] == 0).all()


def test_one_level_is_the_swiglu_block_of_a_transformer():
    config = CMSConfig(hidden=3.0)
    layer = ContinuumMemory(config, D)
    x = jax.random.normal(jax.random.key(0), (2, 3, D))
    variables = unboxed(jax.jit(layer.init)(jax.random.key(1), x))
    p = variables["params"]
    h = rms_norm(x, p["level_1_scale"])
    gate = jax.nn.silu(h @ p["level_1_gate"])
    expected = x + (gate * (h @ p["level_1_up"])) @ p["level_1_down"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_levels_are_a_chain_and_rows_have_their_own_fast_weights():
    config = CMSConfig(token_periods=(2, 4), objective="next_token")
    layer = ContinuumMemory(config, D)
    x = jax.random.normal(jax.random.key(0), (2, 3, D))
    variables = unboxed(jax.jit(layer.init)(jax.random.key(1), x))
    params = variables["params"]
    slow = ContinuumMemory.initial_fast(params, config)
    fast = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), slow)
    y = jax.jit(layer.apply)(variables, x, fast)
    apply = jax.jit(ContinuumMemory(CMSConfig(), D).apply)
    for row, factor in enumerate((1, 2)):
        h = x[row]
        for level in ("level_1", "level_2"):
            own = {
                f"level_1_{name}": factor * params[f"{level}_{name}"]
                for name in ("gate", "up", "down")
            }
            own["level_1_scale"] = params[f"{level}_scale"]
            h = apply({"params": own}, h)
        np.testing.assert_allclose(y[row], h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: AttentionConfig(window=0), "window=0 must be an integer >= 1"),
        (lambda: AttentionConfig(rope_base=1.0), "rope_base=1.0 must be above"),
        (lambda: CMSConfig(step_periods=()), r"cms.step_periods=\(\) must"),
        (lambda: CMSConfig(step_periods=(4, 6)), "4 does not divide 6"),
        (lambda: CMSConfig(token_periods=(True,)), r"=\(True,\) must hold"),
        (lambda: CMSConfig(token_periods=4), "token_periods=4 must be a tuple"),
        (
            lambda: CMSConfig(objective="next_token", token_periods=(1,)),
            "the fastest must be at least 2 tokens",
        ),
        (lambda: CMSConfig(rate=-1.0), "cms.rate=-1.0 must not be negative"),
        (lambda: CMSConfig(objective="mine"), "cms.objective='mine' must be"),
        (
            lambda: CausalAttention(AttentionConfig(), 6, 2).init(
                jax.random.key(0), jnp.zeros((1, 1, 6))
            ),
            "2 \\* n_heads=4 must divide d_model=6",
        ),
    ],
)
def test_bad_choices_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_numbers_of_numpy_are_those_of_python():
    config = CMSConfig(
        token_periods=[np.int64(2)], least=np.int32(1), rate=np.float32(0.5)
    )
    same = CMSConfig(token_periods=(2,), rate=0.5)
    assert json.dumps(to_json(config)) == json.dumps(to_json(same))
    kinds = {type(n) for n in (*config.token_periods, config.least)}
    assert kinds == {int}


def unboxed(variables):
    return jax.tree.map(
        lambda box: box.value,
        variables,
        is_leaf=lambda box: hasattr(box, "names"),
    )


def test_recurrent_matrices_of_an_lstm_begin_orthogonal():
    """Those of two blocks, of full rank and unlike each other."""
    model = build("lstm", d_model=48, n_heads=2, n_layers=2)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 1), int))
    paths = jax.tree_util.tree_leaves_with_path(variables["params"]["blocks"])
    found = [
        w for path, w in paths if w.shape == (2, 48, 48) and "'h" in str(path)
    ]
    assert len(found) == 4
    for w in found:
        both = jnp.matmul(w, w.mT, precision="highest")
        np.testing.assert_allclose(both, [np.eye(48)] * 2, atol=1e-5)
    drawn = np.stack(found).reshape(8, -1)
    np.testing.assert_allclose(drawn @ drawn.T / 48, np.eye(8), atol=0.15)
