"""Language models as pure functions over a stack of blocks.

A model is a plain object without arrays. Linen declares the parameters of one
block; ``vmap`` stacks blocks on a leading axis and ``jax.lax.scan`` runs them,
so compile time does not grow with depth.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Ids, Logits
from nl_jax.checks import check_count, check_tokens
from nl_jax.layers import ContinuumMemory
from nl_jax.layers.continuum.cms_objective import Reader
from nl_jax.layers.continuum.placement import join, segments
from nl_jax.layers.continuum.steps import CMSState
from nl_jax.layers.norms import declare_norm, normalize
from nl_jax.memory.packed import check_segment_ids, documents, pack
from nl_jax.memory.remat import recompute
from nl_jax.models.block import Block, gathered, initial_blocks, level_rows
from nl_jax.models.model_config import ModelConfig, configure
from nl_jax.models.model_state import ModelState, check_given, params_of
from nl_jax.models.sequence_axis import TIME, devices_per_sequence, hand_on
from nl_jax.nested import LevelRow

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A causal language model, built by :func:`build`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = build("hope", d_model=16, n_heads=2)
        >>> tokens = jnp.arange(6)[None]
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> apply = jax.jit(model.apply)
        >>> logits, state = apply(variables, tokens)
        >>> more, state = apply(variables, tokens[:, :1], state)
        >>> logits.shape, more.shape
        ((1, 6, 256), (1, 1, 256))
    """

    config: ModelConfig

    def init(self, rng: jax.Array, tokens: Ids) -> Variables:
        """Draws the slow parameters, which do not depend on ``tokens``."""
        del tokens
        return nn.meta.unbox(self._boxed(rng))

    def logical_axes(self) -> Variables:
        """Returns the logical axis names of every parameter, as a tree."""
        boxed = jax.eval_shape(self._boxed, jax.random.key(0))

        def axes(box):
            names = tuple(box.names)
            stacked = len(box.value.shape) - len(names)
            return ("layers",) * stacked + names

        return jax.tree.map(axes, boxed, is_leaf=_is_box)

    def init_state(self, variables: Variables, batch_size: int) -> ModelState:
        """Returns the learned initial state for ``batch_size`` rows."""
        check_count("batch_size", batch_size)
        block = Block(self.config)

        def initial(params):
            return block.apply(
                {"params": params}, batch_size, method="initial_state"
            )

        params = params_of(variables)
        mixers = jax.vmap(initial)(params["blocks"])
        mixers = _batch_first(mixers)
        cms = None
        if self.learns_in_context:
            fast, _ = self.fast_parameters(params)
            fast = jax.tree.map(
                lambda a: jnp.broadcast_to(a, (batch_size, *a.shape)), fast
            )
            config = self.config.cms
            cms = config.goal.initial_state(config, fast, mixers)
        return ModelState(mixers, cms)

    def apply(
        self,
        variables: Variables,
        tokens: Ids,
        state: ModelState | None = None,
        *,
        segment_ids: Ids | None = None,
    ) -> tuple[Logits, ModelState]:
        """Predicts the token after each of ``tokens``, learning in context.

        Args:
            variables: parameters from :meth:`init`.
            tokens: ids ``[B, T]``, any ``T >= 1``; ``T = 1`` is decoding.
                Compiled programs cannot check them: JAX counts negative ids
                from the end and reads too large ones as the last.
            state: state after the previous tokens; ``None`` starts a new
                context.
            segment_ids: document of each token, ``[B, T]``, 0 for padding:
                everything that a model remembers starts anew at the first
                token of a document, and padding changes nothing. The document
                of the state goes on where a row's first id is
                ``state.segment``, or if that is ``None``. Ids may be any
                positive numbers, but must not come back after another one.

        Returns:
            ``(logits, state)``; logits are at least float32, and arbitrary for
            padding.

        Raises:
            InputError: if ``tokens`` is not a ``[B, T]`` array of ids of the
                model, ``state`` has another number of rows or is of another
                model, or ``segment_ids`` are not as described.
        """
        tokens = check_tokens("tokens", tokens, self.config.vocab_size)
        params = params_of(variables)
        check_given(self, variables, state, len(tokens))
        fresh = state is None
        segment = None if state is None else state.segment
        packed = None
        if segment_ids is not None:
            ids = check_segment_ids(segment_ids, tokens.shape)
            tokens, packed, segment = pack(tokens, ids, segment, fresh)
        initial: Any = None
        cut = devices_per_sequence() > 1
        if packed is not None or (fresh and (cut or self.learns_in_context)):
            initial = self.init_state(variables, len(tokens))
        if packed is not None and state is not None:
            state = state.begin_anew(initial, packed.starts[:, 0])
        forward = functools.partial(self._pass, params)
        if not self.learns_in_context:
            now = initial if cut and fresh else state
            mixers = None if now is None else now.mixers
            logits, mixers, _ = forward(tokens, mixers, packed=packed)
            return logits, ModelState(mixers, None, segment)
        now = initial if state is None else state
        reader = Reader(
            self.config.cms,
            forward,
            self.fast_parameters(params)[1],
            jnp.dtype(self.config.dtype),
            initial,
        )
        read = self.config.cms.goal.read
        options = {"fresh": fresh} | documents(packed, read)
        logits, mixers, cms = read(
            reader, tokens, now.mixers, now.cms, **options
        )
        return logits, ModelState(mixers, cms, segment)

    def forward(self, params, tokens, mixers=None, fast=None, *, aligned=False):
        """Runs one pass with fixed weights; see :meth:`apply`.

        Args:
            params: slow parameters.
            tokens: ids ``[B, T]``.
            mixers: state of the mixers, or ``None``.
            fast: weights of the levels that learn in context,
                ``[B, blocks, ...]``, which replace the slow ones in their
                blocks.
            aligned: whether rows are at chunk boundaries of the mixers.
        """
        logits, mixers, _ = self._pass(params, tokens, mixers, fast, aligned)
        return logits, mixers

    def _pass(
        self, params, tokens, mixers=None, fast=None, aligned=False, packed=None
    ):
        """Runs :meth:`forward`, and returns the states of local levels too."""
        embedding = nn.with_logical_constraint(
            params["embedding"], ("vocab", "embed")
        )
        dtype = jnp.dtype(self.config.dtype)
        x = embedding[tokens].astype(dtype)
        if self.config.scale_embeddings:
            x = x * self.config.d_model**0.5
        if self.config.learned_positions:
            at = self._positions(params, tokens, mixers, packed)
            x = x + at.astype(dtype)
        layers = params["blocks"], _layers_first(mixers)
        ends, learned, cut = [], [], devices_per_sequence() > 1
        levels, n_layers = self.config.cms, self.config.n_layers
        for blocks, cms, own in segments(levels, n_layers, fast):
            part = jax.tree.map(lambda a: a[blocks], layers)  # noqa: B023
            step = self._step(cms, own, aligned or cut, packed)
            scan = hand_on if cut else jax.lax.scan
            x, (end, after) = scan(step, x, (*part, _by_layer(own)))
            ends.append(end)
            if after is not None:
                learned.append(_batch_first(after))
        mixers = jax.tree.map(lambda *a: jnp.concatenate(a), *ends)
        if learned:
            fast = join(fast, learned, tokens.shape[1], levels, packed)
        if packed is not None:
            x = packed.restore(x)
        x = normalize(self.config.norm, params, "norm", x)
        head = params.get("head", embedding)
        logits = jnp.einsum(
            "btd,vd->btv",
            x,
            head.astype(x.dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )
        logits = nn.with_logical_constraint(logits, ("batch", TIME, "vocab"))
        return logits, _batch_first(mixers), fast

    def _step(self, cms, own, aligned, packed):
        """Returns one block's step in the scan over blocks."""
        block = Block(dataclasses.replace(self.config, cms=cms))
        local = isinstance(own, CMSState)

        def step(x, layer):
            params, state, fast = layer
            if local:
                fast = own.with_blocks(fast)
            given = {"params": gathered(params, self)}, x, state, fast
            x, state = block.apply(*given, aligned=aligned, packed=packed)
            if not local:
                return x, (state, None)
            x, after = x
            return x, (state, after.by_block)

        return recompute(step, self.config.remat)

    def fast_parameters(self, params):
        """Returns each level's initial fast weights and rates, by block."""
        cms = params["blocks"]["cms"]
        of = cms, self.config.cms, self.config.n_layers
        return ContinuumMemory.initial_fast(*of), ContinuumMemory.rates(*of)

    def parameter_periods(self, variables: Variables) -> Variables:
        """Returns each parameter's update period in optimizer steps.

        All are 1 except those of a continuum memory's slower outer levels.
        """
        config = self.config.cms
        outer = config.goal.unit == "steps"

        def period(path, leaf):
            del leaf
            name = str(getattr(path[-1], "key", ""))
            if outer and name.startswith("level_"):
                return config.periods[int(name.split("_")[1]) - 1]
            return 1

        return jax.tree_util.tree_map_with_path(period, variables)

    def parameter_shapes(self) -> Variables:
        """Returns the shapes of the parameters, without drawing them."""
        tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        return jax.eval_shape(self.init, jax.random.key(0), tokens)

    def levels(self) -> list[LevelRow]:
        """Returns the model's rows of the level table, for one batch row."""
        variables = self.parameter_shapes()
        state = jax.eval_shape(lambda v: self.init_state(v, 1), variables)
        return level_rows(self.config, variables["params"], state)

    @property
    def learns_in_context(self) -> bool:
        """Whether any level learns while the model reads."""
        return self.config.cms.learns

    def _positions(self, params, tokens, mixers, packed):
        """Returns the learned vector of each token's position in the window."""
        seen: Any = 0 if mixers is None else mixers.seen[:, :1]  # In any block.
        at = seen + jnp.arange(tokens.shape[1])[None]
        if packed is not None:
            at = packed.place(seen)
        table = params["positions"]
        return table[jnp.minimum(at, len(table) - 1)]

    def _boxed(self, rng):
        config = self.config
        embed_rng, head_rng, blocks_rng = jax.random.split(rng, 3)

        def table(rng, rows=config.vocab_size):
            shape = (rows, config.d_model)
            value = jax.random.normal(rng, shape) * config.d_model**-0.5
            return nn.LogicallyPartitioned(value, ("vocab", "embed"))

        params = {
            "embedding": table(embed_rng),
            "blocks": initial_blocks(config, blocks_rng),
            **declare_norm(_draw, config.norm, "norm", config.d_model),
        }
        if config.learned_positions:
            attention: Any = config.choices
            rows = attention.window
            box = table(jax.random.fold_in(embed_rng, 1), rows)
            params["positions"] = box.replace(names=(None, "embed"))
        if not config.tie_embeddings:
            params["head"] = table(head_rng)
        return {"params": params}


def build(
    name_or_config: str | ModelConfig, *, preset: str = "tiny", **overrides
) -> LanguageModel:
    """Builds a language model by name.

    Args:
        name_or_config: a name in :func:`nl_jax.models.names`, or a
            configuration.
        preset: ``tiny``, ``small``, ``125m``, ``760m`` or ``1.3b``.
        **overrides: fields of ``ModelConfig``; nested ones as mappings, as in
            ``build("hope", titans={"architecture": "mlp"})``.

    Raises:
        ValueError: for unknown names and invalid values.
    """
    return LanguageModel(configure(name_or_config, preset=preset, **overrides))


def _draw(name, init, shape, axes):
    """Declares a norm's parameter, without random numbers."""
    del name
    return nn.LogicallyPartitioned(init(None, shape, jnp.float32), axes)


def _is_box(leaf):
    return isinstance(leaf, nn.meta.AxisMetadata)


def _batch_first(tree):
    return jax.tree.map(lambda a: a.swapaxes(0, 1), tree)


_layers_first = _batch_first


def _by_layer(fast):
    return _layers_first(fast.by_block if isinstance(fast, CMSState) else fast)
