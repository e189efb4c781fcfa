r"""Deep momentum (DMGD): the memory of gradients is an MLP (eq. 50)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax.memory import Objective
from nl_jax.optimizers.memory import scale_by_memory
from nl_jax.optimizers.rate import Rate, with_rate
from pallas_kernels.newton_schulz import safe_norm


def scale_by_deep_momentum(
    architecture: str = "mlp",
    objective: str | Objective = "l2",
    inner: optax.GradientTransformation | None = None,
    retention: float | jax.Array = 0.99,
    *,
    gain: float | jax.Array = 10.0,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum whose memory is an MLP (DMGD, eq. 50).

    .. math:: m \leftarrow \alpha m - \text{inner}(\nabla_m L(m; u, c u)),\quad
       W \leftarrow W - \text{lr}\, s\, m(u)

    with :math:`u = g / s` the rows of a matrix gradient, scaled by its root
    mean square :math:`s`, so that the memory works at one scale and updates
    scale with the gradient. A new memory is the identity: gradient descent. The
    paper's value, 1 for every key, has no sign, and :math:`m(u)` then no
    direction of descent; here it is the key itself times :math:`c`, so that
    directions that recur are amplified up to :math:`c`, as momentum would.

    Args:
        architecture: ``"mlp"``, ``"residual"`` or an ``Architecture`` that
            maps a width to itself.
        objective: of the memory. The dot product's writes do not end: with an
            MLP it amplifies without limit.
        inner: its optimizer; ``None`` is ``optax.sgd(0.1)``.
        retention: :math:`\alpha`.
        gain: :math:`c`, above 1.
        **options: of :func:`scale_by_memory`.

    Raises:
        ValueError: at ``init`` for a leaf with more columns than
            ``max_width``, naming it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> tx = scale_by_deep_momentum()
        >>> g = jnp.array([[1.0, -2.0]])
        >>> updates, _ = jax.jit(tx.update)(g, jax.jit(tx.init)(g))
        >>> bool((updates * g > 0).all())
        True
    """
    memory = scale_by_memory(
        architecture,
        objective,
        optax.sgd(0.1) if inner is None else inner,
        retention=retention,
        **{"value": lambda u: gain * u} | options,
    )

    def update(updates, state, params=None, **extra):
        scales = jax.tree.map(_root_mean_square, updates)
        unit = jax.tree.map(lambda g, s: g / s, updates, scales)
        out, state = memory.update(unit, state, params, **extra)
        return jax.tree.map(lambda g, s: g * s, out, scales), state

    return optax.GradientTransformationExtraArgs(memory.init, update)


def deep_momentum(
    learning_rate: Rate, *args: Any, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_deep_momentum` with a learning rate behind it.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = deep_momentum(0.1, architecture="residual")
        >>> state = tx.init({"w": jnp.ones((4, 3))})
        >>> state[0].memory["w"][0].shape
        (1, 3, 3)
    """
    return with_rate(scale_by_deep_momentum(*args, **options), learning_rate)


def _root_mean_square(g):
    """Not zero, so that one can divide by it."""
    size = safe_norm(g).reshape(()) / max(g.size, 1) ** 0.5
    return jnp.where(size > 0, size, 1)
