r"""Momentum in its many forms: thin names for choices of ``scale_by_memory``.

Section 4 of arXiv 2512.24695. Every function returns the ``scale_by_*``
transformation with the learning rate behind it; signs are optax's: the memory
gathers gradients and the rate is subtracted.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax.memory import Objective
from nl_jax.optimizers.matrices import MatrixFunction
from nl_jax.optimizers.memory import scale_by_memory
from pallas_kernels.newton_schulz import newton_schulz

__all__ = [
    "deep_momentum",
    "delta_momentum",
    "delta_objective",
    "feature_momentum",
    "newton_schulz_memory",
    "nonlinear_output",
    "preconditioned_momentum",
    "scale_by_deep_momentum",
    "scale_by_delta_momentum",
]

Rate = float | jax.Array | Callable[[jax.Array], jax.Array]


def preconditioned_momentum(
    learning_rate: Rate,
    preconditioner: jax.Array | MatrixFunction | None = None,
    retention: float | jax.Array = 0.9,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum whose keys have values, :math:`m \leftarrow \alpha m + P g`.

    Eq. 46-47. Without a preconditioner it is ``optax.sgd(..., momentum)``.

    Args:
        learning_rate: number or schedule.
        preconditioner: ``P``, an array ``[m, m]`` that fits every leaf, or a
            function of the gradient's matrices ``[b, m, n]`` to ``[b, m, m]``.
        retention: :math:`\alpha`.
        **options: of :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = preconditioned_momentum(1.0, lambda g: 2 * jnp.eye(g.shape[1]))
        >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
        >>> updates.tolist()
        [-2.0, -2.0]
    """
    return _with_rate(
        scale_by_memory(value=preconditioner, retention=retention, **options),
        learning_rate,
    )


def delta_objective(ratio: float | jax.Array) -> Objective:
    r"""Returns :math:`\tfrac{r}{2}\|y\|^2 - \langle y, v\rangle`.

    At ``ratio`` 1 it is L2, at 0 the dot product.
    """
    return Objective(
        "delta",
        lambda y, v: 0.5 * ratio * jnp.square(y).sum(-1) - (y * v).sum(-1),
        ratio,
    )


def scale_by_delta_momentum(
    rho: float | jax.Array = 1.0,
    retention: float | jax.Array = 0.9,
    *,
    normalize: bool = False,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum that forgets along what it sees, eq. 48-49.

    .. math:: m \leftarrow m\,(\alpha I - \rho\, g^\top g) + P g

    For a vector :math:`g^\top g` is :math:`\|g\|^2`. As printed it diverges
    where :math:`\rho\|g\|^2 > 1 + \alpha`; ``normalize`` divides
    :math:`g^\top g` by :math:`\max(1, \|g\|^2)`.

    Args:
        rho: strength of the delta term, below 1 if normalised.
        retention: :math:`\alpha`.
        normalize: see above.
        **options: of :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_delta_momentum(rho=0.5, retention=1.0)
        >>> g = jnp.array([1.0, 0.0])
        >>> _, state = tx.update(g, tx.init(g))
        >>> updates, _ = tx.update(g, state)
        >>> updates.tolist()  # 1 (1 - 0.5) + 1
        [1.5, 0.0]
    """
    keys = {}
    if normalize:
        keys = {"feature_map": lambda g: g / _length(g), "value": _length}
    return scale_by_memory(
        "linear",
        delta_objective(rho),
        retention=retention,
        **keys | options,
    )


def delta_momentum(
    learning_rate: Rate,
    rho: float | jax.Array = 1.0,
    retention: float | jax.Array = 0.9,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_delta_momentum` with a learning rate behind it.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = delta_momentum(0.1)
        >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
        >>> updates.tolist()
        [-0.10000000149011612, -0.10000000149011612]
    """
    return _with_rate(
        scale_by_delta_momentum(rho, retention, **options), learning_rate
    )


def scale_by_deep_momentum(
    architecture: str = "mlp",
    objective: str | Objective = "dot_product",
    inner: optax.GradientTransformation | None = None,
    retention: float | jax.Array = 0.99,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum whose memory is an MLP (DMGD, eq. 50).

    .. math:: m \leftarrow \alpha m - \text{inner}(\nabla_m L(m; u, u)),\quad
       W \leftarrow W - \text{lr}\, s\, m(u)

    with :math:`u = g / s` the rows of a matrix gradient, scaled by its root
    mean square :math:`s`, so that the memory works at one scale and updates
    scale with the gradient. A new memory is the identity: gradient descent.
    The paper's value, 1 for every key, has no sign, and :math:`m(u)` then no
    direction of descent; here it is the key itself, towards which the memory
    amplifies what recurs.

    Args:
        architecture: ``"mlp"``, ``"residual"`` or an ``Architecture`` that
            maps a width to itself.
        objective: of the memory.
        inner: its optimizer; ``None`` is ``optax.sgd(0.01)``.
        retention: :math:`\alpha`.
        **options: of :func:`scale_by_memory`.

    Raises:
        ValueError: at ``init`` for a leaf with more columns than
            ``max_width``, naming it.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_deep_momentum()
        >>> g = jnp.array([[1.0, -2.0]])
        >>> updates, _ = tx.update(g, tx.init(g))
        >>> bool((updates * g > 0).all())
        True
    """
    memory = scale_by_memory(
        architecture,
        objective,
        optax.sgd(0.01) if inner is None else inner,
        retention=retention,
        **options,
    )

    def update(updates, state, params=None, **extra):
        scales = jax.tree.map(_root_mean_square, updates)
        unit = jax.tree.map(lambda g, s: g / s, updates, scales)
        out, state = memory.update(unit, state, params, **extra)
        return jax.tree.map(lambda g, s: g * s, out, scales), state

    return optax.GradientTransformationExtraArgs(memory.init, update)


def deep_momentum(
    learning_rate: Rate, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_deep_momentum` with a learning rate behind it.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = deep_momentum(0.1, architecture="residual")
        >>> state = tx.init({"w": jnp.ones((4, 3))})
        >>> state[0].memory["w"][0].shape
        (1, 3, 3)
    """
    return _with_rate(scale_by_deep_momentum(**options), learning_rate)


def feature_momentum(
    learning_rate: Rate,
    feature_map: MatrixFunction,
    retention: float | jax.Array = 0.9,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum of features, :math:`m \leftarrow \alpha m + P \phi(g)` (51).

    Args:
        learning_rate: number or schedule.
        feature_map: :math:`\phi`, of matrices ``[b, m, n]`` to the same shape.
        retention: :math:`\alpha`.
        **options: of :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = feature_momentum(1.0, jnp.sign)
        >>> g = jnp.array([3.0, -0.1])
        >>> tx.update(g, tx.init(g))[0].tolist()
        [-1.0, 1.0]
    """
    return _with_rate(
        scale_by_memory(
            feature_map=feature_map, retention=retention, **options
        ),
        learning_rate,
    )


def nonlinear_output(
    learning_rate: Rate,
    output: MatrixFunction | None = None,
    retention: float | jax.Array = 0.95,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum read through a non-linearity, :math:`W - \text{lr}\,\sigma(m)`.

    Eq. 52. With Newton-Schulz, the default, it is Muon without Nesterov's
    step; a vector is then divided by its length.

    Args:
        learning_rate: number or schedule.
        output: :math:`\sigma`, of matrices ``[b, m, n]``; ``None`` is
            ``newton_schulz``.
        retention: :math:`\alpha`.
        **options: of :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = nonlinear_output(1.0, jnp.tanh)
        >>> g = jnp.array([100.0, 0.0])
        >>> tx.update(g, tx.init(g))[0].tolist()
        [-1.0, -0.0]
    """
    output = newton_schulz if output is None else output
    return _with_rate(
        scale_by_memory(output=output, retention=retention, **options),
        learning_rate,
    )


def newton_schulz_memory(
    learning_rate: Rate,
    zeta: float = 0.1,
    steps: int = 20,
    retention: float | jax.Array = 0.95,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum whose output is the memory of an inner problem (eq. 43-44).

    .. math:: O \leftarrow O - \zeta\,(O - g + 2\, O (O^\top O - I)),
       \quad O_0 = g

    is gradient descent on :math:`\|O - g\|^2 / 2 + \|O^\top O - I\|^2 / 2`:
    an orthogonal matrix near the momentum, here scaled to norm 1. Without the
    first term and at :math:`\zeta = 1/4` a step is the cubic Newton-Schulz
    one; :func:`nonlinear_output` has that and the quintic.

    Args:
        learning_rate: number or schedule.
        zeta: inner step, below 1/5.
        steps: inner steps.
        retention: of the momentum.
        **options: of :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = newton_schulz_memory(1.0)
        >>> g = jnp.array([[3.0, 0.0], [0.0, 3.0]])
        >>> updates = tx.update(g, tx.init(g))[0]
        >>> bool(jnp.allclose(updates, updates[0, 0] * jnp.eye(2), atol=1e-4))
        True
    """

    def output(g):
        g = g / _divisor(_norm(g, (-2, -1)))
        wide = g.shape[-1] >= g.shape[-2]

        def step(_, o):
            # O (O^T O - I) = (O O^T - I) O, through the smaller product.
            cubic = (o @ o.mT) @ o if wide else o @ (o.mT @ o)
            return o - zeta * (o - g + 2 * (cubic - o))

        return jax.lax.fori_loop(0, steps, step, g)

    return nonlinear_output(learning_rate, output, retention, **options)


def _with_rate(transformation, learning_rate):
    return optax.chain(
        transformation, optax.scale_by_learning_rate(learning_rate)
    )


def _length(g):
    """``max(1, |g|)`` of each matrix, ``[b, 1, 1]``."""
    return jnp.maximum(_norm(g, (-2, -1)), 1)


def _root_mean_square(g):
    """Not zero, so that one can divide by it."""
    return _divisor(_norm(g, None).reshape(()) / max(g.size, 1) ** 0.5)


def _divisor(size):
    return jnp.where(size > 0, size, 1)


def _norm(g, axes):
    """Euclidean norm, a float even where ``g^2`` is none."""
    largest = _divisor(jnp.max(jnp.abs(g), axes, keepdims=True, initial=0))
    square = jnp.sum(jnp.square(g / largest), axes, keepdims=True)
    return largest * jnp.sqrt(square)
