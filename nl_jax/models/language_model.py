"""Language models as pure functions over a stack of blocks.

A model is a plain object without arrays. Linen declares the parameters of one
block; blocks are stacked on a leading axis with ``vmap`` and run by
``jax.lax.scan``, so that compile time does not grow with depth.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Ids, Logits
from nl_jax.layers import ContinuumMemory, rms_norm
from nl_jax.models import next_token
from nl_jax.models.block import Block
from nl_jax.models.config import ModelConfig, configure
from nl_jax.models.levels import level_rows
from nl_jax.nested import LevelRow

__all__ = ["LanguageModel", "ModelState", "build"]

Variables = dict[str, Any]


class ModelState(NamedTuple):
    """Everything that a model remembers of a stream, batch first."""

    mixers: Any
    """State of every block's mixer, ``[B, n_layers, ...]``."""
    cms: next_token.CMSState | None
    """Fast weights of the levels that learn in context, if any."""


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A causal language model; made by :func:`build`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = build("hope", d_model=16, n_heads=2)
        >>> tokens = jnp.arange(6)[None]
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> logits, state = model.apply(variables, tokens)
        >>> more, state = model.apply(variables, tokens[:, :1], state)
        >>> logits.shape, more.shape
        ((1, 6, 256), (1, 1, 256))
    """

    config: ModelConfig

    def init(self, rng: jax.Array, tokens: Ids) -> Variables:
        """Draws the slow parameters; ``tokens`` gives no more than a shape."""
        return nn.meta.unbox(self._boxed(rng, tokens))

    def logical_axes(self) -> Variables:
        """Returns the tree of logical axis names of every parameter."""
        boxed = jax.eval_shape(
            self._boxed, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
        )

        def axes(box):
            names = tuple(box.names)
            stacked = len(box.value.shape) - len(names)
            return ("layers",) * stacked + names

        return jax.tree.map(axes, boxed, is_leaf=_is_box)

    def init_state(self, variables: Variables, batch_size: int) -> ModelState:
        """Returns the learned state from which ``batch_size`` rows start."""
        block = Block(self.config)

        def initial(params):
            return block.apply(
                {"params": params}, batch_size, method="initial_state"
            )

        params = variables["params"]
        mixers = jax.vmap(initial)(params["blocks"])
        mixers = _batch_first(mixers)
        cms = None
        if self.learns_in_context:
            cms = next_token.initial_state(
                self.config, params, mixers, batch_size
            )
        return ModelState(mixers, cms)

    def apply(
        self,
        variables: Variables,
        tokens: Ids,
        state: ModelState | None = None,
    ) -> tuple[Logits, ModelState]:
        """Reads tokens, learning from them, and predicts each next one.

        Args:
            variables: from :meth:`init`.
            tokens: ids, any ``T >= 1``; ``T = 1`` is decoding.
            state: what earlier calls returned; ``None`` begins a new context.

        Returns:
            ``(logits, state)``, float32 logits for the token after each.

        Raises:
            ValueError: if ``tokens`` is not a ``[B, T]`` array of integers.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise ValueError(
                f"tokens has shape {tokens.shape}; needs [batch, length >= 1]"
            )
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens has dtype {tokens.dtype}; needs integers")
        tokens = tokens.astype(jnp.int32)
        params = variables["params"]
        if not self.learns_in_context:
            mixers = None if state is None else state.mixers
            logits, mixers = self.forward(params, tokens, mixers)
            return logits, ModelState(mixers, None)
        fresh = state is None
        if state is None:
            state = self.init_state(variables, len(tokens))
        logits, mixers, cms = next_token.read(
            self, params, tokens, state.mixers, state.cms, fresh=fresh
        )
        return logits, ModelState(mixers, cms)

    def forward(self, params, tokens, mixers=None, fast=None, *, aligned=False):
        """One pass with weights that stand still; see :meth:`apply`.

        Args:
            params: slow parameters.
            tokens: ids ``[B, T]``.
            mixers: state of the mixers, or ``None``.
            fast: weights of the levels that learn in context,
                ``[B, n_fast, ...]``, in place of the slow ones of the last
                ``n_fast`` blocks.
            aligned: rows stand where the mixers' chunks begin.
        """
        block = Block(self.config)

        def step(x, layer):
            block_params, state, fast = layer
            return block.apply(
                {"params": block_params}, x, state, fast, aligned=aligned
            )

        step = jax.checkpoint(step) if self.config.remat else step
        embedding = params["embedding"]
        dtype = jnp.dtype(self.config.dtype)
        x = embedding[tokens].astype(dtype) * self.config.d_model**0.5
        layers = params["blocks"], _layers_first(mixers)
        slow = self.config.n_layers - (self._fast_layers if fast else 0)
        ends = []
        if slow:
            first = jax.tree.map(lambda a: a[:slow], layers)
            x, end = jax.lax.scan(step, x, (*first, None))
            ends.append(end)
        if fast:
            last = jax.tree.map(lambda a: a[slow:], layers)
            x, end = jax.lax.scan(step, x, (*last, _layers_first(fast)))
            ends.append(end)
        mixers = jax.tree.map(lambda *a: jnp.concatenate(a), *ends)
        x = rms_norm(x, params["norm_scale"])
        head = params.get("head", embedding)
        logits = jnp.einsum(
            "btd,vd->btv",
            x,
            head.astype(x.dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )
        return logits, _batch_first(mixers)

    def fast_parameters(self, params):
        """Returns fast weights' start, ``[n_fast, ...]``, and rates."""
        slow = self.config.n_layers - self._fast_layers
        stack = jax.tree.map(lambda a: a[slow:], params["blocks"]["cms"])
        config = self.config.cms
        return (
            ContinuumMemory.initial_fast(stack, config),
            ContinuumMemory.rates(stack, config),
        )

    def parameter_periods(self, variables: Variables) -> Variables:
        """Returns each parameter's update period in optimizer steps.

        All 1, except the slower levels of a continuum memory with
        ``objective="outer"``.
        """
        config = self.config.cms
        outer = config.objective == "outer"

        def period(path, leaf):
            del leaf
            name = str(getattr(path[-1], "key", ""))
            if outer and name.startswith("level_"):
                return config.periods[int(name.split("_")[1]) - 1]
            return 1

        return jax.tree_util.tree_map_with_path(period, variables)

    def levels(self) -> list[LevelRow]:
        """Returns the model's rows of the level table, read off its shapes."""
        return level_rows(self)

    @property
    def learns_in_context(self) -> bool:
        """Whether any level moves while the model reads."""
        cms = self.config.cms
        # At rate 0 the static network is exact, and free.
        return cms.objective == "next_token" and cms.rate > 0

    @property
    def _fast_layers(self) -> int:
        return self.config.cms.layers or self.config.n_layers

    def _boxed(self, rng, tokens):
        config = self.config
        block = Block(config)
        embed_rng, head_rng, blocks_rng = jax.random.split(rng, 3)
        x = jnp.zeros((*tokens.shape[:1], 1, config.d_model))

        def init_block(rng):
            return block.init(rng, x)["params"]

        def table(rng):
            shape = (config.vocab_size, config.d_model)
            value = jax.random.normal(rng, shape) * config.d_model**-0.5
            return nn.LogicallyPartitioned(value, ("vocab", "embed"))

        params = {
            "embedding": table(embed_rng),
            "blocks": jax.vmap(init_block)(
                jax.random.split(blocks_rng, config.n_layers)
            ),
            "norm_scale": nn.LogicallyPartitioned(
                jnp.ones(config.d_model), ("embed",)
            ),
        }
        if not config.tie_embeddings:
            params["head"] = table(head_rng)
        return {"params": params}


def build(
    name_or_config: str | ModelConfig, *, preset: str = "tiny", **overrides
) -> LanguageModel:
    """Builds a language model by name.

    Args:
        name_or_config: one of :func:`nl_jax.models.names`, or a configuration.
        preset: ``tiny``, ``small``, ``125m``, ``760m`` or ``1.3b``.
        **overrides: fields of ``ModelConfig``; nested ones as mappings, as in
            ``build("hope", titans={"architecture": "mlp"})``.

    Raises:
        ValueError: for unknown names and values that are not allowed.
    """
    return LanguageModel(configure(name_or_config, preset=preset, **overrides))


def _is_box(leaf):
    return isinstance(leaf, nn.meta.AxisMetadata)


def _batch_first(tree):
    return jax.tree.map(lambda a: a.swapaxes(0, 1), tree)


_layers_first = _batch_first
