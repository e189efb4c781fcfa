r"""The continuum memory system: a chain of MLPs, each at its own frequency.

arXiv 2512.24695, section 7.1: level :math:`\ell` is an MLP whose weights move
every :math:`C^{(\ell)}` tokens by the sum of its gradients over them (71);
levels form a chain (70, 73), the fastest first, stand side by side (74), or
are nested: a chain in which a slower level's step also moves the point to which
the next faster one then returns (72). With one level all of them are the
feed-forward block of a Transformer. Levels may also lie across depth, one MLP
in every block, as in a Transformer whose MLPs became levels (section 7.3).

This file is a level's forward pass and parameters. Who moves the weights is
the config's ``objective``: the optimizer (``"outer"``), the model's own loss on
what it has just read (``"next_token"``), or a level's own keys and values
(``"local"``).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.layers.continuum.cms_config import MATRICES, CMSConfig
from nl_jax.layers.continuum.local import LocalLevel, read_local
from nl_jax.layers.continuum.steps import CMSState, matmul
from nl_jax.layers.norms import NormConfig, declare_norm, normalize

FastLevel = dict[str, jax.Array]
"""Fast weights of one level: ``up`` and ``down``, and ``gate`` of a SwiGLU."""


class ContinuumMemory(nn.Module):
    """Residual MLPs, the levels.

    In a chain, ``h <- h + MLP_l(norm_l(h))``, or side by side, ``x + sum_l
    share_l MLP_l(norm_l(x))``.

    Attributes:
        config: see :class:`CMSConfig`.
        d_model: model width ``D``.
        dtype: of products; parameters stay float32.
        norm: in front of each level.
    """

    config: CMSConfig
    d_model: int
    dtype: jnp.dtype = jnp.float32
    norm: NormConfig = NormConfig()

    @nn.compact
    def __call__(
        self,
        x: Stream,
        fast: tuple[FastLevel, ...] | CMSState | None = None,
        *,
        aligned: bool = False,
    ) -> Any:
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape.

        Args:
            x: tokens.
            fast: per level the weights of each row, ``[B, d_in, d_out]``, in
                place of the slow ones; ``None`` for the slow ones. A state for
                levels that learn by their own keys and values meanwhile.
            aligned: rows stand where the fastest level's chunks begin.

        Returns:
            The outputs; with a state, they and the state behind them.
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
        matrices = MATRICES[self.config.mlp]
        total, local = None, []
        for index, level in enumerate(dict.fromkeys(self.config.prefixes)):
            prefix = level.removesuffix("_")
            norm = declare_norm(declare, self.norm, prefix, self.d_model)
            weights = {
                name: declare(f"{level}{name}", dense, *shapes[name])
                for name in matrices
            }
            if self.config.mlp == "gelu":
                for name in matrices:
                    shape, axes = (end[-1:] for end in shapes[name])
                    weights[f"{name}_bias"] = declare(
                        f"{level}{name}_bias", zeros, shape, axes
                    )
            share: Any = None
            key: Any = None
            value: Any = None
            rate: Any = None
            if self.config.objective == "local":
                square = (self.d_model, self.d_model), ("embed", "mlp")
                key = declare(f"{level}key", dense, *square)
                value = declare(f"{level}value", dense, *square)
            if self.config.objective != "outer":
                rate = declare(f"{level}log_rate", zeros, (), ())
                rate = self.config.rate * jnp.exp(rate)
            if self.config.form == "independent":
                share = declare(f"{level}share", ones, (), ())
            mlp = _MLPS[self.config.mlp]
            read = functools.partial(normalize, self.norm, norm, prefix)
            if isinstance(fast, CMSState):
                local.append(
                    LocalLevel(mlp, read, weights, key, value, rate, share)
                )
                continue
            if fast is not None:
                weights = weights | fast[index]
            y = mlp(weights, read(x))
            if share is None:
                x = x + y
            else:
                y = share.astype(x.dtype) * y
                total = y if total is None else total + y
        if isinstance(fast, CMSState):
            return read_local(self.config, local, x, fast, aligned=aligned)
        return x if total is None else x + total

    @staticmethod
    def initial_fast(
        params: Any, config: CMSConfig, n_layers: int | None = None
    ) -> tuple[FastLevel, ...]:
        """Picks the weights that become fast out of this module's parameters.

        Args:
            params: this module's.
            config: its configuration.
            n_layers: how many blocks the parameters are a stack of, cut then
                to those of each level; ``None`` for those of one block.
        """
        return tuple(
            {name: level[name] for name in MATRICES[config.mlp]}
            for level in _levels(params, config, n_layers)
        )

    @staticmethod
    def rates(
        params: Any, config: CMSConfig, n_layers: int | None = None
    ) -> tuple[jax.Array, ...]:
        """Returns each level's inner rate; see :meth:`initial_fast`."""
        return tuple(
            config.rate * jnp.exp(level["log_rate"])
            for level in _levels(params, config, n_layers)
        )


def _levels(params, config, n_layers):
    """Each level's own parameters, by their names in it."""
    if n_layers is None:
        parts = [...] * len(config.periods)
    else:
        parts = config.blocks(n_layers)
    for prefix, blocks in zip(config.prefixes, parts, strict=True):
        yield {
            name.removeprefix(prefix): leaf[blocks]
            for name, leaf in params.items()
            if name.startswith(prefix)
        }


def _swiglu(weights, x):
    gate = jax.nn.silu(matmul(weights, "gate", x))
    return matmul(weights, "down", gate * matmul(weights, "up", x))


def _gelu(weights, x):
    # Biases are not fast: no axis of tokens stands before theirs.
    up, down = (
        weights[name].astype(x.dtype) for name in ("up_bias", "down_bias")
    )
    h = jax.nn.gelu(matmul(weights, "up", x) + up, approximate=True)
    return matmul(weights, "down", h) + down


_MLPS = {"swiglu": _swiglu, "gelu": _gelu}
