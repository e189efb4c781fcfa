r"""Deep momentum (DMGD), whose memory of gradients is an MLP (eq. 50)."""

from typing import Any

import jax
import optax

from nl_jax.memory import Architecture, Objective
from nl_jax.optimizers.matrices import MatrixFunction, widen
from nl_jax.optimizers.memory import scale_by_memory
from nl_jax.optimizers.rate import scale_by_rate
from pallas_kernels.newton_schulz import divide_by_norm, safe_norm


def scale_by_deep_momentum(
    architecture: str | Architecture = "mlp",
    objective: str | Objective = "l2",
    inner: optax.GradientTransformation | None = None,
    retention: float | jax.Array = 0.99,
    *,
    gain: float | jax.Array = 10.0,
    value: MatrixFunction | None = None,
    normalize: bool = True,
    period: int | None = None,
    dimension_numbers: Any = None,
    expansion: int | None = None,
    max_width: int | None = None,
    seed: int | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum whose memory is an MLP (DMGD, eq. 50).

    .. math:: m \leftarrow \alpha m - \text{inner}(\nabla_m L(m; u, c u)),\quad
       W \leftarrow W - \text{lr}\, s\, m(u)

    where :math:`u = g / s` are the rows of a matrix gradient divided by its
    root mean square :math:`s`, so that the memory works at one scale while
    updates scale with the gradient. A new memory is the identity, which is
    gradient descent. The value of each key is the key itself times :math:`c`:
    recurring directions are amplified up to :math:`c`, as momentum amplifies
    them.

    Eq. 50 literally is ``value=jnp.ones_like, normalize=False`` with a learning
    rate of -1, since the paper adds :math:`m(u)`. Its value, 1 for every key,
    has no sign, so that :math:`m(u)` is not a direction of descent, and its
    memory learns at a rate that grows with the size of gradients.

    Args:
        architecture: ``"mlp"``, ``"residual"`` or an ``Architecture`` whose
            output is as wide as its input.
        objective: objective of the memory. With an MLP, ``"dot_product"``
            amplifies without limit.
        inner: optimizer of the memory; ``None`` is ``optax.sgd(0.1)``.
        retention: :math:`\alpha`, the memory's retention.
        gain: :math:`c`, the largest amplification, above 1.
        value: function from :math:`u` to the values; ``None`` is :math:`c u`.
        normalize: whether gradients are divided by their root mean square and
            the memory's loss by its curvature, see :func:`scale_by_memory`.
        period: see :func:`scale_by_memory`.
        dimension_numbers: see :func:`scale_by_memory`.
        expansion: see :func:`scale_by_memory`.
        max_width: see :func:`scale_by_memory`.
        seed: see :func:`scale_by_memory`.
        state_dtype: see :func:`scale_by_memory`.

    Raises:
        ValueError: at ``init`` for a leaf with more than ``max_width``
            columns, which the message names.

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
        value=(lambda u: gain * u) if value is None else value,
        normalize=normalize,
        period=period,
        dimension_numbers=dimension_numbers,
        expansion=expansion,
        max_width=max_width,
        seed=seed,
        state_dtype=state_dtype,
    )

    def update(updates, state, params=None, **extra):
        wide = widen(updates)
        unit = jax.tree.map(lambda g: divide_by_norm(g) * g.size**0.5, wide)
        out, state = memory.update(unit, state, params, **extra)
        out = jax.tree.map(
            lambda u, g: u * (safe_norm(g) / max(g.size, 1) ** 0.5), out, wide
        )
        return optax.tree.cast_like(out, updates), state

    return optax.GradientTransformationExtraArgs(
        memory.init, update if normalize else memory.update
    )


def deep_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    architecture: str | Architecture = "mlp",
    objective: str | Objective = "l2",
    inner: optax.GradientTransformation | None = None,
    retention: float | jax.Array = 0.99,
    gain: float | jax.Array = 10.0,
    value: MatrixFunction | None = None,
    normalize: bool = True,
    period: int | None = None,
    dimension_numbers: Any = None,
    expansion: int | None = None,
    max_width: int | None = None,
    seed: int | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_deep_momentum` and a learning rate."""
    return optax.chain(
        scale_by_deep_momentum(
            architecture,
            objective,
            inner,
            retention,
            gain=gain,
            value=value,
            normalize=normalize,
            period=period,
            dimension_numbers=dimension_numbers,
            expansion=expansion,
            max_width=max_width,
            seed=seed,
            state_dtype=state_dtype,
        ),
        scale_by_rate(learning_rate),
    )
