"""How a memory's mapping is scored (its attentional bias).

An objective is one function of the memory's output and the value it should
have given. Its gradient is taken by autodiff, so a new objective is one
function: ``Objective("huber", lambda y, v: optax.huber_loss(y, v).sum(-1))``.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["OBJECTIVES", "Objective", "dot_product", "l2"]


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


l2 = Objective("l2", lambda y, v: 0.5 * jnp.square(y - v).sum(-1), 1.0)
dot_product = Objective("dot_product", lambda y, v: -(y * v).sum(-1), 0.0)

OBJECTIVES = {o.name: o for o in (l2, dot_product)}
