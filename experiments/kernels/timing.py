"""Seconds per call of what is too short to be timed alone, and ceilings."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Time(NamedTuple):
    """What was measured of one function."""

    seconds: float
    """Per call."""
    spread: float
    """Between two repeats, as a share of the shorter."""


def chained(
    function: Callable, inputs: Sequence[Any], calls: int
) -> tuple[Callable[[], None], int]:
    """Calls a function one time after another inside one compiled program.

    Each call waits for all results of the one before, every value of which is
    computed; inputs take turns, so that none lies in a cache from before.

    Args:
        function: of one tree of arrays, to another.
        inputs: trees to take turns.
        calls: at least so many, made a multiple of the number of inputs.

    Returns:
        What runs them and waits, compiled already, and how many they are.

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
                # Else calls could be moved, or joined.
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
    """Times what makes ``calls`` calls: the median of ``rounds``, twice.

    Returns:
        The shorter of both medians, per call, and how far they are apart.
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
    """What this device copies and multiplies at most.

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
