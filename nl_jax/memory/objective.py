"""Objectives: losses of a memory's mapping (its attentional bias).

An objective is a function of the memory's output and its target value, with
gradients by autodiff. A new one is a single function: ``Objective("l1", lambda
y, v: jnp.abs(y - v).sum(-1))``.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss per token.

    Attributes:
        name: name in configurations.
        loss: ``(y, v) -> loss``, ``[..., d], [..., d] -> [...]``; with
            ``threshold`` a third argument ``[...]``.
        curvature: ``c`` if the gradient of the loss is ``c y - v``, which
            permits cheaper forms, else ``None``.
        threshold: whether the loss takes a per-token threshold from the gates.
    """

    name: str
    loss: Callable[..., jax.Array]
    # Arrays have no hash, which configurations need.
    curvature: float | jax.Array | None = dataclasses.field(
        default=None, hash=False
    )
    threshold: bool = False

    def gradient(
        self, y: jax.Array, v: jax.Array, threshold: jax.Array | None = None
    ) -> jax.Array:
        """Returns the gradient of the loss at ``y``, the surprise.

        Raises:
            ValueError: if ``threshold`` is missing or unsupported.
        """
        if self.threshold != (threshold is not None):
            needed = "needs" if self.threshold else "takes no"
            raise ValueError(
                f"objective {self.name!r} {needed} gates.threshold"
            )
        extra = () if threshold is None else (threshold.astype(y.dtype),)
        return jax.grad(lambda y: self.loss(y, v, *extra).sum())(y)


@functools.cache
def check_curvature(objective: Objective) -> None:
    """Raises ``ValueError`` unless the gradient is ``curvature * y - v``.

    Example:
        >>> wrong = Objective(
        ...     "square", lambda y, v: ((y - v) ** 2).sum(-1), 1.0
        ... )
        >>> check_curvature(wrong)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: objective 'square' has curvature=1.0, but its gradient ...
    """
    with jax.ensure_compile_time_eval():
        y = jnp.linspace(-2.0, 1.0, 12).reshape(3, 4)
        v = jnp.linspace(3.0, -1.0, 12).reshape(3, 4)
        gradient = objective.gradient(y, v)
        expected = jnp.asarray(objective.curvature) * y - v
        if not jnp.allclose(gradient, expected, atol=1e-5):
            raise ValueError(
                f"objective {objective.name!r} has "
                f"curvature={objective.curvature}, but its gradient is not "
                "curvature * y - v"
            )


def huber(delta: float | None = 1.0) -> Objective:
    """Returns L2 up to an error of length ``delta``, linear beyond.

    Outliers then move a memory by a bounded step (MIRAS' Yaad, arXiv
    2504.13173): the gradient is the error, shortened to ``delta``.
    ``delta=None`` uses ``gates.threshold`` of each token.

    Example:
        >>> import jax.numpy as jnp
        >>> y, v = jnp.array([3.0, 4.0]), jnp.zeros(2)
        >>> huber().gradient(y, v).round(3).tolist()
        [0.6000000238418579, 0.800000011920929]
    """

    def loss(y, v, delta=delta):
        error = y - v  # Half precision cannot hold its square.
        error = error.astype(jnp.promote_types(error.dtype, jnp.float32))
        square = jnp.square(error).sum(-1)
        far = square > delta**2
        size = jnp.sqrt(jnp.where(far, square, 1))
        return jnp.where(far, delta * (size - 0.5 * delta), 0.5 * square)

    if delta is None:
        return Objective("gated_huber", loss, threshold=True)
    return Objective("huber", loss)


def lp(p: float = 3.0) -> Objective:
    r"""Returns :math:`\tfrac1p \sum_i |y_i - v_i|^p` (MIRAS' Moneta).

    Raises:
        ValueError: for ``p`` below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> lp(3.0).gradient(jnp.array([2.0, -1.0]), jnp.zeros(2)).tolist()
        [4.0, -1.0]
    """
    if p < 1:
        raise ValueError(f"p={p} must be at least 1")
    return Objective("lp", lambda y, v: (jnp.abs(y - v) ** p).sum(-1) / p)


l2 = Objective("l2", lambda y, v: 0.5 * jnp.square(y - v).sum(-1), 1.0)
dot_product = Objective("dot_product", lambda y, v: -(y * v).sum(-1), 0.0)

OBJECTIVES = {o.name: o for o in (l2, dot_product, huber(), huber(None), lp())}
"""Objectives by name, with default parameters."""
