"""One step of training and one of evaluation, as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax.training.loss import LossSums, token_losses


class TrainState(NamedTuple):
    """What a step changes."""

    variables: Any
    """Slow parameters, ``{"params": ...}``."""
    optimizer: Any
    """State of the optimizer."""


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    byte_lengths: np.ndarray,
    accumulate: int = 1,
) -> Callable:
    """Returns ``(state, tokens [B, T + 1]) -> (state, metrics)``.

    Args:
        model: its ``apply`` starts a new context in every row.
        optimizer: the whole chain.
        byte_lengths: bytes of each token, padded to the model's vocabulary.
        accumulate: parts of a batch, one after another; divides ``B``.
    """

    def loss(variables, tokens):
        targets = tokens[:, 1:]
        logits, _ = model.apply(variables, tokens[:, :-1])
        losses = token_losses(logits, targets)
        return losses.mean(), LossSums.of(losses, targets, byte_lengths)

    def gradients(variables, tokens):
        if accumulate == 1:
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(
                variables, tokens
            )
            return grads, sums
        # Rows of a part are spread over the batch, so each stays on its device.
        parts = tokens.reshape(-1, accumulate, tokens.shape[1]).swapaxes(0, 1)

        def add(total, part):
            grads, sums = jax.grad(loss, has_aux=True)(variables, part)
            return jax.tree.map(jnp.add, total, (grads, sums)), None

        zeros = jax.tree.map(jnp.zeros_like, variables)
        sums = LossSums(*jnp.zeros((3,), jnp.float32))
        (grads, sums), _ = jax.lax.scan(add, (zeros, sums), parts)
        return jax.tree.map(lambda g: g / accumulate, grads), sums

    def step(state: TrainState, tokens):
        grads, sums = gradients(state.variables, tokens)
        updates, opt_state = optimizer.update(
            grads, state.optimizer, state.variables
        )
        variables = optax.apply_updates(state.variables, updates)
        metrics = {"sums": sums, "grad_norm": optax.global_norm(grads)}
        return TrainState(variables, opt_state), metrics

    return step


def make_eval_step(model: Any, byte_lengths: np.ndarray) -> Callable:
    """Returns ``(variables, tokens [B, T + 1], weights [B, T]) -> sums``."""

    def step(variables, tokens, weights):
        targets = tokens[:, 1:]
        logits, _ = model.apply(variables, tokens[:, :-1])
        losses = token_losses(logits, targets)
        return LossSums.of(losses, targets, byte_lengths, weights)

    return step
