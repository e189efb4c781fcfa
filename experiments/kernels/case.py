"""One op at one shape, as the kernels' benchmark sees it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu

PLATFORMS = {
    "pallas_tpu": "tpu",
    "pallas_triton": "cuda",
    "pallas_mosaic_gpu": "cuda",
}
"""Where kernels run; what is not here runs everywhere."""
CHECKED_TOKENS = 1024
"""Of gradients: a token scan keeps the weights after every token for them."""
BOTH = ("forward", "forward+backward")
"""What is timed of an op that learns."""


class Case(NamedTuple):
    """One op at one shape."""

    op: str
    shape: str
    draw: Callable[[jax.Array], dict[str, Any]]
    """From a random key to the arguments, a dict of arrays."""
    run: Callable[[dict, str, Any], Any]
    """From arguments, an implementation and ``interpret`` to results."""
    truth: Callable[[dict], Any]
    """Results in float32, token by token or step by step."""
    short: Callable[[dict], dict]
    """Arguments for which the truth's gradients fit into memory."""
    implementations: tuple[str, ...]
    baseline: str
    """What ratios compare with: an implementation or another library."""
    programs: tuple[str, ...]
    flops: float
    """Of a forward pass, as the formula reads; a backward pass has twice."""
    tolerance: float
    """Of results' distances to the truth, in units of its norm."""

    def function(self, implementation, program, interpret=False):
        """What is timed, and compared: of the arguments alone."""
        run = functools.partial(
            self.run, implementation=implementation, interpret=interpret
        )
        return run if program == "forward" else with_gradients(run)

    def true(self, program):
        """The same of the truth."""
        return (
            self.truth if program == "forward" else with_gradients(self.truth)
        )

    def work(self, program):
        """Bytes that must be moved, and products' operations."""
        arguments = jax.eval_shape(self.draw, jax.random.key(0))
        run = functools.partial(
            self.run, implementation=self.implementations[0], interpret=False
        )
        read = _bytes(arguments)
        written = _bytes(jax.eval_shape(run, arguments))
        if program == "forward":
            return read + written, self.flops
        # Back: the same arguments, cotangents of results, and gradients.
        return 3 * read + 2 * written, 3 * self.flops


def with_gradients(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Makes a function return its results and gradients.

    Those of half the square of its first result, so that whatever comes back
    is as large as what went out.

    Example:
        >>> both = with_gradients(lambda x: (2 * x, x + 1))
        >>> jax.tree.map(float, both(jnp.float32(3)))
        ((6.0, 4.0), (12.0,))
    """

    def function(arguments):
        results, pull = jax.vjp(run, arguments)
        first, *rest = jax.tree.leaves(results)
        cotangents = [first, *map(jnp.zeros_like, rest)]
        tree = jax.tree.structure(results)
        return results, pull(jax.tree.unflatten(tree, cotangents))

    return function


def difference(found: Any, expected: Any) -> float:
    """The largest distance of two trees' arrays, in units of their norms.

    Example:
        >>> expected = {"a": jnp.full(4, 2.0), "b": jnp.ones(1)}
        >>> difference({"a": jnp.full(4, 2.5), "b": jnp.ones(1)}, expected)
        0.25
    """

    def one(found, expected):
        expected = jnp.asarray(expected, jnp.float32)
        distance = jnp.linalg.norm((found - expected).ravel())
        return distance / jnp.linalg.norm(expected.ravel())

    leaves = jax.tree.leaves(jax.tree.map(one, found, expected))
    return float(jnp.max(jnp.stack(leaves)))


def interpreter(implementation: str) -> Any:
    """Returns what runs a kernel without its hardware, for ``interpret=``."""
    # Where JAX has no parameters for it, the kernel says so itself.
    params = getattr(mosaic_gpu, "InterpretGPUParams", None)
    if implementation == "pallas_mosaic_gpu" and params is not None:
        return params()
    return True


def _bytes(tree):
    return sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(tree))
