"""Operations of a chunk step, found by tracing it on one chunk."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def trace(step, arrays, chunk_size) -> ClosedJaxpr:
    """Traces a step on one head's chunk, with the identity as ``inverse``.

    Args:
        step: see :func:`pallas_kernels.mlp_memory.memory_scan`.
        arrays: ``state``, ``tokens`` and ``gates`` by name, or their shapes.
        chunk_size: tokens per chunk.
    """

    def like(name, shape):
        return tuple(
            jax.ShapeDtypeStruct((1, *shape(v)), v.dtype) for v in arrays[name]
        )

    return jax.make_jaxpr(lambda *args: step(*args, None, lambda lower: lower))(
        like("state", lambda v: v.shape[-2:]),
        like("tokens", lambda v: (chunk_size, v.shape[-1])),
        like("gates", lambda v: (chunk_size,)),
    )


def primitives(jaxpr: Jaxpr | ClosedJaxpr) -> set[str]:
    """Returns the names of all operations of a program, nested ones included.

    Example:
        >>> import jax.numpy as jnp
        >>> sorted(primitives(jax.make_jaxpr(jax.jit(jnp.sin))(0.0)))
        ['jit', 'sin']
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in jax.tree.leaves(equation.params):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                names |= primitives(value)
    return names
