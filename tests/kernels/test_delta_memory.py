"""The delta memory: every implementation = token by token in float64.

Forward and all gradients, kernels in interpret mode.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import (
    interpret_pallas_call as interpreter,
)
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.delta_memory import (
    delta_scan,
    implementation_for,
    unit_lower_inverse,
)
from pallas_kernels.delta_memory.inverse import unit_lower_inverse_masked
from tests.devices import run_on_devices

# Any two values meet in the quick half.
CASES = [
    pytest.param(
        *(read, momentum, delta),
        marks=()
        if (momentum == delta) == (read != "after")
        else pytest.mark.slow,
    )
    for read, momentum, delta in itertools.product(
        ["before", "after", "chunk"], [True, False], [True, False]
    )
]
# Options of every implementation that is tested against the token scan.
KERNELS = {
    "chunked": {"implementation": "chunked"},
    "pallas_tpu": {"implementation": "pallas_tpu", "interpret": True},
    "pallas_triton": {"implementation": "pallas_triton", "interpret": True},
    "pallas_mosaic_gpu": {
        "implementation": "pallas_mosaic_gpu",
        "interpret": True,
    },
}
interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"),
    reason="JAX before 0.11 cannot interpret Mosaic GPU kernels",
)
every_implementation = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=interpreted if "mosaic" in n else ())
        for n in KERNELS
    ],
)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def inputs(
    length,
    *,
    momentum=True,
    delta=True,
    dtype="float64",
    lead=(2,),
    memories=3,
    seed=0,
):
    """Random arrays; ``x`` and the gates are shared by all ``memories``."""
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
        "w": normal(*lead, memories, d_in, d_out),
        "s": normal(*lead, memories, d_in, d_out) if momentum else None,
        "x": x,
        "g": normal(*lead, memories, length, d_out),
        "q": normal(*shared, length, d_in),
        "log_alpha": gate(),
        "beta": np.exp(gate()) if delta else None,
        "log_mu": gate() if momentum else None,
    }
    return jax.tree.map(jnp.asarray, arrays)


def exactness(name):
    """The dtype of an implementation's sums, and its digits in that."""
    # Hopper's matrix units sum in float32.
    return ("float32", 1e-4) if "mosaic" in name else ("float64", 1e-10)


def equal_token_by_token(arrays, name, **options):
    """Compares with the float64 token scan of the same numbers."""
    dtype, atol = exactness(name)
    given = jax.tree.map(lambda v: v.astype(dtype), arrays)
    with jax.enable_x64(dtype == "float64"):
        actual = value_and_gradients(given, **options, **KERNELS[name])
    exact = jax.tree.map(lambda v: v.astype("float64"), given)
    expected = value_and_gradients(exact, **options, implementation="reference")
    assert_equal_trees(actual, expected, atol=atol, rtol=0)


def weighted(arrays, options):
    """One number that depends on all outputs, and the outputs."""
    out = delta_scan(**arrays, **dict(options))
    terms = []
    for v in jax.tree.leaves(out):
        weights = jnp.cos(jnp.arange(v.size).astype(float))
        terms.append(jnp.vdot(weights, v.ravel().astype(weights.dtype)))
    return sum(terms), out


@functools.partial(jax.jit, static_argnames="options")
def _gradients_and_outputs(arrays, options):
    return jax.grad(weighted, has_aux=True)(arrays, options)


def value_and_gradients(arrays, **options):
    """Gradients of a weighting of outputs and final state, and these."""
    return _gradients_and_outputs(arrays, tuple(options.items()))


def assert_equal_trees(actual, expected, **tolerance):
    pairs = zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    for a, e in pairs:
        np.testing.assert_allclose(a, e, **tolerance)


@every_implementation
@pytest.mark.parametrize(("read", "momentum", "delta"), CASES)
def test_equals_token_by_token(x64, read, momentum, delta, name):
    # 5 more than a chunk, and 11 less than what a kernel chooses.
    chunk = 64 if "mosaic" in name else 16
    arrays = inputs(chunk + 5, momentum=momentum, delta=delta)
    equal_token_by_token(arrays, name, chunk_size=chunk, read=read)


def with_resets(arrays, at):
    """Adds resets before some tokens, as numbers, which have gradients."""
    resets = jnp.zeros_like(arrays["log_alpha"])
    return arrays | {"resets": resets.at[..., jnp.array(at)].set(1)}


@pytest.mark.parametrize("read", ["before", "after", "chunk"])
def test_a_reset_is_a_new_sequence(x64, read):
    at = (0, 5, 17, 18)
    arrays = with_resets(inputs(24), at[1:])
    actual = delta_scan(**arrays, read=read, implementation="reference")
    del arrays["resets"]
    outs = []
    for start, stop in zip(at, (*at[1:], 24), strict=True):
        part = {
            name: arrays[name][..., start:stop, :] for name in ("x", "g", "q")
        } | {
            name: arrays[name][..., start:stop]
            for name in ("log_alpha", "beta", "log_mu")
        }
        keep = start == 0
        state = {name: keep * arrays[name] for name in "ws"}
        o, *end = delta_scan(
            **state, **part, read=read, implementation="reference"
        )
        outs.append(o)
    expected = jnp.concatenate(outs, -2), *end
    assert_equal_trees(actual, expected, atol=1e-12, rtol=0)


@every_implementation
@pytest.mark.parametrize(
    ("read", "momentum", "delta"),
    [
        ("before", True, True),
        pytest.param("after", True, True, marks=pytest.mark.slow),
        pytest.param("after", False, True, marks=pytest.mark.slow),
        pytest.param("after", True, False, marks=pytest.mark.slow),
        pytest.param("chunk", True, True, marks=pytest.mark.slow),
    ],
)
def test_resets_equal_token_by_token(x64, read, momentum, delta, name):
    chunk = 64 if "mosaic" in name else 16
    arrays = inputs(chunk + 5, momentum=momentum, delta=delta)
    arrays = with_resets(arrays, (3, 4, 11, chunk, chunk + 2))
    equal_token_by_token(arrays, name, chunk_size=chunk, read=read)


@pytest.mark.parametrize("length", [1, 16, 150])
@every_implementation
def test_one_token_one_chunk_many_chunks(x64, length, name):
    arrays = inputs(length)
    # Writes that nothing shares: the kernel cannot fold its memories.
    arrays["x"] = jnp.broadcast_to(arrays["x"], (2, 3, length, 4))
    equal_token_by_token(arrays, name)


@pytest.mark.parametrize("read", ["before", "chunk"])
def test_what_the_platform_offers_is_the_same(x64, read):
    arrays = inputs(250, momentum=read == "before")
    shapes = jax.tree.map(lambda v: v.astype("float32"), arrays)
    options = {"chunk_size": 48, "read": read}
    assert implementation_for("tpu", **shapes, **options) == "pallas_tpu"
    # Chunks of 48 tokens are none of Triton's.
    triton = "pallas_triton" if read == "before" else "chunked"
    assert implementation_for("cuda", **shapes, **options) == triton
    assert implementation_for("cpu", **shapes, **options) == "chunked"
    expected = value_and_gradients(
        arrays, **options, implementation="reference"
    )
    with jax.enable_x64(False):
        actual = value_and_gradients(shapes, **options)
    assert_equal_trees(actual, expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["chunked", "pallas_tpu", None])
def test_second_derivatives(name):
    arrays = inputs(144, dtype="float32", lead=(), memories=1)

    def steepness(arrays, options):
        slope, _ = jax.grad(weighted, has_aux=True)(arrays, options)
        return jnp.square(slope["w"]).sum() + jnp.square(slope["x"]).sum()

    def second(**options):
        run = jax.jit(jax.grad(steepness), static_argnames="options")
        return run(arrays, options=tuple(options.items()))

    expected = second(implementation="reference")
    actual = second(**KERNELS.get(name, {}))
    for key, e in expected.items():
        scale = float(jnp.abs(e).max())
        np.testing.assert_allclose(
            actual[key], e, atol=1e-4 * scale, err_msg=key
        )


def test_kernel_maps_over_rows():
    arrays = inputs(40, dtype="float32")
    actual, expected = (
        jax.vmap(functools.partial(value_and_gradients, **options))(arrays)
        for options in (KERNELS["pallas_tpu"], KERNELS["chunked"])
    )
    assert_equal_trees(actual, expected, atol=2e-4)


@pytest.mark.parametrize("length", [40, 150])
def test_kernel_reads_and_writes_nothing_astray(length):
    """NaN in all that was not written, out of bounds raises, no races."""
    arrays = inputs(length, dtype="float32")
    expected = value_and_gradients(arrays, implementation="chunked")
    params = pltpu.InterpretParams(
        detect_races=True,
        uninitialized_memory="nan",
        out_of_bounds_reads="raise",
    )
    actual = value_and_gradients(
        arrays, implementation="pallas_tpu", interpret=params
    )
    assert_equal_trees(actual, expected, atol=2e-4)
    assert not interpreter.races.races_found


def test_widths_that_climb_the_block_ladder(x64):
    arrays = inputs(80, lead=())
    expected = value_and_gradients(arrays, implementation="reference")
    actual = value_and_gradients(arrays, chunk_size=40)
    assert_equal_trees(actual, expected, atol=1e-10, rtol=0)


@every_implementation
@pytest.mark.parametrize("extreme", ["forget", "keep", "no_write", "repeat"])
def test_extreme_gates_stay_exact_and_finite(extreme, name):
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
    _, expected = value_and_gradients(arrays, implementation="reference")
    grads, actual = value_and_gradients(arrays, chunk_size=32, **KERNELS[name])
    # A sum of many logarithms of "nothing" has an error of its own size, and
    # the kernel makes one chunk of all 40 tokens.
    atol = 5e-5 if name == "chunked" else 2e-4
    assert_equal_trees(actual, expected, atol=atol, rtol=1e-5)
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name


@every_implementation
def test_bfloat16_products_keep_float32_states(name):
    """Rounding to 8 bits, of 64 terms: 2^-8 sqrt(64) of the largest value."""
    arrays = inputs(64, dtype="float32")
    low = {
        k: v.astype(jnp.bfloat16) if k in ("x", "g", "q") else v
        for k, v in arrays.items()
    }
    expected = value_and_gradients(arrays, implementation="chunked")
    gradients, out = value_and_gradients(low, **KERNELS[name])
    assert out[0].dtype == gradients["x"].dtype == jnp.bfloat16
    assert out[1].dtype == out[2].dtype == gradients["w"].dtype == jnp.float32
    pairs = zip(
        *map(jax.tree.leaves, ((gradients, out), expected)), strict=True
    )
    for a, e in pairs:
        tolerance = 2**-8 * np.sqrt(64) * float(jnp.abs(e).max())
        np.testing.assert_allclose(a.astype("float32"), e, atol=tolerance)


def test_split_equals_whole_in_float32():
    arrays = inputs(48, dtype="float32")
    scan = jax.jit(functools.partial(delta_scan, chunk_size=16))
    whole = scan(**arrays)
    state, outs = (arrays["w"], arrays["s"]), []
    for start, stop in ((0, 1), (1, 20), (20, 48)):
        piece = {
            name: arrays[name][..., start:stop, :] for name in ("x", "g", "q")
        }
        gates = {
            name: arrays[name][..., start:stop]
            for name in ("log_alpha", "beta", "log_mu")
        }
        w, s = state
        o, *state = scan(w=w, s=s, **piece, **gates)
        outs.append(o)
    np.testing.assert_allclose(jnp.concatenate(outs, -2), whole[0], atol=1e-5)
    np.testing.assert_allclose(state[0], whole[1], atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 40])
@pytest.mark.parametrize(
    "invert", [unit_lower_inverse, unit_lower_inverse_masked]
)
def test_inverse_and_its_gradient(x64, size, invert):
    rng = np.random.default_rng(size)
    lower = jnp.tril(jnp.asarray(rng.normal(size=(2, size, size))), -1)
    eye = jnp.eye(size)
    inverse = invert(lower)
    np.testing.assert_allclose(
        inverse @ (eye + lower), np.broadcast_to(eye, lower.shape), atol=1e-9
    )
    weight = jnp.asarray(rng.normal(size=lower.shape))
    plain = jax.grad(lambda m: jnp.vdot(weight, jnp.linalg.inv(eye + m)))
    ours = jax.grad(lambda m: jnp.vdot(weight, invert(m)))
    expected = jnp.tril(plain(lower), -1)
    np.testing.assert_allclose(
        ours(lower), expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max()
    )


def test_named_kernel_needs_its_platform():
    with pytest.raises(ValueError, match="interpret mode"):
        delta_scan(**inputs(16, dtype="float32"), implementation="pallas_tpu")


SHARDED = """
import jax, numpy as np
from tests.kernels.test_delta_memory import inputs, value_and_gradients
arrays = inputs(40, dtype="float32", lead=(4, 2))
options = {"implementation": "pallas_tpu", "interpret": True}
alone = value_and_gradients(arrays, **options)
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=auto)
with jax.set_mesh(mesh):
    rows = jax.device_put(arrays, jax.NamedSharding(mesh, jax.P("data")))
    shared = value_and_gradients(rows, **options)
assert shared[1][0].sharding.spec[:2] == ("data", "tensor"), shared[1][0]
for a, b in zip(*map(jax.tree.leaves, (alone, shared)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
"""


def test_kernel_on_a_mesh_is_the_kernel_on_one_device():
    run_on_devices(SHARDED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"read": "later"}, "read='later' must be one of"),
        ({"implementation": "cuda"}, "implementation='cuda' does not exist"),
        ({"log_mu": None}, "log_mu is needed"),
        ({"g": np.zeros((5, 3))}, r"g has shape \(5, 3\)"),
        ({"beta": np.zeros((7, 1, 21))}, "do not broadcast"),
        (
            {"implementation": "pallas_tpu", "chunk_size": 8, "read": "chunk"},
            "cannot run: a chunk of 8 tokens",
        ),
        (
            {
                "implementation": "pallas_tpu",
                "q": jnp.zeros((21, 4), "bfloat16"),
            },
            "cannot run: q has dtype bfloat16, x has float32",
        ),
    ],
)
def test_bad_input_names_the_field(change, message):
    arrays = inputs(21, dtype="float32") | change
    with pytest.raises(ValueError, match=message):
        delta_scan(**arrays)
