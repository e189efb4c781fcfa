"""Seconds per call of functions too short to time alone, and ceilings."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Time(NamedTuple):
    """Measured time of one function."""

    seconds: float
    """Seconds per call."""
    spread: float
    """Difference between two repeats, as a share of the shorter."""


def chained(
    function: Callable, inputs: Sequence[Any], calls: int
) -> tuple[Callable[[], None], int]:
    """Chains many calls of a function inside one compiled program.

    Each call waits for all results of the call before, every value of which is
    computed. Inputs alternate, so that none is still in a cache.

    Args:
        function: from one tree of arrays to another.
        inputs: trees that alternate.
        calls: minimum number, rounded up to a multiple of the number of inputs.

    Returns:
        A compiled function that runs all calls and waits, and their number.

    Example:
        >>> x = jnp.ones((2, 2))
        >>> run, calls = chained(lambda x: x @ x, [x, 2 * x], calls=3)
        >>> run(), calls
        (None, 4)
    """
    inputs = list(inputs)
    rounds = -(-calls // len(inputs))

    @jax.jit
    def program(inputs):
        def body(_, carry):
            total, results = carry[0], []
            for tree in inputs:
                # Otherwise XLA could move or merge calls.
                tree, total = jax.lax.optimization_barrier((tree, total))
                results.append(function(tree))
                for leaf in jax.tree.leaves(results[-1]):
                    total += leaf.ravel()[0].astype(jnp.float32)
            return total, results

        shapes = [jax.eval_shape(function, tree) for tree in inputs]
        nothing = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
        # Results are carried so that all of each is computed.
        return jax.lax.fori_loop(0, rounds, body, (jnp.float32(0), nothing))

    def run():
        jax.block_until_ready(program(inputs))

    run()
    return run, rounds * len(inputs)


def measure(run: Callable[[], None], calls: int, rounds: int) -> Time:
    """Times a function that makes ``calls`` calls: two medians of ``rounds``.

    Returns:
        The shorter of both medians, per call, and their difference.
    """
    medians = []
    for _ in range(2):
        seconds = []
        for _ in range(rounds):
            begun = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begun)
        medians.append(statistics.median(seconds) / calls)
    low, high = sorted(medians)
    return Time(low, high / low - 1)


def ceilings(size: int, side: int, calls: int, rounds: int) -> dict[str, float]:
    """Measures the highest rates at which this device copies and multiplies.

    Args:
        size: bytes of the array that is read and written.
        side: of the bfloat16 matrices that are multiplied.
        calls: as in :func:`chained`.
        rounds: as in :func:`measure`.

    Returns:
        ``bytes`` and ``flops`` per second.
    """
    keys = jax.random.split(jax.random.key(0))
    arrays = [jax.random.normal(k, (size // 4,)) for k in keys]
    copy = measure(*chained(jnp.negative, arrays, calls), rounds)
    del arrays
    squares = [jax.random.normal(k, (side, side), jnp.bfloat16) for k in keys]
    product = measure(*chained(lambda x: x @ x, squares, calls), rounds)
    return {
        "bytes": 2 * size / copy.seconds,
        "flops": 2 * side**3 / product.seconds,
    }
