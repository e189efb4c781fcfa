"""The scan of a deep memory: every implementation = token by token.

The memory is that of self-modifying Titans with MLPs; the reference here is
written from the equations, matrix by matrix and token by token, and shares
nothing with the chunk step.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import (
    interpret_pallas_call as interpreter,
)
from jax.experimental.pallas import tpu as pltpu

from nl_jax.layers import SelfModifyingTitans, TitansConfig
from nl_jax.memory import Gates, associative, associative_memory
from nl_jax.memory.state import MemoryState
from pallas_kernels.mlp_memory import implementation_for, memory_scan, tpu
from pallas_kernels.mlp_memory.step import primitives, trace
from tests.devices import run_on_devices
from tests.kernels import operations

CHUNK, WIDTH, HIDDEN = 16, 4, 6
KERNELS = {
    "chunked": {"implementation": "chunked"},
    "pallas_tpu": {"implementation": "pallas_tpu", "interpret": True},
    "pallas_triton": {"implementation": "pallas_triton", "interpret": True},
}
CASES = [
    {"objective": objective, "rule": rule, "momentum": momentum, "read": read}
    for objective, rule, momentum, read in (  # Any two values meet.
        ("l2", "dgd", True, "before"),
        ("dot_product", "gd", False, "before"),
        ("l2", "gd", False, "after"),
        ("dot_product", "dgd", True, "after"),
        ("l2", "gd", True, "chunk"),
        ("dot_product", "dgd", False, "chunk"),
    )
]
DEFAULT = CASES[0]
SMALLEST = CASES[1]
costly = pytest.mark.parametrize(
    "case",
    [SMALLEST, pytest.param(DEFAULT, marks=pytest.mark.slow)],
    ids=["smallest", "default"],
)
OFFERED = {"tpu": "pallas_tpu", "cuda": "pallas_triton", "cpu": "chunked"}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def chunk_step(**case):
    """That of the memory that answers, as ``memory_scan`` takes it."""
    config = TitansConfig(architecture="mlp", **case)

    def step(state, tokens, gates, valid, inverse):
        memory = MemoryState(state[:2], state[:2], state[2:] or None)
        q, k, v = tokens
        o, after = config.memory.step(
            memory,
            k,
            v,
            q,
            Gates(*gates),
            valid=valid,
            inverse=inverse,
        )
        return o, (*after.weights, *(after.momentum or ()))

    return step


def inputs(length, *, momentum=True, dtype="float64", lead=(2,), seed=0):
    """Random state, tokens ``q, k, v`` and gates ``eta, alpha, mu``."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=(*lead, *shape))  # noqa: E731
    q, k, v = (normal(length, WIDTH) for _ in range(3))
    # At length 1 the step has a kink, which rounding would fall off.
    q, k = (0.9 * x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    gate = lambda: rng.uniform(0.5, 1.0, (*lead, length))  # noqa: E731
    state = [normal(WIDTH, HIDDEN) / 2, normal(HIDDEN, WIDTH) / 2]
    if momentum:
        state += [0.1 * normal(*w.shape[-2:]) for w in state]
    gates = [gate(), np.log(gate())] + ([np.log(gate())] if momentum else [])
    arrays = {"state": state, "tokens": [q, k, v], "gates": gates}
    return {
        name: tuple(jnp.asarray(value, dtype) for value in values)
        for name, values in arrays.items()
    }


def token_by_token(arrays, case):
    """The recurrence of one head, ``[T, d]``, as the equations read."""
    layers = 2
    (q, k, v), gates = arrays["tokens"], arrays["gates"]
    eta, alpha = gates[0], jnp.exp(gates[1])
    mu = jnp.exp(gates[2]) if case["momentum"] else jnp.zeros_like(eta)
    state = arrays["state"]
    weights = state[:layers]
    momenta = state[layers:] or tuple(jnp.zeros_like(w) for w in weights)

    def length(x, least=1e-12):
        return jnp.sqrt((x * x).sum() + least)

    def value(w1, w2, x):
        return x + jax.nn.gelu(x @ w1) @ w2

    def token(carry, inputs):
        (weights, momenta, start), (t, q, k, v, eta, alpha, mu) = carry, inputs
        start = jax.tree.map(
            lambda new, old: jnp.where(t % CHUNK == 0, new, old), weights, start
        )
        w1, w2 = start
        target = value(w1, w2, v)
        target = target / jnp.sqrt((target**2).mean() + 1e-6)
        hidden, slope = jax.jvp(
            jax.nn.gelu, (k @ w1,), (jnp.ones(HIDDEN, k.dtype),)
        )
        surprise = -target
        if case["objective"] == "l2":
            surprise = value(w1, w2, k) - target
        surprises = (w2 @ surprise * slope, surprise)
        after, moved = [], []
        for w, s, x, delta in zip(
            weights, momenta, (k, hidden), surprises, strict=True
        ):
            unit = x / length(x)
            step = eta / layers * (1 - mu) / jnp.maximum(length(x), 1.0)
            step = step * jnp.minimum(1.0, length(surprise) / length(delta))
            s = mu * s - step * jnp.outer(unit, delta)
            new = alpha * w + s
            if case["rule"] == "dgd":
                new = new - eta / layers * jnp.outer(unit, unit @ w)
            after.append(new)
            moved.append(s)
        met = {"before": weights, "after": after, "chunk": start}
        carry = tuple(after), tuple(moved), start
        return carry, value(*met[case["read"]], q)

    at = jnp.arange(q.shape[0])
    (weights, momenta, _), o = jax.lax.scan(
        token, (weights, momenta, weights), (at, q, k, v, eta, alpha, mu)
    )
    return o, weights + (momenta if case["momentum"] else ())


def weighted(run, arrays):
    """One number that depends on all outputs, and the outputs."""
    out = run(arrays)
    terms = []
    for value in jax.tree.leaves(out):
        weights = jnp.cos(jnp.arange(value.size).astype(float))
        terms.append(jnp.vdot(weights, value.ravel().astype(weights.dtype)))
    return sum(terms), out


@functools.cache
def program(case, **options):
    """``arrays -> (gradients, outputs)``; ``None``: token by token."""
    case = dict(case)
    if options:
        step = chunk_step(**case)

        def run(arrays):
            return memory_scan(step, **arrays, chunk_size=CHUNK, **options)
    else:
        run = jax.vmap(functools.partial(token_by_token, case=case))
    return jax.jit(jax.grad(functools.partial(weighted, run), has_aux=True))


def both(arrays, case, **options):
    """Token by token, and with an implementation's options."""
    frozen = tuple(case.items())
    return program(frozen)(arrays), program(frozen, **options)(arrays)


def assert_close(actual, expected, **tolerance):
    pairs = zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    for a, e in pairs:
        np.testing.assert_allclose(a, e, **tolerance)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, case.values()))
)
def test_equals_token_by_token(x64, case, name):
    arrays = inputs(21, momentum=case["momentum"])  # 16 + 5.
    expected, actual = both(arrays, case, **KERNELS[name])
    assert_close(actual, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("length", [1, CHUNK])
def test_one_token_and_one_chunk(x64, length, name):
    expected, actual = both(inputs(length), DEFAULT, **KERNELS[name])
    assert_close(actual, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("extreme", ["forget", "keep", "no_write", "repeat"])
def test_extreme_gates_stay_exact_and_finite(x64, extreme, name):
    arrays = inputs(21)
    (q, k, v), (eta, log_alpha, log_mu) = arrays["tokens"], arrays["gates"]
    if extreme == "forget":
        log_alpha = log_alpha.at[..., ::3].set(-80.0)
        log_alpha = log_alpha.at[..., 4].set(-jnp.inf)
    elif extreme == "keep":
        log_alpha = jnp.zeros_like(log_alpha)
    elif extreme == "no_write":
        eta = jnp.zeros_like(eta)
    else:
        k, eta = jnp.broadcast_to(k[:, :1], k.shape), jnp.ones_like(eta)
    arrays |= {"tokens": (q, k, v), "gates": (eta, log_alpha, log_mu)}
    expected, actual = both(arrays, DEFAULT, **KERNELS[name])
    # A retention under the dtype's resolution acts as that, see chunk_step.
    assert_close(actual[1], expected[1], atol=1e-9, rtol=0)
    for value in jax.tree.leaves(actual[0]):
        assert np.isfinite(value).all()


@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_tokens_keep_a_float32_state(name):
    """Rounding to 8 bits, of 64 terms: 2^-8 sqrt(64) of the largest value."""
    arrays = inputs(21, dtype="float32")
    frozen = tuple(DEFAULT.items())
    expected = program(frozen)(arrays)
    arrays["tokens"] = tuple(v.astype(jnp.bfloat16) for v in arrays["tokens"])
    gradients, out = program(frozen, **KERNELS[name])(arrays)
    assert out[0].dtype == gradients["tokens"][0].dtype == jnp.bfloat16
    assert all(w.dtype == jnp.float32 for w in out[1])
    pairs = zip(
        *map(jax.tree.leaves, ((gradients, out), expected)), strict=True
    )
    for a, e in pairs:
        tolerance = 2**-8 * np.sqrt(64) * float(jnp.abs(e).max())
        np.testing.assert_allclose(a.astype("float32"), e, atol=tolerance)


def test_kernels_map_over_rows():
    arrays = inputs(21, dtype="float32", lead=(2, 1))
    plain, *kernels = (
        jax.vmap(program(tuple(DEFAULT.items()), **options))(arrays)
        for options in KERNELS.values()
    )
    for found in kernels:
        assert_close(found, plain, atol=2e-4)


def test_kernel_reads_and_writes_nothing_astray():
    """NaN in all that was not written, out of bounds raises, no races."""
    params = pltpu.InterpretParams(
        detect_races=True,
        uninitialized_memory="nan",
        out_of_bounds_reads="raise",
    )
    arrays = inputs(40, dtype="float32")
    frozen = tuple(DEFAULT.items())
    expected = program(frozen, **KERNELS["chunked"])(arrays)
    options = {"implementation": "pallas_tpu", "interpret": params}
    actual = program(frozen, **options)(arrays)
    assert_close(actual, expected, atol=2e-4)
    assert not interpreter.races.races_found


@costly
def test_second_derivatives(case):
    momentum = case["momentum"]
    arrays = inputs(21, momentum=momentum, dtype="float32", lead=(1,))

    @functools.partial(jax.jit, static_argnames="name")
    @jax.grad
    def second(arrays, name):
        slope, _ = program(tuple(case.items()), **KERNELS[name])(arrays)
        return sum(jnp.square(v).sum() for v in jax.tree.leaves(slope))

    expected, actual = (second(arrays, n) for n in ("chunked", "pallas_tpu"))
    pairs = zip(*map(jax.tree.leaves, (actual, expected)), strict=True)
    for a, e in pairs:
        scale = float(jnp.abs(e).max())
        np.testing.assert_allclose(a, e, atol=1e-4 * scale)


@pytest.mark.parametrize("name", [None, "pallas_tpu", "pallas_triton"])
def test_second_derivatives_inside_a_scan(name):
    """As when levels learn in context, by blocks that a scan runs.

    Its weights are sums of earlier tokens: ``o_t = x_t sum_s x_s' x_s``.
    """
    x = np.random.default_rng(0).normal(size=(2, 1, 128, 2)) / 8
    gates = (jnp.ones((1, 128)),)
    options = KERNELS.get(name, {"implementation": None})

    def step(state, tokens, gates, valid, inverse):
        del valid, inverse
        (w,), (x,), (eta,) = state, tokens, gates
        before = jnp.tril(x @ x.mT, -1)
        return x @ w + before @ x, (w + x.mT @ (eta[..., None] * x),)

    def scanned(x):
        state = (jnp.zeros((1, 2, 2)),)
        return memory_scan(step, state, (x,), gates, chunk_size=32, **options)

    def written_out(x):
        o = jnp.tril(x @ x.mT, -1) @ x
        return o, (x.mT @ x,)

    def second(run, x):
        def loss(x):
            def layer(total, x):
                o, (w,) = run(x)
                return total + (o**2).sum() + (w**3).sum(), None

            return jax.lax.scan(layer, 0.0, x)[0]

        def steepness(x):
            return jnp.square(jax.grad(loss)(x)).sum()

        return jax.jit(jax.grad(steepness))(x)

    x = jnp.asarray(x, jnp.float32)
    expected = second(written_out, x)
    atol = 1e-4 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(second(scanned, x), expected, atol=atol)


def test_what_the_platform_offers_is_the_same():
    arrays = inputs(130, dtype="float32", lead=(1, 2))
    for platform, name in OFFERED.items():
        offered = implementation_for(platform, **arrays, chunk_size=CHUNK)
        assert offered == name
    frozen = tuple(DEFAULT.items())
    expected = program(frozen, **KERNELS["chunked"])(arrays)
    actual = program(frozen, implementation=None)(arrays)
    assert_close(actual, expected, atol=1e-4, rtol=1e-4)


SHARDED = """
import json, sys
import jax, numpy as np
from tests.kernels.test_mlp_memory import KERNELS, inputs, program
case = json.loads(sys.argv[1])
arrays = inputs(21, momentum=case["momentum"], dtype="float32", lead=(4, 2))
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=auto)
for name in ("pallas_tpu", "pallas_triton"):
    run = program(tuple(case.items()), **KERNELS[name])
    alone = run(arrays)
    with jax.set_mesh(mesh):
        rows = jax.device_put(arrays, jax.NamedSharding(mesh, jax.P("data")))
        shared = run(rows)
    assert shared[1][0].sharding.spec[:2] == ("data", "tensor"), shared[1][0]
    for a, b in zip(*map(jax.tree.leaves, (alone, shared)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
"""


@costly
def test_kernel_on_a_mesh_is_the_kernel_on_one_device(case):
    run_on_devices(SHARDED, json.dumps(case))


@costly
def test_a_layer_that_runs_the_kernel_is_the_layer(monkeypatch, case):
    """Whole chunks and what is left; its state is the plain one's."""
    config = TitansConfig(architecture="mlp", expansion=2, **case)
    x = jax.random.normal(jax.random.key(0), (2, 37, 8))
    plain = SelfModifyingTitans(config, d_model=8, n_heads=2)
    variables = jax.jit(plain.init)(jax.random.key(1), x[:, :1])

    def loss(variables, layer):
        y, state = layer.apply(variables, x)
        return jnp.square(y).sum(), (y, state)

    grad = jax.grad(loss, has_aux=True)
    expected = jax.jit(functools.partial(grad, layer=plain))(variables)
    monkeypatch.setattr(
        associative,
        "memory_scan",
        functools.partial(memory_scan, interpret=True),
    )
    kernel = SelfModifyingTitans(
        dataclasses.replace(config, implementation="pallas_tpu"),
        d_model=8,
        n_heads=2,
    )
    actual = jax.jit(functools.partial(grad, layer=kernel))(variables)
    assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "chunk_size=0 must be an integer >= 1"),
        ({"implementation": "cuda"}, "implementation='cuda' does not exist"),
        ({"gates": ()}, "state, tokens and gates need an array each"),
        (
            {"gates": (np.zeros((2, 7)),)},
            r"gates\[0\] has shape \(2, 7\), must begin with \(2, 21\)",
        ),
        (
            {"state": (np.zeros((3, 4, 4)),)},
            r"state\[0\] has shape \(3, 4, 4\), must begin with \(2,\)",
        ),
        (
            {"implementation": "pallas_tpu", "chunk_size": 8},
            "cannot run: a chunk of 8 tokens is no multiple of 16",
        ),
    ],
)
def test_bad_input_names_the_field(change, message):
    arrays = inputs(21, dtype="float32") | {"chunk_size": CHUNK} | change
    step = chunk_step()
    with pytest.raises(ValueError, match=message):
        memory_scan(step, **arrays)


def test_a_step_that_holds_arrays_has_no_kernel():
    """And runs all the same."""
    scale = jnp.linspace(1.0, 2.0, WIDTH)

    def step(state, tokens, gates, valid, inverse):
        return scale * tokens[0], state

    arrays = inputs(128, dtype="float32")
    o, _ = memory_scan(step, **arrays, chunk_size=CHUNK)
    np.testing.assert_allclose(o, scale * arrays["tokens"][0])
    with pytest.raises(ValueError, match="the step holds arrays of its own"):
        memory_scan(step, **arrays, chunk_size=CHUNK, **KERNELS["pallas_tpu"])


@pytest.mark.parametrize(
    ("activation", "missing"),
    [(jnp.cosh, "cosh"), (lambda x: jnp.sort(x, -1), "sort")],
)
def test_operations_that_tpu_kernels_lack(activation, missing):
    """Other platforms, and other kernels, run such a memory."""

    def step(state, tokens, gates, valid, inverse):
        return jax.jit(activation)(tokens[0] @ state[0][:, :, :2]), state

    arrays = inputs(128, dtype="float32")
    with pytest.raises(ValueError, match=f"kernels do not have {missing}"):
        memory_scan(step, **arrays, chunk_size=CHUNK, **KERNELS["pallas_tpu"])

    def scan(arrays):
        return memory_scan(step, **arrays, chunk_size=CHUNK)

    lowered = jax.jit(scan).trace(arrays).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" not in lowered.as_text()


def test_operations_that_tpu_kernels_have():
    """What ``test_tpu_compile`` compiles is not on the list."""
    program = trace(operations.step, operations.ARRAYS, operations.CHUNK)
    found = primitives(program)
    assert {"erf", "argmax", "pow", "tanh", "jit", "add_any"} <= found
    assert not found & tpu.MISSING


def test_any_deep_memory_learns_from_long_sequences():
    """Tracing its kernels must not stop other platforms."""
    memory = associative_memory("linear_norm", "l2", "dgd", chunk_size=CHUNK)
    state = memory.init(jax.random.key(0), WIDTH, WIDTH, lead=(2,))
    arrays = inputs(128, dtype="float32")
    (q, k, v), (eta, log_alpha, _) = arrays["tokens"], arrays["gates"]

    def loss(v, **options):
        gates = Gates(eta / 8, log_alpha)
        return memory.scan(state, k, v, q, gates, **options)[0].sum()

    slope = jax.jit(jax.grad(loss), static_argnames="aligned")
    np.testing.assert_allclose(
        slope(v, aligned=True), slope(v), atol=1e-4, rtol=1e-4
    )


def test_named_kernel_needs_its_platform():
    step = chunk_step()
    with pytest.raises(ValueError, match="interpret mode"):
        memory_scan(
            step,
            **inputs(16, dtype="float32"),
            chunk_size=CHUNK,
            implementation="pallas_tpu",
        )
