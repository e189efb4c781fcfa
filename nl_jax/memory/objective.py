"""How a memory's mapping is scored (its attentional bias).

An objective is one function of the memory's output and the value it should
have given. Its gradient is taken by autodiff, so a new objective is one
function: ``Objective("l1", lambda y, v: jnp.abs(y - v).sum(-1))``.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["OBJECTIVES", "Objective", "dot_product", "huber", "l2", "lp"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss per token.

    Attributes:
        name: what users type.
        loss: ``(y, v) -> loss``, ``[..., d], [..., d] -> [...]``.
        curvature: ``c`` if the gradient of the loss is ``c y - v``, else
            ``None``: what is affine has cheaper forms.
    """

    name: str
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    curvature: float | jax.Array | None = None

    def gradient(self, y: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the surprise, the gradient of the loss at ``y``."""
        return jax.grad(lambda y: self.loss(y, v).sum())(y)


def huber(delta: float = 1.0) -> Objective:
    r"""Returns L2 up to an error of length ``delta``, linear beyond.

    Errors that no value explains then move a memory by a bounded step (MIRAS'
    Yaad, arXiv 2504.13173): the gradient is the error, shortened to ``delta``.

    Example:
        >>> import jax.numpy as jnp
        >>> y, v = jnp.array([3.0, 4.0]), jnp.zeros(2)
        >>> huber().gradient(y, v).round(3).tolist()
        [0.6000000238418579, 0.800000011920929]
    """

    def loss(y, v):
        square = jnp.square(y - v).sum(-1)
        far = square > delta**2
        size = jnp.sqrt(jnp.where(far, square, delta**2))
        return jnp.where(far, delta * (size - 0.5 * delta), 0.5 * square)

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

OBJECTIVES = {o.name: o for o in (l2, dot_product, huber(), lp())}
"""By name; those with a number have its default."""
