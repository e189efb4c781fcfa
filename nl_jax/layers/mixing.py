"""Parameters that mixers share: projections, short convolutions, gates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from nl_jax.layers.norms import rms_norm
from nl_jax.layers.short_conv import silu_conv
from nl_jax.memory.packed import Packed

_RANK = 16


@dataclasses.dataclass(frozen=True)
class Declare:
    """Declares a module's float32 parameters and casts them to its dtype."""

    module: nn.Module
    dtype: Any = None
    """Dtype of products; ``None`` leaves parameters as they are."""

    def __call__(self, name, init, shape, axes):
        """Returns a parameter with logical axis names."""
        init = nn.with_logical_partitioning(init, axes)
        leaf = self.module.param(name, init, shape, jnp.float32)
        return leaf if self.dtype is None else leaf.astype(self.dtype)

    def dense(self, name, d_in, d_out, to, come_from="embed"):
        """Returns a projection ``[d_in, d_out]``."""
        init = nn.initializers.lecun_normal()
        return self(name, init, (d_in, d_out), (come_from, to))

    def taps(self, name, width, d):
        """Returns the kernel of a short convolution, ``[width, d]``."""
        init = nn.initializers.normal(width**-0.5)
        return self(name, init, (width, d), (None, "mixer"))

    def memory(self, name, shapes, gains, lead=(), axes=()):
        """Returns initial memories, ``[*lead, d_in, d_out]`` per layer."""
        axes = (*axes, "heads", "memory_in", "memory_out")
        return tuple(
            self(
                f"{name}_{index}",
                nn.initializers.normal(gain / shape[0] ** 0.5),
                (*lead, *shape),
                axes,
            )
            for index, (shape, gain) in enumerate(
                zip(shapes, gains, strict=True)
            )
        )

    def per_head(self, name, heads, value):
        """Returns one parameter per head, ``[H]``."""
        init = nn.initializers.constant(value)
        return self(name, init, (heads,), ("heads",))

    def gate(self, name, x, heads, bias):
        """Returns gate logits ``[B, H, T]`` of ``x``, at least float32."""
        w = self.dense(f"w_{name}", x.shape[-1], heads, "heads")
        b = self.per_head(f"b_{name}", heads, bias)
        return _wide(x @ w + b).swapaxes(1, 2)

    def channel_gate(self, name, x, heads, bias):
        """Returns gate logits ``[B, H, T, d]`` of ``x``, at least float32.

        The projection has low rank, as in GLA and RWKV-7.
        """
        d = x.shape[-1]
        rank = min(_RANK, d)
        down = self.dense(f"w_{name}_down", d, rank, None)
        up = self.dense(f"w_{name}_up", rank, d, "mixer", None)
        init = nn.initializers.constant(bias)
        b = self(f"b_{name}", init, (d,), ("mixer",))
        return split_heads(_wide(x @ down @ up + b), heads)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def empty_tails(
    batch_size: int,
    conv_width: int,
    d: int,
    dtype: Any,
    widths: Mapping[str, int] | None = None,
):
    """Returns the tails of :func:`mix` at the start of a stream."""
    taps = max(conv_width - 1, 0)
    widths = widths or dict.fromkeys("qkv", d)
    return {
        name: jnp.zeros((batch_size, taps, width), dtype)
        for name, width in widths.items()
    }


def mix(
    declare: Declare,
    x,
    tails,
    conv_width: int,
    widths: Mapping[str, int] | None = None,
    bias: bool = False,
    packed: Packed | None = None,
):
    """Projects ``x``, ``[B, T, D]``, to q, k, v with convolutions and SiLU.

    ``tails`` are the raw q, k, v before ``x``, ``[B, conv_width - 1, D]`` each;
    ``conv_width=0`` only projects. q, k and v have ``widths`` channels, or
    ``D`` each if ``None``; ``bias`` adds one to each projection; ``packed``
    tells documents apart. Returns ``(mixed, tails)``, mappings with keys q, k
    and v.
    """
    d = x.shape[-1]
    mixed, after = {}, {}
    for name, width in (widths or dict.fromkeys("qkv", d)).items():
        raw = x @ declare.dense(f"w_{name}", d, width, "mixer")
        if bias:
            zeros = nn.initializers.zeros
            raw = raw + declare(f"b_{name}", zeros, (width,), ("mixer",))
        mixed[name], after[name] = raw, tails[name]
        if conv_width:
            kernel = declare.taps(f"conv_{name}", conv_width, width)
            mixed[name], after[name] = silu_conv(
                raw, kernel, tails[name], packed
            )
    return mixed, after


def split_heads(x, heads: int):
    """Splits channels into heads, ``[B, T, D] -> [B, H, T, d]``."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def normalize_heads(declare: Declare, y):
    """Normalises ``[B, H, T, d]`` to a scaled ``[B, T, H, d]``.

    Outputs of the first tokens, multiples of ``q k``, may be close to zero.
    ``eps``, that of the published models, bounds how far roundings grow there.
    """
    shape = (y.shape[1], y.shape[-1])
    ones = nn.initializers.ones
    scale = declare("out_scale", ones, shape, ("heads", None))
    return rms_norm(y.swapaxes(1, 2), eps=1e-5) * scale
