r"""The continuum memory system: a chain of MLPs, each at its own frequency.

arXiv 2512.24695, section 7.1: level :math:`\ell` is an MLP whose weights move
every :math:`C^{(\ell)}` tokens by the sum of its gradients over them (71);
levels form a chain (70, 73), the fastest first, stand side by side (74), or
are nested: a chain in which a slower level's step also moves the point to which
the next faster one then returns (72). With one level all of them are the
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
import optax

from nl_jax.array_typing import Stream
from nl_jax.checks import check_choice
from nl_jax.layers.norms import rms_norm
from nl_jax.optimizers import scale_by_delta_momentum, scale_by_m3

__all__ = ["INNER_OPTIMIZERS", "CMSConfig", "ContinuumMemory", "FastLevel"]

INNER_OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.identity(),
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(),
    "delta_momentum": scale_by_delta_momentum(0.9),
    "m3": scale_by_m3(),
}
"""Directions in which a level steps, before its rate; ascent."""

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
    form: Literal["sequential", "independent", "nested"] = "sequential"
    """Levels in a chain; side by side, with learned weights; or a chain whose
    slower levels learn the start of the next faster one (``next_token``)."""
    hidden: float = 2.0
    """Hidden width of each level's SwiGLU, in units of ``d_model``."""
    objective: Literal["outer", "next_token"] = "outer"
    """Where a level's gradient comes from: the training loss through the
    optimizer, or the model's own next-token loss while it reads."""
    rate: float = 0.01
    """Initial inner learning rate of each level (``next_token``); each is
    learned as a factor of this one, so 0 is the static network, exactly."""
    inner: str | tuple[str, ...] = "sgd"
    """How levels step (``next_token``), out of ``INNER_OPTIMIZERS``; one for
    all or one for each."""
    first_order: bool = False
    """Whether the training gradient ignores how the inner gradients depend
    on the weights (``next_token``)."""
    layers: int = 0
    """How many of the last blocks learn in context; 0 for all."""

    def __post_init__(self):
        object.__setattr__(self, "periods", tuple(self.periods))
        if not isinstance(self.inner, str):
            object.__setattr__(self, "inner", tuple(self.inner))
        forms = ("sequential", "independent", "nested")
        check_choice("cms.form", self.form, forms)
        objectives = ("outer", "next_token")
        check_choice("cms.objective", self.objective, objectives)
        for name in (
            (self.inner,) if isinstance(self.inner, str) else self.inner
        ):
            check_choice("cms.inner", name, INNER_OPTIMIZERS)
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
        if len(self.optimizers) != len(self.periods):
            raise ValueError(
                f"cms.inner={self.inner} must be one name or one for each of "
                f"the {len(self.periods)} levels"
            )
        if self.form == "nested" and self.objective != "next_token":
            raise ValueError(
                "cms.form='nested' goes with objective='next_token': levels "
                "return to their start within a context"
            )
        if self.hidden <= 0:
            raise ValueError(f"cms.hidden={self.hidden} must be positive")
        if self.rate < 0:
            raise ValueError(f"cms.rate={self.rate} must not be negative")
        if self.layers < 0:
            raise ValueError(f"cms.layers={self.layers} must not be negative")

    @property
    def optimizers(self) -> tuple[optax.GradientTransformation, ...]:
        """How each level steps."""
        names = self.inner
        if isinstance(names, str):
            names = (names,) * len(self.periods)
        return tuple(INNER_OPTIMIZERS[name] for name in names)


class ContinuumMemory(nn.Module):
    """Residual SwiGLU levels.

    In a chain, ``h <- h + MLP_l(norm_l(h))``, or side by side, ``x + sum_l
    share_l MLP_l(norm_l(x))``.

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
        total = None
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
            if self.config.form == "independent":
                share = declare(f"{level}_share", ones, (), ())
                y = share.astype(x.dtype) * _swiglu(weights, rms_norm(x, scale))
                total = y if total is None else total + y
            else:
                x = x + _swiglu(weights, rms_norm(x, scale))
        return x if total is None else x + total

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
