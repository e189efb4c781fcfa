"""Learned preconditioners, Adam and AdaGrad against their formulas."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax import optimizers as nl
from nl_jax.memory import Objective
from tests.optimizers.formulas import (
    assert_same,
    gradients,
    polar,
    run,
)


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


def test_matrix_adagrad_of_large_gradients_that_lack_a_rank():
    """The first step is the polar factor, though squares of H overflow."""
    for size in (1e4, 1e12):
        g = {"w": size * gradients(1, {"w": (3, 2)})[0]["w"]}
        (out,) = run(nl.scale_by_adagrad_memory("matrix"), [g], "float32")
        np.testing.assert_allclose(out["w"], polar(g["w"]), atol=2e-3)
