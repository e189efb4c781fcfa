"""Normalisation, computed in float32 and returned in the input's dtype."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Channel, Channels
from nl_jax.checks import check_fields


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """The norm before each layer of the residual stream.

    Raises:
        ValueError: for an invalid field, naming it and the allowed values.
    """

    kind: Literal["rms", "layer"] = "rms"
    """``"rms"`` divides by the root mean square; ``"layer"`` standardises by
    mean and variance and adds a learned bias."""
    eps: float = 1e-6
    """Added to the mean square or variance before the root."""

    def __post_init__(self):
        check_fields(self, "norm.")
        if not self.eps > 0:
            raise ValueError(f"norm.eps={self.eps} must be positive")


def rms_norm(
    x: Channels, scale: Channel | None = None, eps: float = 1e-6
) -> Channels:
    """Divides by the root mean square of the last axis.

    Args:
        x: ``[..., d]``.
        scale: factor per channel, broadcast against ``x``, or ``None``.
        eps: added to the mean square before the root.

    Example:
        >>> import jax.numpy as jnp
        >>> rms_norm(jnp.array([3.0, 3.0])).round(3).tolist()
        [1.0, 1.0]
    """
    y = _divided(x, jnp.mean, eps)
    return y if scale is None else y * scale.astype(x.dtype)


def layer_norm(
    x: Channels, scale: Channel, bias: Channel, eps: float = 1e-5
) -> Channels:
    """Subtracts the last axis' mean and divides by its standard deviation.

    Args:
        x: ``[..., d]``.
        scale: factor per channel, broadcast against ``x``.
        bias: added per channel.
        eps: added to the variance before the root.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([1.0, 3.0])
        >>> layer_norm(x, jnp.ones(2), jnp.ones(2)).round(3).tolist()
        [0.0, 2.0]
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype) * scale.astype(x.dtype) + bias.astype(x.dtype)


def declare_norm(declare, norm: NormConfig, prefix: str, d: int) -> dict:
    """Declares a norm's parameters and returns them by name.

    The names are ``{prefix}_scale`` and ``{prefix}_bias``, each of ``d``
    channels; ``declare`` maps ``(name, init, shape, axes)`` to a parameter.
    """
    inits = {"scale": jax.nn.initializers.ones}
    if norm.kind == "layer":
        inits["bias"] = jax.nn.initializers.zeros
    return {
        f"{prefix}_{name}": declare(f"{prefix}_{name}", init, (d,), ("embed",))
        for name, init in inits.items()
    }


def normalize(norm: NormConfig, params, prefix: str, x: Channels) -> Channels:
    """Normalises with the parameters of :func:`declare_norm`.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"norm_scale": jnp.full(2, 2.0)}
        >>> y = normalize(NormConfig(), params, "norm", jnp.full(2, 3.0))
        >>> y.round(3).tolist()
        [2.0, 2.0]
    """
    scale = params[f"{prefix}_scale"]
    if norm.kind == "layer":
        return layer_norm(x, scale, params[f"{prefix}_bias"], norm.eps)
    return rms_norm(x, scale, norm.eps)


def l2_normalize(x: Channels, eps: float = 1e-6) -> Channels:
    """Divides by the L2 norm of the last axis, with ``eps`` inside the root.

    Example:
        >>> import jax.numpy as jnp
        >>> l2_normalize(jnp.array([3.0, 4.0])).round(3).tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    return _divided(x, jnp.sum, eps)


def _divided(x, total, eps):
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y * jax.lax.rsqrt(total(jnp.square(y), -1, keepdims=True) + eps)
    return y.astype(x.dtype)
