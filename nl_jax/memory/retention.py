r"""Retention: how a memory keeps its old content.

A step of size :math:`\eta` minimises the loss of the new pair plus a penalty
for changing the memory (arXiv 2504.13173). The penalties:

- ``decay``: the gates' retention :math:`\alpha_t`, nothing else;
- ``channel``: one per channel of the key, ``log_alpha [..., T, d]``;
- ``mean``: averages over a chunk (TTT), see :func:`associative_memory`;
- ``l2`` (:func:`l2_decay`): :math:`W / (1 + \lambda \eta)`, weight decay;
- :func:`elastic`: soft threshold, then as ``l2``: small weights become zero;
- :func:`lq`: stores an unbounded :math:`A`, whose weights are
  :math:`A / \|A\|_q^{q-2}` (MIRAS' Moneta);
- :func:`kl`: stores logits :math:`A`, and each output's weights are their
  softmax, a point of a scaled simplex (MIRAS' Memora).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


def _weights(kept):
    return kept


def _after(kept, eta):
    del eta
    return kept


@dataclasses.dataclass(frozen=True)
class Retention:
    """A penalty for changing the memory, in closed form.

    Attributes:
        name: name in configurations.
        weights: ``kept -> weights``, from the stored matrix of each layer,
            ``[..., d_in, d_out]``.
        after: ``(kept, eta) -> kept``, applied after every write.
        channels: whether gates hold a retention per channel of the key.
        mean: whether a chunk's gradients are averaged instead of summed.
        gated: whether layers learn the retention of each token.
        words: name in the level table; ``name`` if ``None``.
    """

    name: str
    weights: Callable[[jax.Array], jax.Array] = _weights
    after: Callable[[jax.Array, jax.Array], jax.Array] = _after
    channels: bool = False
    mean: bool = False
    gated: bool = True
    words: str | None = None

    @property
    def bare(self) -> bool:
        """Whether the stored matrices are the weights themselves."""
        return self.weights is _weights

    @property
    def linear(self) -> bool:
        """Whether chunks have the delta memory's parallel form."""
        return self.bare and self.after is _after and not self.channels


def l2_decay(strength: float = 0.01) -> Retention:
    """Returns weight decay: the penalty ``strength |W|^2 / 2``.

    Example:
        >>> import jax.numpy as jnp
        >>> l2_decay(0.5).after(jnp.array([3.0]), jnp.array(1.0)).tolist()
        [2.0]
    """
    _check("strength", strength)
    return Retention(
        "l2",
        after=lambda kept, eta: kept / (1 + strength * eta),
        gated=False,
        words="weight decay",
    )


def elastic(sparsity: float = 0.001, strength: float = 0.01) -> Retention:
    """Returns the elastic net: ``sparsity |W|_1 + strength |W|^2 / 2``.

    Example:
        >>> import jax.numpy as jnp
        >>> step = elastic(1.0, 1.0).after
        >>> step(jnp.array([0.5, -3.0]), jnp.array(1.0)).tolist()
        [0.0, -1.0]
    """
    _check("sparsity", sparsity)
    _check("strength", strength)

    def after(kept, eta):
        size = jnp.maximum(jnp.abs(kept) - sparsity * eta, 0)
        return jnp.sign(kept) * size / (1 + strength * eta)

    return Retention("elastic", after=after, gated=False, words="elastic net")


def lq(q: float = 4.0) -> Retention:
    """Returns the retention of MIRAS' Moneta, with the ``l_q`` norm per matrix.

    Raises:
        ValueError: for ``q`` below 2.

    Example:
        >>> import jax.numpy as jnp
        >>> w = lq(4.0).weights(jnp.array([[2.0, 0.0], [0.0, 0.0]]))
        >>> round(float(w[0, 0]), 6)
        0.5
    """
    if q < 2:
        raise ValueError(f"q={q} must be at least 2")

    def weights(kept):
        # Factor out the largest: fourth powers of large weights overflow.
        top = jax.lax.stop_gradient(
            jnp.max(jnp.abs(kept), (-2, -1), keepdims=True)
        )
        top = jnp.where(top > 0, top, 1)
        power = (jnp.abs(kept / top) ** q).sum((-2, -1), keepdims=True)
        return kept / (top * jnp.maximum(power, 1e-30) ** (1 / q)) ** (q - 2)

    return Retention("lq", weights, words="l_q norm")


def kl(scale: float = 1.0) -> Retention:
    """Returns the retention of MIRAS' Memora: weights on a scaled simplex.

    Args:
        scale: sum of the weights into each output, in units of ``sqrt(d_in)``,
            which gives weights of the usual size.

    Example:
        >>> import jax.numpy as jnp
        >>> kl(1.0).weights(jnp.zeros((4, 1)))[:, 0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive")

    def weights(kept):
        root = kept.shape[-2] ** 0.5
        # Logits are scaled like weights, so that writes move both alike.
        return scale * root * jax.nn.softmax(root * kept, axis=-2)

    return Retention("kl", weights, words="KL on a simplex")


def _check(name, value):
    if not value >= 0:
        raise ValueError(f"{name}={value} must not be negative")


RETENTIONS = {
    r.name: r
    for r in (
        Retention("decay"),
        Retention("channel", channels=True, words="decay by channel"),
        Retention("mean", mean=True, gated=False, words="mean of a chunk"),
        l2_decay(),
        elastic(),
        lq(),
        kl(),
    )
}
"""Retentions by name, with default parameters."""
