r"""Momentum with values, with a delta rule, and of features.

Section 4 of arXiv 2512.24695: thin names for choices of ``scale_by_memory``.
Signs are optax's: the memory gathers gradients, the rate is subtracted.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax.memory import Objective
from nl_jax.optimizers.matrices import MatrixFunction
from nl_jax.optimizers.memory import scale_by_memory
from nl_jax.optimizers.rate import Rate, with_rate
from pallas_kernels.newton_schulz import safe_norm


def scale_by_preconditioned_momentum(
    preconditioner: jax.Array | MatrixFunction | None = None,
    retention: float | jax.Array = 0.9,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum whose keys have values, :math:`m \leftarrow \alpha m + P g`.

    Eq. 46-47. Without a preconditioner it is ``optax.trace``.

    Args:
        preconditioner: ``P``, an array ``[m, m]`` that fits every leaf, or a
            function of the gradient's matrices ``[b, m, n]`` to ``[b, m, m]``.
        retention: :math:`\alpha`.
        **options: of :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_preconditioned_momentum(
        ...     lambda g: 2 * jnp.eye(g.shape[1])
        ... )
        >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
        >>> updates.tolist()
        [2.0, 2.0]
    """
    return scale_by_memory(value=preconditioner, retention=retention, **options)


def preconditioned_momentum(
    learning_rate: Rate, *args: Any, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_preconditioned_momentum` with a learning rate behind it.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = preconditioned_momentum(1.0)
        >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0].tolist()
        [-1.0, -1.0]
    """
    return with_rate(
        scale_by_preconditioned_momentum(*args, **options), learning_rate
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
    learning_rate: Rate, *args: Any, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_delta_momentum` with a learning rate behind it.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = delta_momentum(0.5)
        >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0].tolist()
        [-0.5, -0.5]
    """
    return with_rate(scale_by_delta_momentum(*args, **options), learning_rate)


def scale_by_feature_momentum(
    feature_map: MatrixFunction,
    retention: float | jax.Array = 0.9,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum of features, :math:`m \leftarrow \alpha m + P \phi(g)` (51).

    Args:
        feature_map: :math:`\phi`, of matrices ``[b, m, n]`` to the same shape.
        retention: :math:`\alpha`.
        **options: of :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_feature_momentum(jnp.sign)
        >>> g = jnp.array([3.0, -0.1])
        >>> tx.update(g, tx.init(g))[0].tolist()
        [1.0, -1.0]
    """
    return scale_by_memory(
        feature_map=feature_map, retention=retention, **options
    )


def feature_momentum(
    learning_rate: Rate, *args: Any, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_feature_momentum` with a learning rate behind it.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = feature_momentum(1.0, jnp.sign)
        >>> g = jnp.array([3.0, -0.1])
        >>> tx.update(g, tx.init(g))[0].tolist()
        [-1.0, 1.0]
    """
    return with_rate(scale_by_feature_momentum(*args, **options), learning_rate)


def _length(g):
    """``max(1, |g|)`` of each matrix, ``[b, 1, 1]``."""
    return jnp.maximum(safe_norm(g, (-2, -1)), 1)
