"""The delta memory: chunked = token by token, forward and all gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.delta_memory import delta_scan, unit_lower_inverse

CASES = list(
    itertools.product(
        ["before", "after", "chunk"], [True, False], [True, False]
    )
)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def inputs(
    length, *, momentum=True, delta=True, dtype="float64", lead=(2,), seed=0
):
    """Random arrays; ``x`` and the gates are shared by 3 memories."""
    rng = np.random.default_rng(seed)
    shared = (*lead, 1)
    d_in, d_out = 4, 3
    normal = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    x = normal(*shared, length, d_in)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    gate = lambda: np.log(  # noqa: E731
        rng.uniform(0.5, 1.0, (*shared, length)).astype(dtype)
    )
    arrays = {
        "w": normal(*lead, 3, d_in, d_out),
        "s": normal(*lead, 3, d_in, d_out) if momentum else None,
        "x": x,
        "g": normal(*lead, 3, length, d_out),
        "q": normal(*shared, length, d_in),
        "log_alpha": gate(),
        "beta": np.exp(gate()) if delta else None,
        "log_mu": gate() if momentum else None,
    }
    return jax.tree.map(jnp.asarray, arrays)


def value_and_gradients(arrays, **options):
    """Outputs, final state, and gradients of a weighting of all of them."""

    def loss(arrays):
        out = delta_scan(**arrays, **options)
        terms = [
            jnp.vdot(jnp.cos(jnp.arange(v.size, dtype=v.dtype)), v.ravel())
            for v in jax.tree.leaves(out)
        ]
        return sum(terms), out

    return jax.jit(jax.grad(loss, has_aux=True))(arrays)


@pytest.mark.parametrize(("read", "momentum", "delta"), CASES)
def test_chunked_equals_token_by_token(x64, read, momentum, delta):
    arrays = inputs(21, momentum=momentum, delta=delta)  # 21 = 8 + 8 + 5
    run = [
        value_and_gradients(
            arrays, chunk_size=8, read=read, implementation=implementation
        )
        for implementation in ("reference", "chunked")
    ]
    for expected, actual in zip(*map(jax.tree.leaves, run), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-10, rtol=0)


def test_widths_that_climb_the_block_ladder(x64):
    arrays = inputs(80, lead=())
    expected = value_and_gradients(arrays, implementation="reference")
    actual = value_and_gradients(arrays, chunk_size=40)
    for e, a in zip(*map(jax.tree.leaves, (expected, actual)), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-10, rtol=0)


@pytest.mark.parametrize("extreme", ["forget", "keep", "no_write", "repeat"])
def test_extreme_gates_stay_exact_and_finite(extreme):
    arrays = inputs(40, dtype="float32")
    if extreme == "forget":
        arrays["log_alpha"] = arrays["log_alpha"].at[..., ::3].set(-jnp.inf)
    elif extreme == "keep":
        arrays["log_alpha"] = jnp.zeros_like(arrays["log_alpha"])
    elif extreme == "no_write":
        arrays["beta"] = jnp.zeros_like(arrays["beta"])
    else:  # One key over and over: where a Neumann series loses all digits.
        arrays["x"] = jnp.broadcast_to(
            arrays["x"][..., :1, :], arrays["x"].shape
        )
        arrays["beta"] = jnp.ones_like(arrays["beta"])
    options = {"chunk_size": 32}
    expected = delta_scan(**arrays, **options, implementation="reference")
    grads, actual = value_and_gradients(arrays, **options)
    for e, a in zip(*map(jax.tree.leaves, (expected, actual)), strict=True):
        np.testing.assert_allclose(a, e, atol=5e-5, rtol=1e-5)
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name


def test_bfloat16_products_keep_float32_states():
    arrays = inputs(64, dtype="float32")
    o32, w32, _s32 = delta_scan(**arrays)
    low = {
        k: v.astype(jnp.bfloat16) if k in ("x", "g", "q") else v
        for k, v in arrays.items()
    }
    o16, w16, s16 = delta_scan(**low)
    assert o16.dtype == jnp.bfloat16
    assert w16.dtype == s16.dtype == jnp.float32
    scale = float(jnp.abs(o32).max())
    tolerance = 2**-8 * np.sqrt(64) * scale
    np.testing.assert_allclose(o16.astype("float32"), o32, atol=tolerance)
    np.testing.assert_allclose(w16, w32, atol=tolerance)


def test_split_equals_whole_in_float32():
    arrays = inputs(48, dtype="float32")
    whole = delta_scan(**arrays, chunk_size=16)
    state, outs = (arrays["w"], arrays["s"]), []
    for start, stop in ((0, 1), (1, 20), (20, 48)):
        piece = {
            name: arrays[name][..., start:stop, :] for name in ("x", "g", "q")
        }
        gates = {
            name: arrays[name][..., start:stop]
            for name in ("log_alpha", "beta", "log_mu")
        }
        o, *state = delta_scan(*state, **piece, **gates, chunk_size=16)
        outs.append(o)
    np.testing.assert_allclose(jnp.concatenate(outs, -2), whole[0], atol=1e-5)
    np.testing.assert_allclose(state[0], whole[1], atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 40])
def test_inverse_and_its_gradient(x64, size):
    rng = np.random.default_rng(size)
    lower = jnp.tril(jnp.asarray(rng.normal(size=(2, size, size))), -1)
    eye = jnp.eye(size)
    inverse = unit_lower_inverse(lower)
    np.testing.assert_allclose(
        inverse @ (eye + lower), np.broadcast_to(eye, lower.shape), atol=1e-9
    )
    weight = jnp.asarray(rng.normal(size=lower.shape))
    plain = jax.grad(lambda m: jnp.vdot(weight, jnp.linalg.inv(eye + m)))
    ours = jax.grad(lambda m: jnp.vdot(weight, unit_lower_inverse(m)))
    expected = jnp.tril(plain(lower), -1)
    np.testing.assert_allclose(
        ours(lower), expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"read": "later"}, "read='later' must be one of"),
        ({"implementation": "cuda"}, "implementation='cuda' does not exist"),
        ({"log_mu": None}, "log_mu is needed"),
        ({"g": np.zeros((5, 3))}, r"g has shape \(5, 3\)"),
        ({"beta": np.zeros((7, 1, 21))}, "do not broadcast"),
    ],
)
def test_bad_input_names_the_field(change, message):
    arrays = inputs(21, dtype="float32") | change
    with pytest.raises(ValueError, match=message):
        delta_scan(**arrays)
