"""The delta memory's Mosaic GPU kernels, interpreted: forward and gradients."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.delta_memory import mosaic_gpu
from pallas_kernels.delta_memory.reference import delta_scan_reference
from tests.kernels.test_delta_memory import assert_equal_trees, inputs

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"),
    reason="JAX before 0.11 cannot interpret Mosaic GPU kernels",
)
BLOCKS = {"before": 128, "after": 64, "chunk": 64}


@functools.partial(jax.jit, static_argnames=("read", "interpret"))
def kernels(arrays, cotangents, read, interpret):
    """Outputs, states at block starts and gradients."""
    options = {"block": BLOCKS[read], "read": read, "interpret": interpret}
    out, starts = mosaic_gpu.forward(arrays, save=True, **options)
    gradients = mosaic_gpu.backward(arrays, starts, cotangents, **options)
    return out, starts, gradients


@functools.partial(jax.jit, static_argnames="read")
def reference(arrays, cotangents, read):
    """The same, token by token in float32."""
    arrays = jax.tree.map(lambda v: v.astype("float32"), arrays)
    cotangents = jax.tree.map(lambda v: v.astype("float32"), cotangents)

    def run(arrays):
        return delta_scan_reference(
            **arrays, chunk_size=BLOCKS[read], read=read
        )

    out, pull = jax.vjp(run, arrays)
    second = {
        name: value[..., : BLOCKS[read], :] if name in "xgq" else value
        for name, value in arrays.items()
    }
    for name in ("log_alpha", "beta", "log_mu"):
        if second[name] is not None:
            second[name] = second[name][..., : BLOCKS[read]]
    states = [arrays["w"], arrays["s"]], run(second)[1:]
    starts = jax.tree.map(lambda a, b: jnp.stack([a, b]), *map(list, states))
    return out, tuple(starts), pull(cotangents)[0]


def cotangents_for(arrays):
    """Something else for every output."""
    o = jax.eval_shape(lambda g: g, arrays["g"])
    like = (o, arrays["w"], arrays["s"])
    return jax.tree.map(
        lambda v: jnp.cos(jnp.arange(v.size)).reshape(v.shape).astype(v.dtype),
        like,
    )


def arrays_for(read, momentum, delta, width=4):
    """One block and a token, so that two blocks start and one is padded."""
    arrays = inputs(
        BLOCKS[read] + 1,
        momentum=momentum,
        delta=delta,
        dtype="float32",
        lead=(1,),
        memories=1,
    )
    for name in ("log_alpha", "log_mu"):
        # So slow that first states still matter behind a block.
        if arrays[name] is not None:
            arrays[name] = arrays[name] / 16
    rng = np.random.default_rng(1)
    for name in "wsxgq":
        if arrays[name] is not None:
            shape = list(arrays[name].shape)
            shape[-1] = width
            shape[-2] = width if name in "ws" else shape[-2]
            value = rng.normal(size=shape) / np.sqrt(width)
            arrays[name] = jnp.asarray(value, "float32")
    return arrays


@interpreted
@pytest.mark.parametrize(
    ("read", "momentum", "delta", "width"),
    [
        ("before", True, True, 4),
        ("after", True, False, 4),
        ("after", False, True, 70),
        ("chunk", False, False, 4),
    ],
)
def test_equals_token_by_token(read, momentum, delta, width):
    """More than 64 wide, there are two programs and two pieces of a state."""
    arrays = arrays_for(read, momentum, delta, width)
    cotangents = cotangents_for(arrays)
    actual = kernels(arrays, cotangents, read, True)
    expected = reference(arrays, cotangents, read)
    assert_equal_trees(actual, expected, atol=1e-4, rtol=1e-5)


def interpreter():
    """What has found races; not there before JAX 0.11."""
    return importlib.import_module(
        "jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call"
    )


@interpreted
def test_bfloat16_keeps_its_digits_and_nothing_races():
    """Rounding to 8 bits, of 64 terms: 2^-8 sqrt(64) of the largest value."""
    arrays = arrays_for("before", True, True, 70)
    for name in "xgq":
        arrays[name] = arrays[name].astype("bfloat16")
    cotangents = cotangents_for(arrays)
    params = plgpu.InterpretGPUParams(detect_races=True)
    actual = jax.block_until_ready(
        kernels(arrays, cotangents, "before", params)
    )
    assert not interpreter().get_races().races_found
    expected = reference(arrays, cotangents, "before")
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
