"""Deep memories: bounded whatever they read, exact whatever is kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.layers import (
    DeepMemory,
    DeepMemoryConfig,
    SelfModifyingTitans,
    TitansConfig,
)
from nl_jax.memory import Gates
from nl_jax.models import configure, names

D, T = 8, 512
DEEP = [n for n in names() if configure(n).mixer == "deep"]


def one_key(config):
    """One key with one value, then with two in turn, at the largest step.

    Returns outputs, weights, and how far a value reaches: the largest gradient
    of the outputs' mean square.
    """
    memory, architecture = config.memory, config.memory_architecture
    weights = architecture.init(jax.random.key(0), D, D, expansion=2)
    ones = jnp.ones(T)
    gates = Gates(
        config.largest_step * ones,
        -0.0025 * ones,
        -2 * ones if config.momentum else None,
        threshold=ones if config.objective == "gated_huber" else None,
    )
    k = jnp.broadcast_to(jnp.eye(D)[0], (T, D))

    def read(v):
        o, state = memory.scan(memory.init(weights), k, v, k, gates)
        return jnp.square(o).mean(), (o, state.memory.weights)

    v = 3 * jnp.ones((T, D)).at[T // 2 :: 2].multiply(-1)
    slope, (o, weights) = jax.jit(jax.grad(read, has_aux=True))(v)
    return o, weights, np.abs(slope).max()


@pytest.mark.parametrize("name", DEEP)
def test_longest_steps_towards_one_key_stay_bounded(name):
    """Decay lets them add up to 400 writes; overshooting knows no end."""
    config = configure(name, deep={"expansion": 2}).deep
    o, weights, slope = one_key(config)
    assert np.isfinite(o).all() and np.abs(o).max() < 1e4
    assert max(np.linalg.norm(w) for w in weights) < 1e4
    assert slope < 1e2 * np.square(o).mean()


def test_the_step_that_the_default_forbids_overshoots():
    """What ``largest_step`` is for; and its value is the user's to change."""
    o, _, slope = one_key(DeepMemoryConfig(expansion=2))
    np.testing.assert_allclose(o[T // 2 - 1], 3, atol=1)
    assert slope < 10
    o, _, slope = one_key(DeepMemoryConfig(expansion=2, eta_max=1.0))
    assert slope > 1e6
    assert DeepMemoryConfig(chunk_size=32).largest_step == 1 / 32
    assert DeepMemoryConfig(objective="dot_product").largest_step == 1.0
    assert DeepMemoryConfig(rule="muon").largest_step == 0.1


def test_layers_reject_widths_that_heads_do_not_divide():
    with pytest.raises(ValueError, match="n_heads=3 must divide d_model=8"):
        DeepMemory(DeepMemoryConfig(), 8, 3).init(
            jax.random.key(0), jnp.ones((1, 2, 8))
        )


@pytest.mark.parametrize(
    ("layer", "choices", "chunks"),
    [
        (DeepMemory, DeepMemoryConfig, {"chunk_size": 2}),
        (
            SelfModifyingTitans,
            TitansConfig,
            {"chunk_size": 2, "memory_chunk_size": 4},
        ),
    ],
)
def test_how_many_states_are_kept_changes_no_gradient(layer, choices, chunks):
    x = jax.random.normal(jax.random.key(0), (1, 14, D))
    own = layer(choices(**chunks), D, 2)
    params = nn.meta.unbox(jax.jit(own.init)(jax.random.key(1), x[:, :1]))

    def gradient(remat):
        own = layer(choices(**chunks, remat=remat), D, 2)
        loss = lambda params: jnp.square(own.apply(params, x)[0]).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    expected = gradient(1)
    for remat in (0, 3):
        for a, b in zip(
            *map(jax.tree.leaves, (gradient(remat), expected)), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    with pytest.raises(ValueError, match="remat=-1 must be an integer >= 0"):
        choices(remat=-1)
