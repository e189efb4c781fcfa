"""Rows that read documents on: their memory goes from step to step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.data import Batch
from nl_jax.models import build
from nl_jax.training import TrainState, make_train_step
from nl_jax.training.train_state import begin_memory
from tests.training.conftest import LENGTHS, draw

ROWS, WINDOW, WINDOWS = 2, 64, 2
IDS = np.ones((ROWS, WINDOW * WINDOWS + 1), np.int32)
IDS[1, 100:] = 2  # In the middle of the second window.


def gathering():
    """An optimizer that moves nothing and adds up gradients in its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params: (
            jax.tree.map(jnp.zeros_like, grads),
            jax.tree.map(jnp.add, state, grads),
        ),
    )


@functools.cache
def drawn(name):
    model = build(name, d_model=8, n_heads=2, n_layers=1)
    tokens = jax.random.randint(jax.random.key(1), IDS.shape, 0, 256)
    return model, draw(model, jax.random.key(0), tokens[:1, :1]), tokens


def windows(tokens, ids):
    for start in range(0, WINDOW * WINDOWS, WINDOW):
        cut = slice(start, start + WINDOW + 1)
        yield Batch(tokens[:, cut], ids[:, cut])


def carried(name, accumulate=1):
    """Sums of nats by window, and of gradients, of steps that carry."""
    model, variables, tokens = drawn(name)
    optimizer = gathering()
    memory = begin_memory(model, variables, "contiguous", ROWS)
    state = TrainState(variables, optimizer.init(variables), memory)
    step = jax.jit(make_train_step(model, optimizer, LENGTHS, accumulate))
    nats = []
    for batch in windows(tokens, IDS):
        state, metrics = step(state, batch)
        nats.append(float(metrics["sums"].nats))
    return nats, state


def token_nats(logits, batch):
    """Cross-entropy of the targets that are in the document before them."""
    chosen = jax.nn.one_hot(batch.tokens[:, 1:], 256)
    nats = -(jax.nn.log_softmax(logits) * chosen).sum(-1)
    return nats * (batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1])


@pytest.mark.parametrize("name", ["mamba"])
def test_windows_that_carry_are_one_long_window(name):
    model, variables, tokens = drawn(name)
    logits, end = jax.jit(model.apply)(
        variables, tokens[:, :-1], segment_ids=IDS[:, :-1]
    )
    nats = token_nats(logits, Batch(tokens, IDS))
    expected = nats.reshape(ROWS, WINDOWS, WINDOW).sum((0, 2))
    found, state = carried(name)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        state.memory,
        end,
    )
    np.testing.assert_array_equal(state.memory.segment, [1, 2])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_stop_where_windows_meet(accumulate, name="mamba"):
    model, variables, tokens = drawn(name)

    def chained(variables):
        state, total = None, 0.0
        for batch in windows(tokens, IDS):
            state = jax.lax.stop_gradient(state)
            logits, state = model.apply(
                variables,
                batch.tokens[:, :-1],
                state,
                segment_ids=batch.segment_ids[:, :-1],
            )
            nats = token_nats(logits, batch)
            same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
            total = total + nats.sum() / same.sum()
        return total

    expected = jax.jit(jax.grad(chained))(variables)
    _, state = carried(name, accumulate)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        state.optimizer,
        expected,
    )
