"""What a chunk step is made of, found by tracing it on one chunk."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def trace(step, arrays, chunk_size) -> ClosedJaxpr:
    """The step on one head's chunk; an inverse is taken to be a copy.

    Args:
        step: see ``memory_scan``.
        arrays: its ``state``, ``tokens`` and ``gates`` by name, or shapes.
        chunk_size: see ``memory_scan``.
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
    """Names of the operations of a program and of all that it calls.

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
