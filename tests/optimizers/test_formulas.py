"""Three steps of each optimizer against its formula, in NumPy or in optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from nl_jax import optimizers as nl
from nl_jax.memory import Objective
from pallas_kernels.newton_schulz import COEFFICIENTS, newton_schulz

SHAPES = {"w": (4, 3), "b": (3,), "s": ()}


def gradients(count=4, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(0)
    return [
        {name: scale * rng.normal(size=s) for name, s in shapes.items()}
        for _ in range(count)
    ]


def run(tx, grads):
    """All updates of a transformation, in float64."""
    with jax.enable_x64(True):
        grads = jax.tree.map(jnp.asarray, grads)
        state, outs = tx.init(grads[0]), []
        update = jax.jit(tx.update)
        for g in grads:
            out, state = update(g, state, grads[0])
            outs.append(jax.tree.map(np.asarray, out))
    return outs


def assert_same(ours, expected, rtol=1e-9):
    for a, b in zip(ours, expected, strict=True):
        for name in a:
            np.testing.assert_allclose(
                a[name], b[name], rtol=rtol, atol=rtol, err_msg=name
            )


def column(g):
    """A vector or scalar as ``scale_by_memory`` sees it."""
    return g if g.ndim == 2 else g.reshape(-1, 1)


def loop(step, grads):
    """Applies ``step(m, g) -> m`` leaf by leaf; returns every ``m``."""
    outs, memory = [], {n: 0 * column(g) for n, g in grads[0].items()}
    for g in grads:
        memory = {n: step(m, column(g[n])) for n, m in memory.items()}
        outs.append({n: m.reshape(g[n].shape) for n, m in memory.items()})
    return outs


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

    assert_same(run(nl.scale_by_delta_momentum(rho), grads), loop(step, grads))
    # The same as an objective whose gradient is only known by autodiff.
    objective = Objective("delta", nl.delta_objective(rho).loss)
    assert_same(
        run(nl.scale_by_memory(objective=objective), grads), loop(step, grads)
    )
    if rho == 1.0:
        assert_same(
            run(nl.scale_by_memory(objective="l2"), grads), loop(step, grads)
        )


def test_normalised_delta_momentum():
    grads = gradients(scale=3.0)

    def step(m, g):
        size = max(1, np.sum(g * g))
        return m @ (0.9 * np.eye(g.shape[1]) - 0.5 * g.T @ g / size) + g

    tx = nl.scale_by_delta_momentum(0.5, normalize=True)
    assert_same(run(tx, grads), loop(step, grads))


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
    muon = scale_by_muon(
        nesterov=False,
        beta=0.95,
        weight_dimension_numbers=dict.fromkeys("wv", MuonDimensionNumbers()),
    )
    muon = run(muon, grads)
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


def polar(g):
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    return u @ vt


def test_learned_preconditioner():
    """P averages the root of g g^T on the shorter side, |g| elsewhere."""
    grads = gradients(shapes={"w": (3, 5), "tall": (6, 2), "b": (3,)})
    ours = run(nl.scale_by_learned_preconditioner(0.3, eps=1e-9), grads)
    expected, p = [], {}
    for t, g in enumerate(grads, 1):
        out = {}
        for name, x in g.items():
            x = x.T if name == "tall" else x
            wanted = np.sign(x) if name == "b" else polar(x)
            if name == "b":
                p[name] = 0.7 * p.get(name, 0) + 0.3 * np.abs(x)
                u = x / (p[name] / (1 - 0.7**t))
            else:
                old = p.get(name, np.zeros((len(x), len(x))))
                at = (old @ wanted - x) @ wanted.T
                p[name] = old - 0.3 * (at + at.T) / 2
                u = np.linalg.solve(p[name] / (1 - 0.7**t), x)
            out[name] = u.T if name == "tall" else u
        expected.append(out)
    assert_same(ours, expected, rtol=1e-5)


def test_learned_preconditioner_without_past_is_exact_muon_and_sign_descent():
    grads = gradients(shapes={"w": (3, 5), "b": (3,)})
    ours = run(nl.scale_by_learned_preconditioner(1.0, eps=1e-9), grads)
    signs = run(optax.scale_by_sign(), grads)
    for g, out, sign in zip(grads, ours, signs, strict=True):
        np.testing.assert_allclose(out["w"], polar(g["w"]), rtol=1e-5)
        np.testing.assert_allclose(out["b"], sign["b"])


def test_learned_preconditioner_of_another_target_and_objective():
    """Quasi-Newton: keys are steps, values gradients; P becomes the Hessian."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    hessian = root @ root.T + np.eye(3)
    steps = [np.linalg.qr(rng.normal(size=(3, 4)).T)[0].T for _ in range(60)]
    grads = [{"w": hessian @ s} for s in steps]
    inverse = jnp.asarray(np.linalg.inv(hessian))
    tx = nl.scale_by_learned_preconditioner(
        0.5, target=lambda g: inverse @ g, initial=1.0, eps=1e-9
    )
    np.testing.assert_allclose(run(tx, grads)[-1]["w"], steps[-1], atol=1e-5)
    absolute = Objective("l1", lambda y, v: jnp.abs(y - v).sum(-1))
    tx = nl.scale_by_learned_preconditioner(
        0.1, absolute, target=lambda g: g, initial=3.0
    )
    (out,) = run(tx, [{"b": np.array([2.0, -3.0])}])
    np.testing.assert_allclose(out["b"], [2 / 2.8, -3 / 2.7], rtol=1e-6)


@pytest.mark.parametrize("objective", ["dot_product", "l2"])
def test_deep_momentum_of_one_layer(objective):
    """m(u) = u + u W, W <- a W - rate u^T d / |u^T u|; u at unit scale."""
    grads = gradients(shapes={"w": (4, 3)})
    tx = nl.scale_by_deep_momentum("residual", objective, gain=5.0)
    w, expected = np.zeros((3, 3)), []
    for g in grads:
        scale = np.sqrt(np.mean(g["w"] ** 2))
        u = g["w"] / scale
        d = -5 * u if objective == "dot_product" else u + u @ w - 5 * u
        w = 0.99 * w - 0.1 * u.T @ d / np.linalg.norm(u.T @ u)
        expected.append({"w": scale * (u + u @ w)})
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


def test_adam_and_adagrad_are_optax():
    grads = gradients()
    assert_same(run(nl.adam_memory(0.1), grads), run(optax.adam(0.1), grads))
    assert_same(
        run(nl.adagrad_memory(0.1), grads), run(optax.adagrad(0.1), grads)
    )


def test_adam_minimises_the_regression():
    """Eq. 101 itself: no other m is better."""
    rng = np.random.default_rng(0)
    g, eps = rng.normal(size=(6, 5)), 1e-3
    # Sums are averages without decay, up to a factor that cancels.
    p = np.sqrt((g**2).mean(0))
    best = (g * p).mean(0) / ((g**2).mean(0) + eps * p)

    def loss(m):
        errors = np.mean((m * g - p) ** 2, 0)
        return np.sum(errors + eps * p * m**2)

    for _ in range(20):
        assert loss(best) <= loss(best + 0.01 * rng.normal(size=5))
    adam = best.copy()
    np.testing.assert_allclose(adam, g.mean(0) / (p + eps))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_matrix_adagrad(momentum):
    grads = gradients(shapes={"w": (3, 4)})
    tx = nl.scale_by_adagrad_memory("matrix", momentum=momentum)
    h, m, expected = 0.1 * np.eye(3), np.zeros((3, 4)), []
    for g in grads:
        h, m = h + g["w"] @ g["w"].T, momentum * m + g["w"]
        values, vectors = np.linalg.eigh(h + 1e-7 * np.eye(3))
        expected.append({"w": vectors / np.sqrt(values) @ vectors.T @ m})
    assert_same(run(tx, grads), expected, rtol=1e-7)


def orthogonal(x):
    with jax.enable_x64(True):
        return np.asarray(newton_schulz(jnp.asarray(x)))


@pytest.mark.parametrize("accumulation", ["ema", "sum"])
@pytest.mark.parametrize("second_moment", ["relative", "absolute"])
def test_m3(accumulation, second_moment):
    """Algorithm 1, a matrix and a vector, period 2."""
    grads = gradients(5)
    b1, b2, b3, a, damping = 0.9, 0.99, 0.8, 0.3, 0.2
    tx = nl.scale_by_m3(
        b1,
        b2,
        b3,
        a,
        2,
        accumulation=accumulation,
        second_moment=second_moment,
        damping=damping,
    )
    ours = run(tx, grads)
    ema = accumulation == "ema"
    for name in ("w", "b"):
        shape = SHAPES[name]
        m1, m2, v, gathered, said = (np.zeros(shape) for _ in range(5))
        ns = orthogonal if name == "w" else (lambda x: x)
        for t, (g, out) in enumerate(zip(grads, ours, strict=True), 1):
            g, gathered = g[name], gathered + g[name]
            m1 = b1 * m1 + (1 - b1) * g if ema else m1 + b1 * g
            v = b2 * v + (1 - b2) * g**2 if ema else v + b2 * g**2
            if t % 2 == 0:
                mean = gathered / 2
                m2 = b3 * m2 + (1 - b3) * mean if ema else m2 + b3 * gathered
                gathered = 0 * gathered
                said = ns(m2 / (1 - b3 ** (t // 2)) if ema else m2)
            first = ns(m1 / (1 - b1**t) if ema else m1)
            root = np.sqrt(v / (1 - b2**t) if ema else v)
            if name == "w" and second_moment == "relative":
                root = root / np.sqrt(np.mean(root**2))
                root = damping + (1 - damping) * root
            expected = (first + a * said) / (root + 1e-8)
            np.testing.assert_allclose(out[name], expected, rtol=1e-6)


def test_m3_relates_each_matrix_of_a_stack_to_itself():
    """A layer whose gradients are small is divided by its own mean alone."""
    g = gradients(1, {"stack": (2, 4, 3)})[0]
    g["stack"][0] *= 1e-3
    tx = nl.scale_by_m3(dimension_numbers={"stack": MuonDimensionNumbers(1, 2)})
    (whole,) = run(tx, [g])
    for layer in range(2):
        (alone,) = run(nl.scale_by_m3(), [{"w": g["stack"][layer]}])
        np.testing.assert_allclose(whole["stack"][layer], alone["w"], rtol=1e-6)


def test_m3_goes_on_after_squares_that_are_no_floats():
    """One step of 1e30 leaves an infinite second moment, and directions."""
    g = {"w": jnp.asarray(gradients(1)[0]["w"], jnp.float32)}
    tx = nl.scale_by_m3(0.5)
    _, state = tx.update(jax.tree.map(lambda x: 1e30 * x, g), tx.init(g))
    assert np.isinf(state.second["w"]).all()
    out, _ = tx.update(g, state)
    size = np.linalg.svd(out["w"], compute_uv=False)
    assert size.min() > 0.5 and size.max() < 2


def test_m3_without_slow_and_second_moment_is_muon():
    grads = gradients(shapes={"w": (4, 3), "v": (2, 5)})
    ours = run(nl.scale_by_m3(0.95, slow_weight=0.0, damping=1.0), grads)
    muon = scale_by_muon(
        nesterov=False,
        beta=0.95,
        weight_dimension_numbers=dict.fromkeys("wv", MuonDimensionNumbers()),
    )
    assert_same(ours, run(muon, grads), rtol=1e-6)


def test_m3_is_two_memories():
    """The general form twice, at two frequencies, over a second moment."""
    grads = gradients(5, {"w": (4, 3)})
    parts = [
        run(
            nl.scale_by_memory(
                inner=optax.sgd(rate),
                retention=1.0,
                output=newton_schulz,
                period=period,
            ),
            grads,
        )
        for rate, period in ((0.9, 1), (0.8, 2))
    ]
    tx = nl.scale_by_m3(
        0.9,
        0.99,
        0.8,
        0.3,
        2,
        accumulation="sum",
        second_moment="absolute",
    )
    squares = np.cumsum([0.99 * g["w"] ** 2 for g in grads], 0)
    for fast, slow, v, out in zip(*parts, squares, run(tx, grads), strict=True):
        both = (fast["w"] + 0.3 * slow["w"]) / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(out["w"], both, rtol=1e-6)


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
