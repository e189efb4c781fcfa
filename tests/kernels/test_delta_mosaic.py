"""What only the delta memory's Mosaic GPU kernels have; interpreted.

The cases that all implementations share are in ``test_delta_memory``.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.delta_memory import mosaic_gpu
from tests.kernels.test_delta_memory import (
    equal_token_by_token,
    inputs,
    interpreted,
    value_and_gradients,
)


def wide(width=70):
    """Two programs a row, two pieces of a state; a block and a token."""
    rng = np.random.default_rng(1)
    arrays = inputs(129, dtype="float32", lead=(1,), memories=1)
    for name in ("log_alpha", "log_mu"):
        # So slow that first states still matter behind a block.
        arrays[name] /= 16
    for name in "wsxgq":
        shape = list(arrays[name].shape)
        shape[-1] = width
        shape[-2] = width if name in "ws" else shape[-2]
        value = rng.normal(size=shape) / np.sqrt(width)
        arrays[name] = jnp.asarray(value, "float32")
    return arrays


@interpreted
@pytest.mark.parametrize("momentum", [True, False])
def test_states_wider_than_a_program(momentum):
    arrays = wide()
    if not momentum:
        arrays |= {"s": None, "log_mu": None}
    with jax.enable_x64(True):
        equal_token_by_token(arrays, "pallas_mosaic_gpu", read="after")


def interpreter():
    """What has found races; not there before JAX 0.11."""
    return importlib.import_module(
        "jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call"
    )


@interpreted
def test_bfloat16_keeps_its_digits_and_nothing_races():
    """Rounding to 8 bits, of 64 terms: 2^-8 sqrt(64) of the largest value."""
    arrays = wide()
    for name in "xgq":
        arrays[name] = arrays[name].astype("bfloat16")
    actual = jax.block_until_ready(
        value_and_gradients(
            arrays,
            implementation="pallas_mosaic_gpu",
            interpret=plgpu.InterpretGPUParams(detect_races=True),
        )
    )
    assert not interpreter().get_races().races_found
    exact = jax.tree.map(lambda v: v.astype("float32"), arrays)
    expected = value_and_gradients(exact, implementation="reference")
    pairs = zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    for a, e in pairs:
        tolerance = 2**-8 * np.sqrt(64) * float(jnp.abs(e).max())
        np.testing.assert_allclose(a.astype("float32"), e, atol=tolerance)


def shapes(**changes):
    x = jax.ShapeDtypeStruct((1, 128, 64), jnp.bfloat16)
    gate = jax.ShapeDtypeStruct((1, 128), jnp.float32)
    w = jax.ShapeDtypeStruct((1, 64, 64), jnp.float32)
    arrays = {"w": w, "s": None, "x": x, "g": x, "q": x}
    arrays |= {"log_alpha": gate, "beta": gate, "log_mu": None}
    return arrays | changes


@pytest.fixture
def on_gpu(monkeypatch):
    """Sets the compute capability that is compiled for; this JAX is new."""

    def choose(capability):
        monkeypatch.setattr(
            mosaic_gpu.device, "gpu_capability", lambda: capability
        )

    monkeypatch.setattr(plgpu, "InterpretGPUParams", object, raising=False)
    return choose


@pytest.mark.parametrize("capability", [None, (8, 9), (10, 0)])
def test_needs_hopper(on_gpu, capability):
    on_gpu(capability)
    reason = mosaic_gpu.why_not(shapes(), 128, "before")
    assert f"compute capability is {capability}" in reason


@pytest.mark.parametrize(
    ("block", "read", "change", "reason"),
    [
        (128, "before", {}, None),
        (64, "chunk", {}, None),
        (32, "before", {}, "a block of 32 tokens is no multiple of 64"),
        (128, "chunk", {}, "a chunk of 128 tokens is not 64"),
        (128, "after", {"x": "float32"}, "x has dtype float32"),
        (128, "after", {"w": "bfloat16"}, "w has dtype bfloat16"),
        (128, "after", {"g": "float32"}, "g has dtype float32"),
    ],
)
def test_says_why_it_cannot(on_gpu, block, read, change, reason):
    on_gpu((9, 0))
    arrays = shapes()
    for name, dtype in change.items():
        arrays[name] = jax.ShapeDtypeStruct(arrays[name].shape, dtype)
    found = mosaic_gpu.why_not(arrays, block, read)
    assert found is None if reason is None else reason in found


def test_says_that_jax_is_too_old(monkeypatch):
    monkeypatch.delattr(plgpu, "InterpretGPUParams", raising=False)
    reason = mosaic_gpu.why_not(shapes(), 128, "before")
    assert "is too old, needs 0.11" in reason
