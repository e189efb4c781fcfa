"""M3 against Algorithm 1 and against what it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from nl_jax import optimizers as nl
from pallas_kernels.newton_schulz import newton_schulz
from tests.optimizers.formulas import (
    SHAPES,
    assert_same,
    gradients,
    orthogonal,
    run,
    run_muon,
)


@pytest.mark.parametrize("accumulation", ["ema", "sum"])
@pytest.mark.parametrize("second_moment", ["relative", "absolute"])
def test_m3(accumulation, second_moment):
    """Algorithm 1: what a window adds to the slow momentum acts after it."""
    grads = gradients(6)
    b1, b2, b3, a, damping, f = 0.9, 0.99, 0.8, 0.3, 0.2, 2
    tx = nl.scale_by_m3(
        b1,
        b2,
        b3,
        a,
        f,
        accumulation=accumulation,
        second_moment=second_moment,
        damping=damping,
    )
    ours = run(tx, grads)
    ema = accumulation == "ema"
    for name in ("w", "b"):
        m1, m2, v, o2 = (np.zeros(SHAPES[name]) for _ in range(4))
        ns = orthogonal if name == "w" else (lambda x: x)
        for k in range(3):
            if k:
                window = [g[name] for g in grads[(k - 1) * f : k * f]]
                if ema:
                    m2 = b3 * m2 + (1 - b3) * np.mean(window, 0)
                    o2 = ns(m2 / (1 - b3**k))
                else:
                    m2 = m2 + b3 * np.sum(window, 0)
                    o2 = ns(m2)
            for t in range(k * f, (k + 1) * f):
                g = grads[t][name]
                m1 = b1 * m1 + (1 - b1) * g if ema else m1 + b1 * g
                v = b2 * v + (1 - b2) * g**2 if ema else v + b2 * g**2
                o1 = ns(m1 / (1 - b1 ** (t + 1)) if ema else m1)
                root = np.sqrt(v / (1 - b2 ** (t + 1)) if ema else v)
                if name == "w" and second_moment == "relative":
                    root = root / np.sqrt(np.mean(root**2))
                    root = damping + (1 - damping) * root
                expected = (o1 + a * o2) / (root + 1e-8)
                np.testing.assert_allclose(ours[t][name], expected, rtol=1e-6)


def test_m3_goes_on_with_another_period():
    """The slow momentum of ones is a mean of ones, whatever the windows."""
    ones, state = jnp.ones(2), nl.scale_by_m3(period=8).init(jnp.ones(2))
    for period in (8, 8, 8, 1, 1, np.int64(2), 2):
        tx = nl.scale_by_m3(period=period)
        _, state = tx.update(ones, state)
        assert state.levels()[1].period == period
    said, steps = state.slow.inner
    assert steps == 3
    np.testing.assert_allclose(said, 1, rtol=1e-6)


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
    assert_same(ours, run_muon(grads), rtol=1e-6)


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
    # What the slow one says is heard from the next step on.
    parts[1] = [{"w": np.zeros((4, 3))}, *parts[1][:-1]]
    squares = np.cumsum([0.99 * g["w"] ** 2 for g in grads], 0)
    for fast, slow, v, out in zip(*parts, squares, run(tx, grads), strict=True):
        both = (fast["w"] + 0.3 * slow["w"]) / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(out["w"], both, rtol=1e-6)
