"""Cases of the benchmark of kernels: operations, shapes, correct results."""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from experiments.kernels.case import BOTH, CHECKED_TOKENS, Case
from experiments.kernels.deep import deep_cases
from pallas_kernels import delta_memory, newton_schulz
from pallas_kernels.delta_memory import shapes as delta_shapes
from pallas_kernels.newton_schulz import shapes as matrix_shapes


def cases(ops: Iterable[str], size: str) -> list[Case]:
    """Returns the cases of some operations at ``"real"`` or ``"tiny"`` size."""
    return [case for op in ops for case in CASES[op](size)]


def _delta_memory(size):
    shapes = {
        "real": {
            **delta_shapes.SHAPES,
            # The shape that the authors of fla time.
            "fla_32768": delta_shapes.Shape(1, 64, 32768, 128, False, "after"),
        },
        "tiny": {
            "tiny": delta_shapes.Shape(1, 2, 150, 32, False, "after"),
            "tiny_momentum": delta_shapes.Shape(1, 2, 150, 16, True, "before"),
        },
    }
    return [delta_case(*item) for item in shapes[size].items()]


def delta_case(name: str, shape: delta_shapes.Shape) -> Case:
    """Returns the case of the delta memory at a shape, from zero states."""

    def draw(key):
        structs = shape.arrays()
        keys = dict(
            zip(structs, jax.random.split(key, len(structs)), strict=True)
        )

        def uniform(name, low, high):
            struct = structs[name]
            return jax.random.uniform(
                keys[name], struct.shape, minval=low, maxval=high
            )

        def normal(name):
            return jax.random.normal(keys[name], structs[name].shape)

        def unit(name):
            x = normal(name)
            return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(
                shape.dtype
            )

        beta = uniform("beta", 0.1, 0.9)
        arrays = {
            "w": jnp.zeros(structs["w"].shape),
            "x": unit("x"),
            "g": (beta[..., None] * normal("g")).astype(shape.dtype),
            "q": unit("q"),
            "log_alpha": uniform("log_alpha", -0.1, -0.001),
            "beta": beta,
        }
        if shape.momentum:
            arrays["s"] = jnp.zeros(structs["s"].shape)
            arrays["log_mu"] = uniform("log_mu", -1.0, -0.5)
        return arrays

    def run(arrays, implementation, interpret=False):
        rest = {"s": None, "log_mu": None}
        return delta_memory.delta_scan(
            **rest | arrays,
            read=shape.read,
            implementation=implementation,
            interpret=interpret,
        )

    def truth(arrays):
        exact = {name: v.astype(jnp.float32) for name, v in arrays.items()}
        with jax.default_matmul_precision("highest"):
            return run(exact, "reference")

    def short(arrays):
        if shape.length <= CHECKED_TOKENS:
            return arrays
        return {
            name: value if name in ("w", "s") else value[:, :, :CHECKED_TOKENS]
            for name, value in arrays.items()
        }

    products = 4 if shape.momentum else 3
    tokens = shape.batch * shape.heads * shape.length
    return Case(
        "delta_memory",
        name,
        draw,
        run,
        truth,
        short,
        tuple(n for n in delta_memory.IMPLEMENTATIONS if n != "reference"),
        "fla",
        BOTH,
        flops=2.0 * tokens * products * shape.width**2,
        tolerance=0.03,
    )


def _newton_schulz(size):
    tiny = {"tiny_16x24": jax.ShapeDtypeStruct((2, 16, 24), jnp.float32)}
    shapes = {"real": matrix_shapes.SHAPES, "tiny": tiny}
    return [_matrix_case(*item) for item in shapes[size].items()]


def _matrix_case(name, shape):
    def draw(key):
        return {"x": jax.random.normal(key, shape.shape, shape.dtype)}

    def run(arrays, implementation, interpret=False):
        return newton_schulz.newton_schulz(
            **arrays, implementation=implementation, interpret=interpret
        )

    def truth(arrays):
        with jax.default_matmul_precision("highest"):
            return run({"x": arrays["x"].astype(jnp.float32)}, "reference")

    n, m = sorted(shape.shape[-2:])
    return Case(
        "newton_schulz",
        name,
        draw,
        run,
        truth,
        lambda arrays: arrays,
        tuple(n for n in newton_schulz.IMPLEMENTATIONS if n != "reference"),
        "batched",
        BOTH[:1],
        flops=5.0 * math.prod(shape.shape[:-2]) * n * n * (4 * m + 2 * n),
        # Twice the error that bfloat16 and, on GPUs, TF32 make.
        tolerance=0.02 if shape.dtype == jnp.float32 else 0.08,
    )


CASES: dict[str, Callable[[str], list[Case]]] = {
    "delta_memory": _delta_memory,
    "mlp_memory": deep_cases,
    "newton_schulz": _newton_schulz,
}
"""Functions of the size, by operation."""
