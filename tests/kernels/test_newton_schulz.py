"""Newton-Schulz: the formula, singular values, extremes, gradients."""

import functools

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

from pallas_kernels import device
from pallas_kernels.newton_schulz import (
    COEFFICIENTS,
    implementation_for,
    newton_schulz,
    triton,
    triton_tiles,
)
from tests.devices import run_on_devices

# Options of every implementation.
KERNELS = {
    "reference": {"implementation": "reference"},
    "batched": {"implementation": "batched"},
    "pallas_tpu": {"implementation": "pallas_tpu", "interpret": True},
    "pallas_triton": {"implementation": "pallas_triton", "interpret": True},
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


@pytest.fixture
def small_tiles(monkeypatch):
    """Large matrices' kernel, for matrices that a test can afford."""
    for name, size in {"SMALL": 4, "LARGE": 5, "TILE": 16, "DEPTH": 8}.items():
        monkeypatch.setattr(triton, name, size)


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


def triton_is_exact(shapes, dtype="float64", atol=2e-7, steps=5):
    options = {**KERNELS["pallas_triton"], "steps": steps}
    with jax.enable_x64(True):
        for shape in shapes:
            x = jnp.asarray(draw(shape), dtype)
            y = newton_schulz(x, **options)
            assert y.dtype == dtype and y.shape == shape
            rows = [COEFFICIENTS["quintic"]] * steps
            expected = by_singular_values(np.asarray(x, "float64"), rows)
            np.testing.assert_allclose(
                y.astype("float64"), expected, atol=atol, err_msg=str(shape)
            )


def test_triton_on_several_tiles_that_matrices_do_not_fill():
    triton_is_exact([(70, 75), (2, 130, 100)])


def test_triton_on_products_that_are_cut_into_tiles(small_tiles):
    triton_is_exact([(24, 20), (2, 20, 50)], steps=2)
    triton_is_exact([(33, 80)], "float32", atol=1e-5, steps=2)


def test_triton_keeps_half_precision_to_its_last_digits():
    """Between input and output there is float32."""
    triton_is_exact([(20, 70)], "bfloat16", atol=2**-9)


def test_half_precision_cut_into_tiles(small_tiles):
    triton_is_exact([(20, 50)], "bfloat16", atol=0.02, steps=2)


@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_each_tile_below_the_diagonal_is_visited_once(side):
    index = jnp.arange(triton_tiles.count_lower(side))
    found = [triton_tiles.lower(t, side) for t in index]
    expected = [(i, j) for i in range(side) for j in range(i + 1)]
    assert sorted((int(i), int(j)) for i, j in found) == expected


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


@pytest.mark.parametrize("name", ["batched", "pallas_tpu", "pallas_triton"])
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
    names = {"cpu": "batched", "tpu": "pallas_tpu", "cuda": "pallas_triton"}
    for platform, name in names.items():
        assert implementation_for(platform, x) == name
        assert implementation_for(platform, x[:, :8]) == "batched"
    expected = newton_schulz(x, implementation="batched")
    np.testing.assert_array_equal(newton_schulz(x), expected)
    for name in ("pallas_tpu", "pallas_triton"):
        kernel = newton_schulz(x, **KERNELS[name])
        np.testing.assert_allclose(kernel, expected, atol=1e-4)


def test_sizes_without_a_kernel_are_left_to_the_batched_form():
    def names(*shape):
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        return [implementation_for(name, x) for name in ("tpu", "cuda")]

    assert names(512, 1536) == ["pallas_tpu", "batched"]
    assert names(2048, 1536) == ["batched", "pallas_triton"]
    assert names(600, 600) == ["batched", "batched"]


def test_old_devices_are_left_to_the_batched_form(monkeypatch):
    monkeypatch.setattr(device, "unsupported", lambda name: name == "cuda")
    x = jnp.ones((64, 64))
    assert implementation_for("cuda", x) == "batched"
    assert implementation_for("tpu", x) == "pallas_tpu"


def test_the_platform_that_is_lowered_for_decides():
    x = jnp.ones((64, 64))
    exported = jax.export.export(jax.jit(newton_schulz), platforms=("cpu",))(x)
    assert "custom_call" not in exported.mlir_module()
    exported = jax.export.export(jax.jit(newton_schulz), platforms=("tpu",))(x)
    assert "tpu_custom_call" in exported.mlir_module()


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_triton"])
def test_kernels_are_vmapped(name):
    x = jnp.asarray(draw((3, 2, 5, 8)))
    y = jax.vmap(lambda x: newton_schulz(x, **KERNELS[name]))(x)
    np.testing.assert_allclose(y, newton_schulz(x), atol=1e-5)


SHARDED = """
import jax, numpy as np
from pallas_kernels.newton_schulz import newton_schulz
x = jax.random.normal(jax.random.key(0), (8, 6, 10))
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=auto)
for name in ("pallas_tpu", "pallas_triton"):
    options = {"implementation": name, "interpret": True}
    alone = newton_schulz(x, **options)
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


@pytest.mark.parametrize("name", ["batched", "pallas_triton"])
def test_extremes(name):
    run = functools.partial(newton_schulz, **KERNELS[name])
    x = draw((2, 3))
    expected = run(x)
    # A power of two: no digit of the input may change.
    np.testing.assert_allclose(run(x * 2.0**100), expected, atol=1e-6)
    tiny = run(jnp.asarray(x * 1e-30))
    assert np.abs(tiny).max() < 1e-15, "eps keeps noise from becoming a step"
    assert np.all(run(jnp.zeros((2, 3))) == 0)
    beside = run(np.stack([x, x]))[0]
    for bad in (np.nan, np.inf):
        stack = np.stack([x, np.where(x == x[0, 0], bad, x)])
        y = np.asarray(run(stack))
        np.testing.assert_array_equal(y[0], beside)
        assert not np.isfinite(y[1]).all(), "what is bad stays visible"


@pytest.mark.parametrize("name", KERNELS)
def test_all_sizes_that_a_dtype_has(name):
    """Squares over- and underflow; eps is small beside what it is added to."""
    rows = [COEFFICIENTS["quintic"]] * 5
    for dtype, sizes in {
        "float16": (1e-6, 2e4),
        "bfloat16": (1e-35, 1e38),
        "float32": (1e-35, 1e38),
    }.items():
        for size in sizes:
            x = jnp.asarray(draw((2, 3)).clip(-2, 2) * size, dtype)
            y = newton_schulz(x, eps=0.0, **KERNELS[name])
            expected = by_singular_values(np.asarray(x, "float64"), rows)
            atol = 1e-5 if dtype == "float32" else 0.1
            np.testing.assert_allclose(
                y.astype("float32"), expected, atol=atol, err_msg=dtype
            )


@pytest.mark.parametrize("x", [draw((3, 2)), np.zeros((3, 2), "float32")])
def test_gradients(x):
    weights = draw((3, 2))

    def gradient(name):
        def loss(x):
            return (newton_schulz(x, **KERNELS[name]) * weights).sum()

        return jax.grad(loss)(jnp.asarray(x))

    for name in ("batched", "pallas_tpu", "pallas_triton"):
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
    for name in ("pallas_tpu", "pallas_triton"):
        with pytest.raises(ValueError, match=r"run: the smaller side of"):
            newton_schulz(jnp.ones((600, 600)), implementation=name)
    with pytest.raises(ValueError, match="needs 2 axes"):
        newton_schulz(jnp.ones(2))
    with pytest.raises(ValueError, match="dtype int32"):
        newton_schulz(jnp.ones((2, 2), jnp.int32))
