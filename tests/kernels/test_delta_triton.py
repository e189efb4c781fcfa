"""What is particular to the delta memory's Triton kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.delta_memory import triton
from pallas_kernels.delta_memory.triton_kernels import (
    unit_lower_inverse_by_columns,
)
from pallas_kernels.delta_memory.triton_parts import product, split
from tests.devices import run_on_devices
from tests.kernels.test_delta_memory import (
    SHARDED,
    assert_equal_trees,
    inputs,
    value_and_gradients,
)

TRITON = {"implementation": "pallas_triton", "interpret": True}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def widened(arrays, copies):
    """``d_in`` several times as wide, all of it different."""

    def wide(value, axis):
        parts = [jnp.roll(value, k, axis) * (1 - k / 9) for k in range(copies)]
        return jnp.concatenate(parts, axis)

    arrays = dict(arrays)
    for name, axis in (("x", -1), ("q", -1), ("w", -2), ("s", -2)):
        if arrays[name] is not None:
            arrays[name] = wide(arrays[name], axis)
    arrays["x"] /= jnp.linalg.norm(arrays["x"], axis=-1, keepdims=True)
    return arrays


@pytest.mark.parametrize(
    ("read", "momentum", "delta"),
    [
        ("after", True, True),
        ("after", False, True),
        ("before", True, False),
        ("chunk", False, True),
    ],
)
def test_several_chunks_between_saved_states(x64, read, momentum, delta):
    # Three chunks, the last of them not full, in two blocks of two.
    arrays = inputs(150, momentum=momentum, delta=delta, lead=())
    options = {"chunk_size": 64, "read": read}
    expected = value_and_gradients(
        arrays, **options, implementation="reference"
    )
    actual = value_and_gradients(arrays, **options, **TRITON)
    assert_equal_trees(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("momentum", [True, False])
def test_widths_that_are_no_power_of_two(x64, momentum):
    # 36 by 90: two blocks of columns of x; three, or two, of the states'.
    arrays = inputs(21, momentum=momentum, lead=(), memories=30)
    arrays = widened(arrays, 9)
    expected = value_and_gradients(arrays, implementation="reference")
    actual = value_and_gradients(arrays, **TRITON)
    assert_equal_trees(actual, expected, atol=1e-9, rtol=0)


def test_float32_keeps_its_digits(x64):
    """TF32 or two parts of bfloat16 would be wrong in the fourth or fifth."""
    arrays = widened(inputs(70, lead=(), memories=1, dtype="float32"), 4)
    actual = value_and_gradients(arrays, **TRITON)
    precise = jax.tree.map(lambda v: v.astype("float64"), arrays)
    expected = value_and_gradients(precise, implementation="reference")
    pairs = zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    for a, e in pairs:
        assert a.dtype == jnp.float32
        scale = np.abs(e).max()
        np.testing.assert_allclose(a, e, atol=3e-6 * scale, rtol=0)


def test_maps_over_rows():
    arrays = inputs(16, momentum=False, dtype="float32")
    actual, expected = (
        jax.vmap(functools.partial(value_and_gradients, **options))(arrays)
        for options in (TRITON, {"implementation": "chunked"})
    )
    assert_equal_trees(actual, expected, atol=2e-4)


def test_on_a_mesh_is_the_kernel_on_one_device():
    program = SHARDED
    for old, new in (
        ("pallas_tpu", "pallas_triton"),
        ("inputs(40,", "inputs(16, momentum=False,"),
    ):
        assert old in program
        program = program.replace(old, new)
    run_on_devices(program)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_inverse_by_columns(x64, size):
    rng = np.random.default_rng(size)
    lower = jnp.tril(jnp.asarray(rng.normal(size=(size, size)) / 4), -1)
    inverse = unit_lower_inverse_by_columns(lower, lower.dtype)
    eye = jnp.eye(size)
    np.testing.assert_allclose(inverse @ (eye + lower), eye, atol=1e-10)
    # One key over and over: where a Neumann series loses all digits.
    ones = jnp.tril(jnp.ones((size, size), "float32"), -1)
    inverse = unit_lower_inverse_by_columns(ones, jnp.float32)
    np.testing.assert_allclose(inverse, eye - jnp.eye(size, k=-1), atol=1e-6)


def test_parts_add_up_and_multiply_as_what_they_are_of():
    rng = np.random.default_rng(0)
    value = jnp.asarray(rng.normal(size=(32, 32)).astype("float32"))
    parts = split(value, jnp.float32)
    assert {part.dtype.name for part in parts} == {"bfloat16"}
    whole = sum(part.astype("float32") for part in reversed(parts))
    np.testing.assert_array_equal(whole, value)
    (low,) = split(value, jnp.bfloat16)
    np.testing.assert_array_equal(low, value.astype(jnp.bfloat16))
    exact = np.asarray(value, "float64") @ np.asarray(value, "float64")
    np.testing.assert_allclose(product(parts, parts), exact, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "block", "read", "message"),
    [
        ({}, 48, "chunk", "a chunk of 48 tokens is none of 16, 32, 64"),
        ({}, 96, "before", "a block of 96 tokens is no multiple"),
        ({"x": ((2, 1, 40, 256), "float32")}, 64, "after", "256 wide, at most"),
        (
            {"w": ((2, 3, 4, 3), "bfloat16")},
            64,
            "after",
            "w has dtype bfloat16",
        ),
        ({"x": ((2, 1, 40, 4), "float16")}, 64, "after", "x has dtype float16"),
        ({"g": ((2, 3, 40, 3), "bfloat16")}, 64, "after", "g has dtype bfloat"),
        ({}, 128, "before", None),
    ],
)
def test_says_why_it_cannot_run(change, block, read, message):
    arrays = inputs(40, dtype="float32")
    arrays |= {
        name: jax.ShapeDtypeStruct(*value) for name, value in change.items()
    }
    reason = triton.why_not(arrays, block, read)
    assert (reason is None) if message is None else (message in reason)
