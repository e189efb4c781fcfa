"""The deep memory in the benchmark of kernels: two layers learning in context.

They learn by gradient descent, with errors at the weights at the start of a
chunk; the first layer erases what it overwrites. The results of chunks are
compared with those of a scan token by token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.kernels.case import BOTH, CHECKED_TOKENS, Case
from pallas_kernels import delta_memory, mlp_memory
from pallas_kernels.delta_memory.chunked import chunk_step


class DeepSizes(NamedTuple):
    """Sizes of the part of one layer on one device."""

    heads: int
    length: int
    width: int
    hidden: int
    chunk: int


SHAPES = {
    "real": {"heads_128x512": DeepSizes(16, 2048, 128, 512, 64)},
    "tiny": {"tiny_16x32": DeepSizes(2, 64, 16, 32, 16)},
}


def deep_cases(size: str) -> list[Case]:
    """Returns the cases at ``"real"`` or ``"tiny"`` size, in bfloat16."""
    return [
        Case(
            op="mlp_memory",
            shape=name,
            draw=lambda key, sizes=sizes: _draw(key, sizes),
            run=lambda arrays, implementation, interpret=False, sizes=sizes: (
                _run(arrays, sizes.chunk, implementation, interpret)
            ),
            truth=lambda arrays, sizes=sizes: _truth(arrays, sizes.chunk),
            short=_short,
            implementations=mlp_memory.IMPLEMENTATIONS,
            baseline="chunked",
            programs=BOTH,
            # Errors, backpropagation, writes, erasing, and reads.
            flops=16.0
            * sizes.heads
            * sizes.length
            * sizes.width
            * sizes.hidden,
            tolerance=0.03,
        )
        for name, sizes in SHAPES[size].items()
    ]


def _draw(key, sizes):
    keys = iter(jax.random.split(key, 7))
    lead = (1, sizes.heads)

    def normal(*shape):
        return jax.random.normal(next(keys), (*lead, *shape))

    def unit():
        x = normal(sizes.length, sizes.width)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def uniform(low, high):
        shape = (*lead, sizes.length)
        return jax.random.uniform(next(keys), shape, minval=low, maxval=high)

    tokens = unit(), unit(), normal(sizes.length, sizes.width)
    return {
        "state": (
            normal(sizes.width, sizes.hidden),
            normal(sizes.hidden, sizes.width) / sizes.hidden,
        ),
        "tokens": tuple(v.astype(jnp.bfloat16) for v in tokens),
        # Steps at which a hidden layer of this width stays stable.
        "gates": (uniform(-0.1, -0.001), uniform(0, 1 / sizes.hidden)),
    }


def _short(arrays):
    def cut(values):
        return tuple(v[:, :, :CHECKED_TOKENS] for v in values)

    if arrays["gates"][0].shape[-1] <= CHECKED_TOKENS:
        return arrays
    rest = {name: cut(arrays[name]) for name in ("tokens", "gates")}
    return {"state": arrays["state"], **rest}


def _run(arrays, chunk, implementation, interpret):
    return mlp_memory.memory_scan(
        _step,
        **arrays,
        chunk_size=chunk,
        implementation=implementation,
        interpret=interpret,
    )


def _step(state, tokens, gates, valid, inverse):
    def advance(w, *arrays):
        options = {"read": "after", "valid": valid, "inverse": inverse}
        return chunk_step(w, None, *arrays, **options)[:2]

    return _layers(state, tokens, gates, advance)


def _truth(arrays, chunk):
    """Computes results in float32, token by token within a chunk."""

    def advance(w, *arrays):
        options = {"read": "after", "implementation": "reference"}
        return delta_memory.delta_scan(w, None, *arrays, **options)[:2]

    def cut(value):
        value = value.astype(jnp.float32)
        parts = value.reshape(*value.shape[:2], -1, chunk, *value.shape[3:])
        return jnp.moveaxis(parts, 2, 0)

    def body(state, chunk):
        o, state = _layers(state, *chunk, advance)
        return state, o

    chunks = jax.tree.map(cut, (arrays["tokens"], arrays["gates"]))
    with jax.default_matmul_precision("highest"):
        state, o = jax.lax.scan(body, arrays["state"], chunks)
    o = jnp.moveaxis(o, 0, 2)
    return o.reshape(*o.shape[:2], -1, o.shape[-1]), state


def _layers(state, tokens, gates, advance):
    (first, second), (q, k, v), (log_alpha, eta) = state, tokens, gates
    dtype = v.dtype
    z = _times(k, first)
    hidden, pull = jax.vjp(jax.nn.gelu, z)
    hidden = hidden.astype(dtype)
    error = _times(hidden, second) - v.astype(z.dtype)
    (inner,) = pull(_times(error.astype(dtype), second.mT))

    def write(error):
        return (-eta[..., None] * error).astype(dtype)

    read, first = advance(first, k, write(inner), q, log_alpha, eta)
    read = jax.nn.gelu(read.astype(z.dtype)).astype(dtype)
    o, second = advance(second, hidden, write(error), read, log_alpha, None)
    return o, (first, second)


def _times(x, w):
    """Multiplies in the dtype of tokens, with sums in that of weights."""
    return jnp.matmul(x, w.astype(x.dtype), preferred_element_type=w.dtype)
