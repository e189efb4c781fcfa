r"""The continuum memory system: a chain of MLPs, each at its own frequency.

arXiv 2512.24695, section 7.1: level :math:`\ell` is an MLP whose weights move
every :math:`C^{(\ell)}` tokens by the sum of its gradients over them (71);
levels form a chain (70, 73), the fastest first. With one level this is the
feed-forward block of a Transformer.

This file is a level's forward pass and parameters. Who moves the weights is
the config's ``objective``: the optimizer (``"outer"``), or the model's own loss
on what it has just read (``"next_token"``, :mod:`nl_jax.models.next_token`).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.layers.norms import rms_norm

__all__ = ["CMSConfig", "ContinuumMemory", "FastLevel"]

FastLevel = dict[str, jax.Array]
"""Fast weights of one level: ``gate``, ``up``, ``down``."""


@dataclasses.dataclass(frozen=True)
class CMSConfig:
    """Levels of a continuum memory and how they learn.

    Raises:
        ValueError: at construction, naming the field, its value and what is
            allowed.
    """

    periods: tuple[int, ...] = (1,)
    """Updates of each level are this far apart, fastest first, each dividing
    the next: optimizer steps with ``objective="outer"``, tokens else."""
    hidden: float = 2.0
    """Hidden width of each level's SwiGLU, in units of ``d_model``."""
    objective: Literal["outer", "next_token"] = "outer"
    """Where a level's gradient comes from: the training loss through the
    optimizer, or the model's own next-token loss while it reads."""
    rate: float = 0.01
    """Initial inner learning rate of each level (``next_token``); each is
    learned as a factor of this one, so 0 is the static network, exactly."""
    first_order: bool = False
    """Whether the training gradient ignores how the inner gradients depend
    on the weights (``next_token``)."""
    layers: int = 0
    """How many of the last blocks learn in context; 0 for all."""

    def __post_init__(self):
        object.__setattr__(self, "periods", tuple(self.periods))
        if self.objective not in ("outer", "next_token"):
            raise ValueError(
                f"cms.objective={self.objective!r} must be 'outer' or "
                "'next_token'"
            )
        if not self.periods or any(
            not isinstance(p, int) or p < 1 for p in self.periods
        ):
            raise ValueError(
                f"cms.periods={self.periods} must hold integers >= 1"
            )
        for fast, slow in zip(self.periods, self.periods[1:], strict=False):
            if slow % fast:
                raise ValueError(
                    f"cms.periods={self.periods}: each must divide the next, "
                    f"but {fast} does not divide {slow}"
                )
        if self.objective == "next_token" and self.periods[0] < 2:
            raise ValueError(
                f"cms.periods={self.periods}: with objective='next_token' the "
                "fastest must be at least 2 tokens, one of them a target"
            )
        if self.hidden <= 0:
            raise ValueError(f"cms.hidden={self.hidden} must be positive")
        if self.rate < 0:
            raise ValueError(f"cms.rate={self.rate} must not be negative")
        if self.layers < 0:
            raise ValueError(f"cms.layers={self.layers} must not be negative")


class ContinuumMemory(nn.Module):
    """A chain of residual SwiGLU levels, ``h <- h + MLP_l(norm_l(h))``.

    Attributes:
        config: see :class:`CMSConfig`.
        d_model: model width ``D``.
        dtype: of products; parameters stay float32.
    """

    config: CMSConfig
    d_model: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Stream, fast: tuple[FastLevel, ...] | None = None
    ) -> Stream:
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape.

        Args:
            x: tokens.
            fast: per level the weights of each row, ``[B, d_in, d_out]``, in
                place of the slow ones; ``None`` for the slow ones.
        """
        hidden = round(self.config.hidden * self.d_model)
        shapes = {
            "gate": ((self.d_model, hidden), ("embed", "mlp")),
            "up": ((self.d_model, hidden), ("embed", "mlp")),
            "down": ((hidden, self.d_model), ("mlp", "embed")),
        }
        dense = nn.initializers.lecun_normal()

        def declare(name, init, shape, axes) -> jax.Array:
            init = nn.with_logical_partitioning(init, axes)
            return self.param(name, init, shape, jnp.float32)

        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        for index in range(len(self.config.periods)):
            level = f"level_{index + 1}"
            scale = declare(f"{level}_scale", ones, (self.d_model,), ("embed",))
            weights = {
                name: declare(f"{level}_{name}", dense, shape, axes)
                for name, (shape, axes) in shapes.items()
            }
            if self.config.objective == "next_token":
                declare(f"{level}_log_rate", zeros, (), ())
            weights = weights if fast is None else fast[index]
            x = x + _swiglu(weights, rms_norm(x, scale))
        return x

    @staticmethod
    def initial_fast(params, config: CMSConfig) -> tuple[FastLevel, ...]:
        """Picks the weights that become fast out of this module's parameters.

        Leading axes (a stack of blocks) are kept.
        """
        return tuple(
            {
                name: params[f"level_{index + 1}_{name}"]
                for name in ("gate", "up", "down")
            }
            for index in range(len(config.periods))
        )

    @staticmethod
    def rates(params, config: CMSConfig) -> tuple[jax.Array, ...]:
        """Returns each level's inner learning rate."""
        return tuple(
            config.rate * jnp.exp(params[f"level_{index + 1}_log_rate"])
            for index in range(len(config.periods))
        )


def _swiglu(weights, x):
    gate, up, down = (
        weights[name].astype(x.dtype) for name in ("gate", "up", "down")
    )
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down
