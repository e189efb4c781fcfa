"""One operation at one shape, for the benchmark of kernels."""

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
"""Platforms of the kernels; other implementations run everywhere."""
CHECKED_TOKENS = 1024
"""Tokens for which gradients are checked: for gradients a token scan stores the
weights after every token."""
BOTH = ("forward", "forward+backward")
"""Programs that are timed for operations that learn."""


class Case(NamedTuple):
    """One operation at one shape."""

    op: str
    shape: str
    draw: Callable[[jax.Array], dict[str, Any]]
    """Maps a random key to the arguments, a dict of arrays."""
    run: Callable[[dict, str, Any], Any]
    """Maps arguments, an implementation and ``interpret`` to results."""
    truth: Callable[[dict], Any]
    """Computes the results in float32, token by token or step by step."""
    short: Callable[[dict], dict]
    """Shortens arguments until the gradients of ``truth`` fit into memory."""
    implementations: tuple[str, ...]
    baseline: str
    """Baseline of the ratios: an implementation or another library."""
    programs: tuple[str, ...]
    flops: float
    """Operations of a forward pass by the formula; a backward pass has twice
    as many."""
    tolerance: float
    """Allowed distance of results from the truth, in units of its norm."""

    def function(self, implementation, program, interpret=False):
        """Returns the timed and compared function, of the arguments alone."""
        run = functools.partial(
            self.run, implementation=implementation, interpret=interpret
        )
        return run if program == "forward" else with_gradients(run)

    def true(self, program):
        """Returns the same function for ``truth``."""
        return (
            self.truth if program == "forward" else with_gradients(self.truth)
        )

    def work(self, program):
        """Returns the bytes that must be moved, and operations of products."""
        arguments = jax.eval_shape(self.draw, jax.random.key(0))
        run = functools.partial(
            self.run, implementation=self.implementations[0], interpret=False
        )
        read = _bytes(arguments)
        written = _bytes(jax.eval_shape(run, arguments))
        if program == "forward":
            return read + written, self.flops
        # Backward: the same arguments, cotangents of results, and gradients.
        return 3 * read + 2 * written, 3 * self.flops


def with_gradients(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Makes a function return its results and gradients.

    The gradients are of half the square of the first result, so that the
    cotangents are as large as the results.

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
    """Returns the largest distance between arrays of two trees.

    Distances are in units of the norms of the expected arrays.

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
    """Returns the ``interpret=`` that runs a kernel without its hardware."""
    # If this JAX has no such parameters, the kernel raises an error.
    params = getattr(mosaic_gpu, "InterpretGPUParams", None)
    if implementation == "pallas_mosaic_gpu" and params is not None:
        return params()
    return True


def _bytes(tree):
    return sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(tree))
