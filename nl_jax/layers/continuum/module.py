r"""The continuum memory system: a chain of MLPs, each at its own frequency.

arXiv 2512.24695, section 7.1: level :math:`\ell` is an MLP whose weights move
every :math:`C^{(\ell)}` tokens by the sum of its gradients over them (71);
levels form a chain (70, 73), the fastest first, stand side by side (74), or
are nested: a chain in which a slower level's step also moves the point to which
the next faster one then returns (72). With one level all of them are the
feed-forward block of a Transformer. Levels may also lie across depth, one MLP
in every block, as in a Transformer whose MLPs became levels (section 7.3).

This file declares the parameters. The config's ``objective`` determines how the
weights learn: see ``cms_objective.py`` and the files of the objectives.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_stream
from nl_jax.layers.continuum.cms_config import CMSConfig
from nl_jax.layers.continuum.level_mlp import (
    MATRICES,
    MLPS,
    FastLevel,
    SlowLevel,
    read_levels,
)
from nl_jax.layers.continuum.steps import CMSState
from nl_jax.layers.norms import NormConfig, declare_norm, normalize
from nl_jax.memory.packed import Packed, documents


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
        packed: Packed | None = None,
    ) -> Any:
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape.

        Args:
            x: tokens.
            fast: per level the weights of each row, ``[B, d_in, d_out]``, in
                place of the slow ones; ``None`` for the slow ones. A state for
                levels that learn in this layer meanwhile.
            aligned: rows stand where the fastest level's chunks begin.
            packed: documents in the rows, at whose starts levels that learn in
                this layer begin anew.

        Returns:
            The outputs; with a state, they and the state behind them.
        """
        x = check_stream("ContinuumMemory", x, self.d_model, (2, 3))
        config, goal = self.config, self.config.goal
        hidden = round(config.hidden * self.d_model)
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
        matrices = MATRICES[config.mlp]
        levels = []
        for level in dict.fromkeys(config.prefixes):
            prefix = level.removesuffix("_")
            norm = declare_norm(declare, self.norm, prefix, self.d_model)
            weights = {
                name: declare(f"{level}{name}", dense, *shapes[name])
                for name in matrices
            }
            if config.mlp == "gelu":
                for name in matrices:
                    shape, axes = (end[-1:] for end in shapes[name])
                    weights[f"{name}_bias"] = declare(
                        f"{level}{name}_bias", zeros, shape, axes
                    )
            extra = goal.declare(declare, level, self.d_model)
            rate: Any = None
            share: Any = None
            if goal.unit == "tokens":
                rate = declare(f"{level}log_rate", zeros, (), ())
                rate = config.rate * jnp.exp(rate)
            if config.form == "independent":
                share = declare(f"{level}share", ones, (), ())
            read = functools.partial(normalize, self.norm, norm, prefix)
            mlp = MLPS[config.mlp]
            levels.append(SlowLevel(mlp, read, weights, extra, rate, share))
        if isinstance(fast, CMSState):
            return goal.read_layer(
                config,
                levels,
                x,
                fast,
                aligned=aligned,
                **documents(packed, goal.read_layer),
            )
        own: Any = [{}] * len(levels) if fast is None else fast
        return read_levels(levels, own, x)[0]

    def initial_state(self, batch_size: int) -> CMSState | None:
        """Returns the state of levels that learn in context in this layer."""
        config = self.config
        if not config.learns:
            return None
        params = nn.meta.unbox(self.variables["params"])
        fast = jax.tree.map(
            lambda a: jnp.broadcast_to(a, (batch_size, 1, *a.shape)),
            self.initial_fast(params, config),
        )
        state = config.goal.initial_state(config, fast, ())
        # Without the axis of blocks: this is one.
        return state.with_blocks(
            jax.tree.map(lambda a: a[:, 0], state.by_block)
        )

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
