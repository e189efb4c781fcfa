r"""Momentum with preconditioned values, with a delta rule, and of features.

Special cases of :func:`scale_by_memory` from section 4 of arXiv 2512.24695. As
in optax, the memory accumulates gradients and the learning rate changes the
sign.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import choose
from nl_jax.memory import Objective
from nl_jax.optimizers.matrices import MatrixFunction
from nl_jax.optimizers.memory import scale_by_memory
from nl_jax.optimizers.rate import scale_by_rate
from nl_jax.optimizers.sharding import by_share
from pallas_kernels.newton_schulz import newton_schulz, safe_norm

MATRIX_FUNCTIONS: dict[str, MatrixFunction] = {
    "sign": jnp.sign,
    "tanh": jnp.tanh,
    "arcsinh": jnp.arcsinh,
    "newton_schulz": functools.partial(by_share, newton_schulz),
}
"""Feature maps and outputs by name, to which users may add their own."""


def scale_by_preconditioned_momentum(
    preconditioner: jax.Array | MatrixFunction | None = None,
    retention: float | jax.Array = 0.9,
    *,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum of preconditioned gradients (eq. 46-47).

    .. math:: m \leftarrow \alpha m + P g

    Without a preconditioner it is ``optax.trace``.

    Args:
        preconditioner: ``P``, an array ``[m, m]`` that fits every leaf, or a
            function from the gradient's matrices ``[b, m, n]`` to
            ``[b, m, m]``.
        retention: :math:`\alpha`, the decay rate of the momentum.
        period: see :func:`scale_by_memory`.
        dimension_numbers: see :func:`scale_by_memory`.
        state_dtype: see :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_preconditioned_momentum(
        ...     lambda g: 2 * jnp.eye(g.shape[1])
        ... )
        >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
        >>> updates.tolist()
        [2.0, 2.0]
    """
    return scale_by_memory(
        value=preconditioner,
        retention=retention,
        period=period,
        dimension_numbers=dimension_numbers,
        state_dtype=state_dtype,
    )


def preconditioned_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    preconditioner: jax.Array | MatrixFunction | None = None,
    retention: float | jax.Array = 0.9,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_preconditioned_momentum` and a learning rate."""
    return optax.chain(
        scale_by_preconditioned_momentum(
            preconditioner,
            retention,
            period=period,
            dimension_numbers=dimension_numbers,
            state_dtype=state_dtype,
        ),
        scale_by_rate(learning_rate),
    )


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
    rho: float | jax.Array = 0.1,
    retention: float | jax.Array = 0.9,
    *,
    normalize: bool = True,
    preconditioner: jax.Array | MatrixFunction | None = None,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum that decays along the directions of new gradients (eq. 48-49).

    .. math:: m \leftarrow m\,(\alpha I - \rho\, g^\top g) + P g

    For a vector :math:`g^\top g` is :math:`\|g\|^2`. As printed
    (``normalize=False``), it diverges where :math:`\rho\|g\|^2 > 1 + \alpha`.

    Args:
        rho: :math:`\rho`, the strength of the delta term, below 1 if
            normalised.
        retention: :math:`\alpha`, the decay rate of the momentum.
        normalize: whether to divide :math:`g^\top g` by
            :math:`\max(1, \|g\|^2)`, which prevents divergence.
        preconditioner: ``P``, see :func:`scale_by_preconditioned_momentum`.
        period: see :func:`scale_by_memory`.
        dimension_numbers: see :func:`scale_by_memory`.
        state_dtype: see :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_delta_momentum(rho=0.5, retention=1.0)
        >>> g = jnp.array([1.0, 0.0])
        >>> _, state = tx.update(g, tx.init(g))
        >>> updates, _ = tx.update(g, state)
        >>> updates.tolist()  # 1 (1 - 0.5) + 1
        [1.5, 0.0]
    """

    def value(g):  # Takes the length out of the keys, but not of P g.
        if preconditioner is None:
            return _length(g)
        made = preconditioner(g) if callable(preconditioner) else preconditioner
        return _length(g) * made

    return scale_by_memory(
        "linear",
        delta_objective(rho),
        retention=retention,
        feature_map=(lambda g: g / _length(g)) if normalize else None,
        value=value if normalize else preconditioner,
        period=period,
        dimension_numbers=dimension_numbers,
        state_dtype=state_dtype,
    )


def delta_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    rho: float | jax.Array = 0.1,
    retention: float | jax.Array = 0.9,
    normalize: bool = True,
    preconditioner: jax.Array | MatrixFunction | None = None,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_delta_momentum` and a learning rate."""
    return optax.chain(
        scale_by_delta_momentum(
            rho,
            retention,
            normalize=normalize,
            preconditioner=preconditioner,
            period=period,
            dimension_numbers=dimension_numbers,
            state_dtype=state_dtype,
        ),
        scale_by_rate(learning_rate),
    )


def scale_by_feature_momentum(
    feature_map: str | MatrixFunction = "sign",
    retention: float | jax.Array = 0.9,
    *,
    preconditioner: jax.Array | MatrixFunction | None = None,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum of features of gradients (eq. 51).

    .. math:: m \leftarrow \alpha m + P \phi(g)

    Args:
        feature_map: :math:`\phi`, a name in ``MATRIX_FUNCTIONS``, or a function
            from matrices ``[b, m, n]`` to the same shape.
        retention: :math:`\alpha`, the decay rate of the momentum.
        preconditioner: ``P``, see :func:`scale_by_preconditioned_momentum`.
        period: see :func:`scale_by_memory`.
        dimension_numbers: see :func:`scale_by_memory`.
        state_dtype: see :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_feature_momentum("sign")
        >>> g = jnp.array([3.0, -0.1])
        >>> tx.update(g, tx.init(g))[0].tolist()
        [1.0, -1.0]
    """
    return scale_by_memory(
        feature_map=choose("feature_map", feature_map, MATRIX_FUNCTIONS),
        value=preconditioner,
        retention=retention,
        period=period,
        dimension_numbers=dimension_numbers,
        state_dtype=state_dtype,
    )


def feature_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    feature_map: str | MatrixFunction = "sign",
    retention: float | jax.Array = 0.9,
    preconditioner: jax.Array | MatrixFunction | None = None,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_feature_momentum` and a learning rate."""
    return optax.chain(
        scale_by_feature_momentum(
            feature_map,
            retention,
            preconditioner=preconditioner,
            period=period,
            dimension_numbers=dimension_numbers,
            state_dtype=state_dtype,
        ),
        scale_by_rate(learning_rate),
    )


def _length(g):
    """``max(1, |g|)`` of each matrix, ``[b, 1, 1]``."""
    return jnp.maximum(safe_norm(g, (-2, -1)), 1)
