"""Whatever Flax and optax allow has the right rows in the level table."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.core import freeze
from flax.training.train_state import TrainState

from nl_jax.layers import (
    CMSConfig,
    ContinuumMemory,
    SelfModifyingTitans,
    TitansConfig,
)
from nl_jax.memory import associative_memory
from nl_jax.models import build
from nl_jax.nested import describe
from nl_jax.optimizers import every
from tests.nested.test_describe import COUNT, LIKE_PARAMS, PARAMS, Mine, rows


@pytest.mark.parametrize("box", [dict, freeze])
def test_a_mask_or_label_stands_for_all_parameters_below_it(box):
    params = box({"attn": PARAMS, "mlp": {"w": jnp.ones(3)}})
    labels = box({"attn": "slow", "mlp": "fast"})
    rules = {"slow": every(4, optax.adam(0.1)), "fast": optax.lion(0.1)}
    table = rows(optax.partition(rules, labels), params=params)
    assert set(table) == {"attn gathered gradients", "attn adam", "mlp lion"}
    slow, fast = table["attn adam"], table["mlp lion"]
    assert (slow.period, slow.memory_of) == (4, "gradients of 2 of 3 leaves")
    assert (fast.period, fast.memory_of) == (1, "gradients of 1 of 3 leaves")
    assert slow.state_bytes == 2 * LIKE_PARAMS + COUNT
    part = optax.masked(optax.adam(0.1), box({"attn": True, "mlp": False}))
    (row,) = describe(part, params=params).rows
    assert (row.name, row.memory_of) == ("attn adam", slow.memory_of)


@pytest.mark.parametrize("period", [1, 3])
def test_what_an_optimizer_never_moves_says_so(period):
    model = build("transformer", d_model=8, n_heads=1, n_layers=1)
    frozen = {"blocks": True, "embedding": False, "norm_scale": True}
    labels = {name: str(value) for name, value in frozen.items()}
    zero, adam = optax.set_to_zero(), optax.adam(0.1)
    for optimizer in (
        optax.partition({"True": zero, "False": adam}, {"params": labels}),
        optax.chain(adam, optax.masked(zero, {"params": frozen})),
    ):
        for slow in (
            every(period, optimizer),
            optax.MultiSteps(optimizer, period),
        ):
            table = rows(model, slow)
            assert table["cms.level_1"].period == math.inf
            assert table["slow parameters"].period == period
    assert "never" in str(describe(model, optimizer))


def test_a_period_that_cannot_be_known_is_unknown():
    module = nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    rare = optax.chain(optax.adam(0.1), optax.apply_every(4))
    table = describe(module, rare)
    names = [row.name for row in table.rows]
    assert names == ["adam", "gathered updates", "slow parameters"]
    assert "unknown" in str(table).splitlines()[-1]


TITANS = SelfModifyingTitans(TitansConfig(), d_model=16, n_heads=2)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        layer = TITANS.copy(name="titans", parent=self)
        return layer(layer(x)[0])[0], None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            Step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return nn.Dense(4)(stack(name="stack")(x, None)[0])


def test_shared_layers_are_one_and_scanned_layers_are_counted_together():
    alone = rows(TITANS)
    listed = describe(Stack(), inputs=jnp.ones((1, 4, 16))).rows
    table = {row.name: row for row in listed}
    assert len(table) == len(listed) == len(alone)
    for name in alone.keys() - {"slow parameters"}:
        row = table[f"stack.titans.{name}"]
        assert row.parameters == 3 * alone[name].parameters > 0
        assert row.state_bytes == 3 * alone[name].state_bytes > 0
    others = 3 * alone["slow parameters"].parameters + 16 * 4 + 4
    assert table["slow parameters"].parameters == others


def test_statistics_of_batches_are_no_parameters():
    norm = nn.BatchNorm(use_running_average=False)
    table = rows(norm, optax.adam(0.1), inputs=jnp.ones((1, 8)))
    assert table["slow parameters"].parameters == 8 + 8
    assert table["adam"].state_bytes == 2 * 4 * (8 + 8) + COUNT


def test_optimizers_and_states_of_flax_are_described():
    module = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    variables = nnx.state(module, nnx.Param)
    optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)
    adam = {"adam": 2 * 4 * (4 * 2 + 2) + COUNT}

    def sizes(*objects, **options):
        return {n: r.state_bytes for n, r in rows(*objects, **options).items()}

    for item in (optimizer, optimizer.opt_state):
        assert sizes(item) == sizes(item, params=variables) == adam
        assert sizes(module, item) == adam | {"slow parameters": 0}
    state = TrainState.create(
        apply_fn=None, params=PARAMS, tx=every(2, optax.adam(0.1))
    )
    for options in ({}, {"params": PARAMS}):
        table = rows(state, **options)
        assert set(table) == {"adam", "gathered gradients"}
        assert table["adam"].period == 2


def test_memories_alone_have_the_sizes_of_their_weights():
    weights = jnp.ones((4, 8)), jnp.ones((8, 4))
    memory = associative_memory("mlp", "l2", "gd")
    (row,) = describe(memory, params=weights).rows
    assert row.parameters == 2 * 32
    # Now and at the start of the chunk, and the position in it.
    assert row.state_bytes == 2 * 4 * 2 * 32 + COUNT
    layer = ContinuumMemory(CMSConfig(objective="local", hidden=2.0), 8)
    (row,) = [r for n, r in rows(layer).items() if n == "cms.level_1"]
    # Three matrices and their gathered gradients, and the position.
    assert row.state_bytes == 2 * 4 * 3 * 8 * 16 + COUNT
    static = rows(ContinuumMemory(CMSConfig(), 8))["cms.level_1"]
    assert static.state_bytes == 0


@pytest.mark.parametrize("params", [jnp.ones(4), {"a": jnp.ones(4)}])
def test_states_of_few_bits_are_memories(params):
    def init(params):
        return Mine(jax.tree.map(lambda a: a.astype(jnp.int8), params))

    small = optax.GradientTransformation(init, optax.identity().update)
    assert rows(small, params=params)["Mine"].state_bytes == 4
    assert rows(init(params))["Mine"].state_bytes == 4
