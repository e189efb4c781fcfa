"""What a chunk step is made of, found by tracing it on one chunk."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

__all__ = ["primitives", "trace"]


def trace(step, arrays, chunk_size) -> ClosedJaxpr:
    """The step on one head's chunk; an inverse is taken to be a copy.

    Args:
        step: see ``memory_scan``.
        arrays: its ``state``, ``tokens`` and ``gates`` by name, or shapes.
        chunk_size: see ``memory_scan``.
    """

    def one(axes, rest):
        return tuple(
            jax.ShapeDtypeStruct((1, *rest(v.shape[-axes:])), v.dtype)
            for v in arrays[name]
        )

    shapes = []
    for name, axes in (("state", 2), ("tokens", 2), ("gates", 1)):
        whole = name == "state"
        shapes.append(
            one(axes, lambda s, w=whole: s if w else (chunk_size, *s[1:]))
        )
    return jax.make_jaxpr(lambda *args: step(*args, None, lambda lower: lower))(
        *shapes
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
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: hasattr(v, "jaxpr")
        ):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                names |= primitives(value)
    return names
