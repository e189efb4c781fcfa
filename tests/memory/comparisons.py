"""How a memory is compared with its paper's recurrence, and with itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.memory import papers

__all__ = [
    "check_direction",
    "check_slope",
    "check_splits",
    "close",
    "gradient_and_outputs",
]

_EXACT = 1e-10 if np.finfo(np.longdouble).eps < 1e-18 else 1e-8
"""To what float64 gradients equal the papers' slopes: differences of values
need more digits than they find, which not all machines have."""


def close(a, b, bound):
    """Equal up to ``bound`` of the largest number, or of 1 if that is more."""
    np.testing.assert_allclose(a, b, atol=bound * _scale(b), rtol=0)


def _scale(b):
    return max(1.0, np.abs(b).max())


def check_direction(value, point, way, gradient):
    """Along ``way`` the gradient is the slope of NumPy's ``value(*point)``.

    That is found by differences of values, in more than float64.
    """

    def at(step):
        moved = jax.tree.map(
            lambda a, d: a.astype(np.longdouble) + step * d, point, way
        )
        return value(*moved)

    found = sum(
        (g * d).sum()
        for g, d in zip(*map(jax.tree.leaves, (gradient, way)), strict=True)
    )
    np.testing.assert_allclose(found, float(papers.slope(at)), rtol=_EXACT)


def _value(o, end):
    """One number that depends on all outputs and final weights."""
    weights = np.random.default_rng(2).normal(size=o.shape).astype(o.dtype)
    return (weights * o).sum() + sum((w**2).sum() for w in end)


@functools.cache
def _program(ours, name):
    def value(args):
        o, end = ours(name, *args)
        return _value(o, end), (o, end)

    return jax.jit(jax.grad(value, has_aux=True))


def gradient_and_outputs(ours, name, args, dtype):
    """One program for both: of ``_value``, and ``ours(name, *args)``."""
    args = jax.tree.map(lambda a: jnp.asarray(a, dtype), args)
    return _program(ours, name)(args)


def check_slope(paper, ours, name, args):
    """Gradients through every inner step, along one direction of everything.

    Both functions map ``name, *args`` to ``(o, final weights)``.
    """
    rng = np.random.default_rng(1)
    way = jax.tree.map(lambda a: rng.normal(size=a.shape), args)

    def plain(*args):
        o, end = paper(name, *args)
        return _value(np.array(o), end)

    def gradient(args, dtype):
        found, _ = gradient_and_outputs(ours, name, args, dtype)
        return list(map(np.asarray, jax.tree.leaves(found)))

    with jax.enable_x64(True):
        exact = gradient(args, "float64")
        check_direction(plain, args, way, exact)
        # How far one rounding of the inputs moves it: closer is luck.
        unsure = 0.0
        for _ in range(4):
            rounded = jax.tree.map(
                lambda a: a * (1 + 2.0**-24 * rng.choice([-1, 1], a.shape)),
                args,
            )
            for a, b in zip(gradient(rounded, "float64"), exact, strict=True):
                unsure = max(unsure, np.abs(a - b).max() / _scale(b))
    for a, b in zip(gradient(args, "float32"), exact, strict=True):
        close(a, b, min(1e-5, max(1e-6, 3 * unsure)))


def check_splits(memory, weights, k, v, q, gates):
    """Outputs and the whole state, in float64."""
    length = k.shape[0]
    scan = jax.jit(memory.scan)
    whole, end = scan(memory.init(tuple(weights)), k, v, q, gates)
    state, outs = memory.init(tuple(weights)), []
    for at, to in ((0, 1), (1, 2), (2, 6), (6, length)):
        part = jax.tree.map(lambda a: a[at:to], (k, v, q, gates))  # noqa: B023
        o, state = scan(state, *part)
        outs.append(o)
    np.testing.assert_allclose(jnp.concatenate(outs), whole, atol=1e-12)
    for a, b in zip(*map(jax.tree.leaves, (state, end)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
