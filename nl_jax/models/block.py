"""A block: a sequence mixer, then a continuum memory, both residual."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.layers import ContinuumMemory
from nl_jax.layers.mixing import Declare
from nl_jax.layers.norms import declare_norm, normalize
from nl_jax.memory.packed import documents
from nl_jax.models.model_config import ModelConfig
from nl_jax.nested import LevelRow
from nl_jax.nested.level_table import count_bytes, count_parameters


class Block(nn.Module):
    """Adds ``mixer(norm(x))`` to ``x``, then applies the continuum memory."""

    config: ModelConfig

    def setup(self):
        """Declares the norm, the mixer and the continuum memory."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        declare = Declare(self)
        self.norm = declare_norm(declare, config.norm, "norm", config.d_model)
        self.mixer = config.choices.build(config.d_model, config.n_heads, dtype)
        self.cms = ContinuumMemory(
            config.cms, config.d_model, dtype, config.norm
        )

    def initial_state(self, batch_size):
        """Returns the mixer's state before the first token."""
        return self.mixer.initial_state(batch_size)

    def __call__(self, x, state=None, fast=None, *, aligned=False, packed=None):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state.

        With ``fast``, the state of levels that learn in context, outputs come
        as a pair with its next value; see ``ContinuumMemory``. ``packed``
        tells documents apart.
        """
        x = on_rows(x)
        choices = self.config.choices
        options = {"stream": x} if choices.takes_stream else {}
        options |= {"aligned": aligned} if choices.has_grid else {}
        y, state = self.mixer(
            normalize(self.config.norm, self.norm, "norm", x),
            state,
            **options,
            **documents(packed, self.mixer.__call__),
        )
        y = self.cms(x + y, fast, aligned=aligned, packed=packed)
        return on_rows((y, state))


def initial_blocks(config: ModelConfig, rng):
    """Returns initial parameters of all blocks, stacked on a first axis."""
    block, x = Block(config), jnp.zeros((1, 1, config.d_model))
    blocks = jax.vmap(lambda rng: block.init(rng, x)["params"])(
        jax.random.split(rng, config.n_layers)
    )
    if "mixer" in blocks:
        last = jax.tree.map(lambda leaf: leaf[-1], blocks["mixer"])
        blocks["mixer"] = jax.tree.map(
            lambda leaf, one: leaf.at[-1].set(one),
            blocks["mixer"],
            config.choices.last_block(last),
        )
    return blocks


def on_rows(tree):
    """Keeps every array's first axis, the batch, on the devices that split it.

    Otherwise the layouts of parameters would spread to the activations.
    """

    def keep(leaf):
        free = jax.sharding.PartitionSpec.UNCONSTRAINED
        axes = ("batch", *(free,) * (leaf.ndim - 1))
        return nn.with_logical_constraint(leaf, axes)

    return jax.tree.map(keep, tree)


def gathered(params, model):
    """Keeps a block's parameters whole along ``embed`` where it computes.

    Left to itself, XLA may multiply rows that are cut by parameters that rest
    cut along the same axis of the mesh, and all but the first device's rows
    then come out wrong: on 2 x 2 x 2 devices those of levels that learn in
    context, and of memory as a context for attention.
    """
    cut = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1
    if not (cut and nn.get_logical_axis_rules()):
        return params
    axes = model.logical_axes()["params"]["blocks"]

    def keep(leaf, names):
        free = jax.sharding.PartitionSpec.UNCONSTRAINED
        names = names[len(names) - leaf.ndim :]  # None of the layers is left.
        kept = tuple(name if name == "embed" else free for name in names)
        return nn.with_logical_constraint(leaf, kept)

    return jax.tree.map(keep, params, axes)


def level_rows(config: ModelConfig, params, state) -> list[LevelRow]:
    """Returns a stack of blocks' rows of the level table.

    ``params`` holds the shapes of all parameters, and ``state`` those of the
    ``ModelState`` for one batch row. What is outside the blocks' rows, such as
    the last tokens that convolutions keep, gets a row of its own.
    """
    blocks = params["blocks"]
    rows = [
        *config.choices.levels(blocks.get("mixer", {}), state.mixers),
        *config.cms.levels(blocks["cms"], state.cms, config.n_layers),
    ]
    parameters = count_parameters(params) - sum(r.parameters for r in rows)
    slow = LevelRow(
        name="slow parameters",
        memory_of="the training text",
        architecture="projections, norms, embedding",
        objective="next token",
        rule="outer optimizer",
        period=1,
        unit="steps",
        parameters=parameters,
        state_bytes=count_bytes(state) - sum(r.state_bytes for r in rows),
    )
    return [*rows, slow]
