r"""Momentum with preconditioned values, with a delta rule, and of features.

Special cases of :func:`scale_by_memory` from section 4 of arXiv 2512.24695. As
in optax, the memory accumulates gradients and the learning rate changes the
sign.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax.memory import Objective
from nl_jax.optimizers.matrices import MatrixFunction
from nl_jax.optimizers.memory import scale_by_memory
from nl_jax.optimizers.rate import with_rate
from pallas_kernels.newton_schulz import safe_norm


def scale_by_preconditioned_momentum(
    preconditioner: jax.Array | MatrixFunction | None = None,
    retention: float | jax.Array = 0.9,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum of preconditioned gradients (eq. 46-47).

    .. math:: m \leftarrow \alpha m + P g

    Without a preconditioner it is ``optax.trace``.

    Args:
        preconditioner: ``P``, an array ``[m, m]`` that fits every leaf, or a
            function from the gradient's matrices ``[b, m, n]`` to
            ``[b, m, m]``.
        retention: :math:`\alpha`, the decay rate of the momentum.
        **options: options of :func:`scale_by_memory`.

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


preconditioned_momentum = with_rate(scale_by_preconditioned_momentum)


def delta_objective(ratio: float | jax.Array) -> Objective:
    r"""Returns the objective :math:`\tfrac{r}{2}\|y\|^2 - \langle y, v\rangle`.

    Args:
        ratio: :math:`r`; 1 is L2 up to a constant, 0 the dot product.
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
    r"""Momentum that decays along the directions of new gradients (eq. 48-49).

    .. math:: m \leftarrow m\,(\alpha I - \rho\, g^\top g) + P g

    For a vector :math:`g^\top g` is :math:`\|g\|^2`. As printed, the rule
    diverges where :math:`\rho\|g\|^2 > 1 + \alpha`.

    Args:
        rho: :math:`\rho`, the strength of the delta term, below 1 if
            normalised.
        retention: :math:`\alpha`, the decay rate of the momentum.
        normalize: whether to divide :math:`g^\top g` by
            :math:`\max(1, \|g\|^2)`, which prevents divergence.
        **options: options of :func:`scale_by_memory`.

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


delta_momentum = with_rate(scale_by_delta_momentum)


def scale_by_feature_momentum(
    feature_map: MatrixFunction,
    retention: float | jax.Array = 0.9,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum of features of gradients (eq. 51).

    .. math:: m \leftarrow \alpha m + P \phi(g)

    Args:
        feature_map: :math:`\phi`, from matrices ``[b, m, n]`` to the same
            shape.
        retention: :math:`\alpha`, the decay rate of the momentum.
        **options: options of :func:`scale_by_memory`.

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


feature_momentum = with_rate(scale_by_feature_momentum)


def _length(g):
    """``max(1, |g|)`` of each matrix, ``[b, 1, 1]``."""
    return jnp.maximum(safe_norm(g, (-2, -1)), 1)
