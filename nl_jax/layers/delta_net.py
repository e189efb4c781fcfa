"""DeltaNet, plain or gated: a matrix memory under the delta rule.

Yang et al., arXiv 2406.06484 and 2412.06464: ``W <- alpha W (I - beta k k^T) +
beta v k^T``, read after the write. One head's memory is a ``d x d`` matrix, so
the state does not grow with the sequence.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.layers.norms import l2_normalize, rms_norm
from nl_jax.layers.short_conv import next_tail, short_conv
from nl_jax.memory import delta_scan

__all__ = ["DeltaNet", "DeltaNetConfig", "DeltaNetState"]


@dataclasses.dataclass(frozen=True)
class DeltaNetConfig:
    """Choices of :class:`DeltaNet`."""

    gated: bool = False
    """Whether the memory forgets (gated DeltaNet)."""
    beta_max: float = 1.0
    """Largest step; 2 lets the memory track states."""
    chunk_size: int = 64
    """Tokens processed in parallel; results do not depend on it."""
    conv_width: int = 4
    """Taps of the causal convolution on q, k and v."""

    def __post_init__(self):
        if not 0 < self.beta_max <= 2:
            raise ValueError(f"beta_max={self.beta_max} must be in (0, 2]")
        for name in ("chunk_size", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1"
                )


class DeltaNetState(NamedTuple):
    """Fast state, batch first."""

    memory: jax.Array
    """``[B, H, d, d]`` float32."""
    tails: dict[str, jax.Array]
    """Raw q, k, v of the last tokens, ``[B, width - 1, D]`` each."""


class DeltaNet(nn.Module):
    """A sequence mixer: (gated) delta rule with short convolutions.

    Attributes:
        config: see :class:`DeltaNetConfig`.
        d_model: model width ``D``.
        n_heads: heads of width ``d = D / n_heads``.
        dtype: of products; parameters and fast state stay float32.
    """

    config: DeltaNetConfig
    d_model: int
    n_heads: int
    dtype: jnp.dtype = jnp.float32

    def initial_state(self, batch_size: int) -> DeltaNetState:
        """Returns the empty memories of ``batch_size`` rows."""
        width = self.d_model // self.n_heads
        shape = (batch_size, self.config.conv_width - 1, self.d_model)
        return DeltaNetState(
            jnp.zeros((batch_size, self.n_heads, width, width)),
            {name: jnp.zeros(shape, self.dtype) for name in ("q", "k", "v")},
        )

    @nn.compact
    def __call__(self, x: Stream, state=None, *, aligned: bool = False):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state.

        ``aligned`` is part of every mixer's signature; results here do not
        depend on where chunks begin.
        """
        del aligned
        config, d, heads = self.config, self.d_model, self.n_heads
        if d % heads:
            raise ValueError(f"n_heads={heads} must divide d_model={d}")

        def declare(name, init, shape, axes):
            init = nn.with_logical_partitioning(init, axes)
            return self.param(name, init, shape, jnp.float32).astype(self.dtype)

        state = self.initial_state(x.shape[0]) if state is None else state
        x = x.astype(self.dtype)
        dense = nn.initializers.lecun_normal()
        conv = nn.initializers.normal(config.conv_width**-0.5)
        mixed, tails = {}, {}
        for name in ("q", "k", "v"):
            raw = x @ declare(f"w_{name}", dense, (d, d), ("embed", "mixer"))
            kernel = declare(
                f"conv_{name}", conv, (config.conv_width, d), (None, "mixer")
            )
            tails[name] = next_tail(raw, state.tails[name])
            y = jax.nn.silu(short_conv(raw, kernel, state.tails[name]))
            y = y.reshape(*y.shape[:2], heads, d // heads)
            mixed[name] = y.swapaxes(1, 2)
        q, k = l2_normalize(mixed["q"]), l2_normalize(mixed["k"])

        def gate(name, bias):
            w = declare(f"w_{name}", dense, (d, heads), ("embed", "heads"))
            b = declare(
                f"b_{name}",
                nn.initializers.constant(bias),
                (heads,),
                ("heads",),
            )
            return (x @ w + b).astype(jnp.float32).swapaxes(1, 2)

        beta = config.beta_max * jax.nn.sigmoid(gate("beta", 0.0))
        log_alpha = jnp.zeros_like(beta)
        if config.gated:
            log_alpha = jax.nn.log_sigmoid(gate("alpha", 4.0))
        o, memory, _ = delta_scan(
            state.memory,
            None,
            k,
            mixed["v"] * beta[..., None].astype(self.dtype),
            q,
            log_alpha,
            beta * jnp.exp(log_alpha),
            chunk_size=config.chunk_size,
            read="after",
        )
        scale = declare(
            "out_scale",
            nn.initializers.ones,
            (heads, d // heads),
            ("heads", None),
        )
        y = rms_norm(o.swapaxes(1, 2)) * scale
        out = declare("w_out", dense, (d, d), ("mixer", "embed"))
        return y.reshape(x.shape) @ out, DeltaNetState(memory, tails)
