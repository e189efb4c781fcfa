"""Newton-Schulz: the formula, singular values, extremes, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import (
    interpret_pallas_call as interpreter,
)
from jax.experimental.pallas import tpu as pltpu
from optax.contrib import MuonDimensionNumbers
from optax.contrib._muon import orthogonalize_via_newton_schulz

from pallas_kernels.newton_schulz import (
    COEFFICIENTS,
    implementation_for,
    newton_schulz,
)
from tests.devices import run_on_devices

# Options of every implementation.
KERNELS = {
    "reference": {"implementation": "reference"},
    "batched": {"implementation": "batched"},
    "pallas_tpu": {"implementation": "pallas_tpu", "interpret": True},
}
SHAPES = [(3, 5), (5, 3), (2, 3, 4, 4), (9, 2), (1, 4), (4, 1)]


def draw(shape, dtype="float32"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def by_singular_values(x, rows):
    """The polynomial acts on the singular values alone."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / np.sqrt((s**2).sum(-1, keepdims=True))
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return np.einsum("...mk,...k,...kn->...mn", u, s, vt)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_acts_on_singular_values(name, coefficients):
    with jax.enable_x64(True):
        for shape in SHAPES:
            x = draw(shape, "float64")
            y = newton_schulz(
                jnp.asarray(x), coefficients=coefficients, **KERNELS[name]
            )
            expected = by_singular_values(x, [COEFFICIENTS[coefficients]] * 5)
            np.testing.assert_allclose(y, expected, atol=2e-7)


def test_cubic_orthogonalises():
    y = newton_schulz(draw((3, 8)), steps=30, coefficients="cubic")
    np.testing.assert_allclose(y @ y.T, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 6), (2, 16, 64)])
def test_equals_optax(shape):
    x = draw(shape)
    expected = orthogonalize_via_newton_schulz(
        jnp.asarray(x),
        jnp.array(COEFFICIENTS["quintic"]),
        dimension_numbers=MuonDimensionNumbers(1, 2),
    )
    np.testing.assert_allclose(newton_schulz(x), expected, atol=2e-5)


def test_small_singular_values_of_wide_matrices():
    """Iterating on the Gram matrix squares their ratio to the largest."""
    u, _, vt = np.linalg.svd(draw((8, 32)), full_matrices=False)
    sizes = np.logspace(0, -4, 8)
    x = (u * sizes) @ vt
    expected = by_singular_values(x, [COEFFICIENTS["quintic"]] * 5)
    y = newton_schulz(jnp.asarray(x, jnp.float32))
    ours = np.einsum("mk,mn,kn->k", u, y, vt)
    wanted = np.einsum("mk,mn,kn->k", u, expected, vt)
    np.testing.assert_allclose(ours, wanted, rtol=0.05)


@pytest.mark.parametrize("name", ["batched", "pallas_tpu"])
def test_half_precision_keeps_its_dtype(name):
    x = draw((4, 16))
    y = newton_schulz(jnp.asarray(x, jnp.bfloat16), **KERNELS[name])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype("float32"), newton_schulz(x), atol=0.1)


def test_kernel_reads_and_writes_nothing_astray():
    """NaN in all that was not written, out of bounds raises, no races."""
    x = jnp.asarray(draw((3, 5, 20)))
    params = pltpu.InterpretParams(
        detect_races=True,
        uninitialized_memory="nan",
        out_of_bounds_reads="raise",
    )
    y = newton_schulz(x, implementation="pallas_tpu", interpret=params)
    np.testing.assert_allclose(y, newton_schulz(x), atol=1e-5)
    assert not interpreter.races.races_found


def test_what_the_platform_offers_is_the_same():
    x = jnp.asarray(draw((2, 64, 80)))
    assert implementation_for("tpu", x) == "pallas_tpu"
    assert implementation_for("tpu", x[:, :8]) == "batched"
    expected = newton_schulz(x, implementation="batched")
    np.testing.assert_array_equal(newton_schulz(x), expected)
    kernel = newton_schulz(x, **KERNELS["pallas_tpu"])
    np.testing.assert_allclose(kernel, expected, atol=1e-4)


SHARDED = """
import jax, numpy as np
from pallas_kernels.newton_schulz import newton_schulz
x = jax.random.normal(jax.random.key(0), (8, 6, 10))
options = {"implementation": "pallas_tpu", "interpret": True}
alone = newton_schulz(x, **options)
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=auto)
with jax.set_mesh(mesh):
    shared = jax.jit(lambda x: newton_schulz(x, **options))(x)
assert shared.sharding.spec[0] == "data", shared.sharding
np.testing.assert_allclose(alone, shared, atol=1e-6)
"""


def test_kernel_on_a_mesh_is_the_kernel_on_one_device():
    run_on_devices(SHARDED)


def test_a_schedule_has_a_row_per_step():
    rows = [(3.0, -3.2, 1.2), (1.5, -0.5, 0.0)]
    with jax.enable_x64(True):
        x = draw((4, 3), "float64")
        y = newton_schulz(jnp.asarray(x), coefficients=rows)
        np.testing.assert_allclose(y, by_singular_values(x, rows), atol=1e-7)


def test_extremes():
    x = draw((2, 3))
    expected = newton_schulz(x)
    np.testing.assert_allclose(newton_schulz(x * 1e30), expected, atol=1e-6)
    tiny = newton_schulz(jnp.asarray(x * 1e-30))
    assert np.abs(tiny).max() < 1e-15, "eps keeps noise from becoming a step"
    assert np.all(newton_schulz(jnp.zeros((2, 3))) == 0)
    beside = newton_schulz(np.stack([x, x]))[0]
    for bad in (np.nan, np.inf):
        stack = np.stack([x, np.where(x == x[0, 0], bad, x)])
        y = np.asarray(newton_schulz(stack))
        np.testing.assert_array_equal(y[0], beside)
        assert not np.isfinite(y[1]).all(), "what is bad stays visible"


@pytest.mark.parametrize("x", [draw((3, 2)), np.zeros((3, 2), "float32")])
def test_gradients(x):
    weights = draw((3, 2))

    def gradient(name):
        def loss(x):
            return (newton_schulz(x, **KERNELS[name]) * weights).sum()

        return jax.grad(loss)(jnp.asarray(x))

    for name in ("batched", "pallas_tpu"):
        ours = gradient(name)
        assert np.isfinite(ours).all()
        if x.any():
            np.testing.assert_allclose(ours, gradient("reference"), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 must be an integer >= 1"),
        ({"coefficients": "septic"}, "coefficients='septic' must be one of"),
        ({"coefficients": (1.0, 2.0)}, r"must be \(a, b, c\)"),
        ({"implementation": "cuda"}, "implementation='cuda' does not exist"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        newton_schulz(jnp.ones((2, 2)), **options)
    with pytest.raises(ValueError, match=r"cannot run: the smaller side of"):
        newton_schulz(jnp.ones((600, 600)), implementation="pallas_tpu")
    with pytest.raises(ValueError, match="needs 2 axes"):
        newton_schulz(jnp.ones(2))
    with pytest.raises(ValueError, match="dtype int32"):
        newton_schulz(jnp.ones((2, 2), jnp.int32))
