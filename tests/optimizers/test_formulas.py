"""Three steps of each optimizer against its formula, in NumPy or in optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from nl_jax import optimizers as nl
from nl_jax.memory import Objective
from pallas_kernels.newton_schulz import COEFFICIENTS, newton_schulz
from tests.optimizers.formulas import (
    assert_same,
    gradients,
    loop,
    orthogonal,
    run,
    run_muon,
)


def test_momentum_is_optax_trace():
    grads = gradients()
    ours = run(nl.preconditioned_momentum(0.1), grads)
    assert_same(ours, run(optax.sgd(0.1, momentum=0.9), grads))


def test_preconditioned_momentum():
    grads = gradients()

    def precondition(x):  # Of rows: half of each, and a bit of the first.
        size = x.shape[-2]
        return 0.5 * jnp.eye(size) + 0.1 * jnp.eye(1, size).T

    def step(m, g):
        p = 0.5 * np.eye(len(g)) + 0.1 * np.eye(1, len(g)).T
        return 0.8 * m + p @ g

    ours = run(nl.scale_by_memory(value=precondition, retention=0.8), grads)
    assert_same(ours, loop(step, grads))


@pytest.mark.parametrize("rho", [0.3, 1.0])
def test_delta_momentum(rho):
    grads = gradients(scale=0.3)

    def step(m, g):
        return m @ (0.9 * np.eye(g.shape[1]) - rho * g.T @ g) + g

    tx = nl.scale_by_delta_momentum(rho, normalize=False)
    assert_same(run(tx, grads), loop(step, grads))
    # The same as an objective whose gradient is only known by autodiff.
    objective = Objective("delta", nl.delta_objective(rho).loss)
    assert_same(
        run(nl.scale_by_memory(objective=objective), grads), loop(step, grads)
    )
    if rho == 1.0:
        assert_same(
            run(nl.scale_by_memory(objective="l2"), grads), loop(step, grads)
        )


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float64", 3.0), ("float16", 3e-5), ("float32", 1e30)]
)
def test_delta_momentum_by_default(dtype, scale):
    grads = gradients(scale=scale)

    def step(m, g):
        size = max(1, np.sum(g * g))
        return m @ (0.9 * np.eye(g.shape[1]) - 0.1 * g.T @ g / size) + g

    tolerance = 4 * float(jnp.finfo(dtype).eps)
    ours = run(nl.scale_by_delta_momentum(), grads, dtype)
    expected = loop(step, grads)
    assert_same(ours, expected, tolerance * 4, tolerance * scale)


def test_feature_momentum():
    grads = gradients()
    tx = nl.feature_momentum(1.0, feature_map=jnp.tanh, retention=0.7)
    expected = loop(lambda m, g: 0.7 * m - np.tanh(g), grads)
    assert_same(run(tx, grads), expected)


def test_a_slow_memory_writes_when_due_and_speaks_always():
    grads = gradients(5)
    ours = run(nl.scale_by_memory(period=2, retention=0.5), grads)
    zero = {n: 0 * g for n, g in grads[0].items()}
    first = {n: grads[0][n] + grads[1][n] for n in zero}
    second = {n: 0.5 * first[n] + grads[2][n] + grads[3][n] for n in zero}
    assert_same(ours, [zero, first, first, second, second])


def test_any_optax_transformation_is_an_inner_rule():
    grads = gradients()
    ours = run(nl.scale_by_memory(inner=optax.adam(0.1), retention=1.0), grads)
    # Gradient of the dot product at -g: Adam on -g, summed.
    inner = run(optax.adam(0.1), [{n: -g[n] for n in g} for g in grads])
    total = np.cumsum([step["w"] for step in inner], 0)
    np.testing.assert_allclose([o["w"] for o in ours], total, rtol=1e-6)


def test_orthogonalised_momentum_is_muon():
    grads = gradients(shapes={"w": (4, 3), "v": (2, 5)})
    ours = run(nl.nonlinear_output(1.0, retention=0.95), grads)
    muon = run_muon(grads)
    muon = [{n: -u for n, u in out.items()} for out in muon]
    assert_same(ours, muon, rtol=1e-6)


@pytest.mark.parametrize("name", ["cubic", "quintic"])
def test_newton_schulz_is_an_inner_problem(name):
    """Gradient descent on a potential; each potential is differentiated."""
    a, b, c = COEFFICIENTS[name]
    zeta = 0.25 if name == "cubic" else 1.0
    grads = gradients(shapes={"w": (4, 3), "v": (2, 5)})
    for steps in (5, 7):
        ours = run(
            nl.scale_by_newton_schulz_memory(zeta, steps, potential=name), grads
        )
        same = run(
            nl.scale_by_nonlinear_output(
                lambda m, steps=steps: newton_schulz(
                    m, steps=steps, coefficients=name, eps=0.0
                )
            ),
            grads,
        )
        assert_same(ours, same, rtol=1e-9)

    def potential(o, m, attachment):
        gram = o.T @ o
        cubic = 0.5 * jnp.sum((gram - jnp.eye(len(gram))) ** 2)
        quintic = (
            (1 - a) / 2 * jnp.trace(gram)
            - b / 4 * jnp.trace(gram @ gram)
            - c / 6 * jnp.trace(gram @ gram @ gram)
        )
        phi = cubic if name == "cubic" else quintic
        return phi + attachment / 2 * jnp.sum((o - m) ** 2)

    with jax.enable_x64(True):
        m = o = jnp.asarray(grads[0]["w"] / np.linalg.norm(grads[0]["w"]))
        for _ in range(3):
            o = o - 0.1 * jax.grad(potential)(o, m, 0.5)
    tx = nl.scale_by_newton_schulz_memory(
        0.1, 3, potential=name, attachment=0.5
    )
    np.testing.assert_allclose(run(tx, grads[:1])[0]["w"], o, rtol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("float64", 1.0), ("float16", 3e-5), ("float32", 1e30)]
)
@pytest.mark.parametrize("objective", ["dot_product", "l2"])
def test_deep_momentum_of_one_layer(objective, dtype, scale):
    """m(u) = u + u W, W <- a W - rate u^T d / |u^T u|; u at unit scale."""
    grads = gradients(shapes={"w": (4, 3)}, scale=scale)
    tx = nl.scale_by_deep_momentum("residual", objective, gain=5.0)
    w, expected = np.zeros((3, 3)), []
    for g in grads:
        size = np.sqrt(np.mean(g["w"] ** 2))
        u = g["w"] / size
        d = -5 * u if objective == "dot_product" else u + u @ w - 5 * u
        w = 0.99 * w - 0.1 * u.T @ d / np.linalg.norm(u.T @ u)
        expected.append({"w": size * (u + u @ w)})
    tolerance = 1e-9 if dtype == "float64" else 9 * jnp.finfo(dtype).eps
    assert_same(run(tx, grads, dtype), expected, tolerance, scale * tolerance)


def gelu(x):
    """As JAX approximates it, and its derivative."""
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    slope = 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + slope


def test_deep_momentum_of_equation_50():
    """m <- a m - rate dL(m; g, 1), W <- W + m(g), with nothing divided."""
    grads = gradients(shapes={"w": (4, 3)}, scale=2.0)
    tx = nl.deep_momentum(
        -1.0,
        inner=optax.sgd(0.05),
        retention=0.9,
        value=jnp.ones_like,
        normalize=False,
    )
    with jax.enable_x64(True):
        start = tx.init(jax.tree.map(jnp.asarray, grads[0]))[0].memory
        first, last = ({"w": np.asarray(w["w"][0])} for w in start)
    expected = []
    for u in (g["w"] for g in grads):
        h, slope = gelu(u @ first["w"])
        d = u + h @ last["w"] - 1
        inner = u.T @ (d @ last["w"].T * slope)
        last = {"w": 0.9 * last["w"] - 0.05 * h.T @ d}
        first = {"w": 0.9 * first["w"] - 0.05 * inner}
        expected.append({"w": u + gelu(u @ first["w"])[0] @ last["w"]})
    assert_same(run(tx, grads), expected)


@pytest.mark.parametrize("architecture", ["mlp", "residual"])
def test_deep_momentum_amplifies_what_recurs_within_its_gain(architecture):
    """Whatever the size of the matrix."""
    for shape in ((2, 3), (64, 48), (3, 256)):
        g = gradients(1, {"w": shape})[0]
        tx = nl.scale_by_deep_momentum(architecture, expansion=1)
        last = run(tx, [g] * 100)[-1]["w"]
        gain = np.sum(last * g["w"]) / np.sum(g["w"] ** 2)
        assert 2 < gain < 10, (shape, gain)


def test_dimension_numbers():
    """A stack of layers, and a convolution, as their matrices alone."""
    g = gradients(1, {"stack": (2, 4, 3), "conv": (3, 2, 5)})[0]
    numbers = {
        "stack": MuonDimensionNumbers(1, 2),
        "conv": MuonDimensionNumbers((0, 1), 2),
    }
    (out,) = run(
        nl.nonlinear_output(1.0, retention=0.0, dimension_numbers=numbers), [g]
    )
    for layer in range(2):
        np.testing.assert_allclose(
            -out["stack"][layer], orthogonal(g["stack"][layer]), rtol=1e-6
        )
    flat = orthogonal(g["conv"].reshape(6, 5))
    np.testing.assert_allclose(-out["conv"].reshape(6, 5), flat, rtol=1e-6)


def test_equal_shapes_share_a_call():
    x = [np.ones((2, 3, 4)), np.ones((1, 4, 3)), np.ones((1, 2, 2))]
    text = str(jax.make_jaxpr(lambda x: nl.orthogonalize(x, steps=1))(x))
    apart = jax.make_jaxpr(
        lambda x: nl.orthogonalize(x, steps=1, together=False)
    )
    assert text.count("dot_general") * 3 == 2 * str(apart(x)).count(
        "dot_general"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nl.scale_by_memory("tree"), "architecture='tree' must be"),
        (lambda: nl.scale_by_memory(objective="l3"), "objective='l3' must be"),
        (lambda: nl.scale_by_memory(period=0), "period=0 must be"),
        (lambda: nl.scale_by_m3(period=0), "period=0 must be"),
        (lambda: nl.scale_by_m3(accumulation="max"), "accumulation='max'"),
        (
            lambda: nl.scale_by_m3(second_moment="third"),
            "second_moment='third'",
        ),
        (lambda: nl.scale_by_adagrad_memory("full"), "form='full' must be"),
        (
            lambda: nl.deep_momentum(0.1, max_width=2).init(
                {"w": jnp.ones((2, 3))}
            ),
            r"\['w'\] has 3 columns, more than max_width=2",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
