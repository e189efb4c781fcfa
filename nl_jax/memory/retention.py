r"""How a memory holds on to what it knows (its retention).

A step of size :math:`\eta` towards what is new minimises, with a penalty for
leaving what is kept, arXiv 2504.13173; each penalty is one function here:

- ``decay``: the kept share :math:`\alpha_t` of the gates, nothing else;
- ``channel``: a share per channel of the key, ``log_alpha [..., T, d]``;
- ``mean``: averages over a chunk (TTT), see :func:`associative_memory`;
- ``l2`` (:func:`l2_decay`): :math:`W / (1 + \lambda \eta)`, weight decay;
- :func:`elastic`: soft threshold, then as ``l2``: small weights become zero;
- :func:`lq`: the kept :math:`A` grows freely and the weights are
  :math:`A / \|A\|_q^{q-2}` (MIRAS' Moneta);
- :func:`kl`: the kept :math:`A` are logits and the weights of each output are
  their softmax, a point of a scaled simplex (MIRAS' Memora).
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
    """A penalty for leaving what is kept, in closed form.

    Attributes:
        name: what users type.
        weights: ``kept -> weights``, for every layer ``[..., d_in, d_out]``.
        after: ``(kept, eta) -> kept``, after every write.
        channels: gates hold a share per channel of the key.
        mean: a chunk's gradients are averaged instead of summed.
        gated: layers learn the kept share of each token.
        words: for the level table; the name if ``None``.
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
        """Whether what is kept are the weights themselves."""
        return self.weights is _weights

    @property
    def linear(self) -> bool:
        """Whether a chunk keeps the delta memory's parallel form."""
        return self.bare and self.after is _after and not self.channels


def l2_decay(strength: float = 0.01) -> Retention:
    """Returns weight decay: minimise the loss plus ``strength |W|^2 / 2``.

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
    """Returns elastic net: ``sparsity |W|_1 + strength |W|^2 / 2``.

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
    """Returns the retention of MIRAS' Moneta, its ``l_q`` norm per matrix.

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
        # The largest in front: fourth powers of large weights overflow.
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
        scale: sum of the weights into each output, in ``sqrt(d_in)``, at
            which they are as large as a matrix's usually are.

    Example:
        >>> import jax.numpy as jnp
        >>> kl(1.0).weights(jnp.zeros((4, 1)))[:, 0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive")

    def weights(kept):
        root = kept.shape[-2] ** 0.5
        # Logits in units of weights: a write moves the one as the other.
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
"""By name; those with a number have its default."""
