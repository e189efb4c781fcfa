"""A training step and a loss for the small experiments."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def make_step(
    loss: Callable[..., jax.Array], tx: optax.GradientTransformation
) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """Returns the compiled step ``(variables, state, *batch)`` of a loss.

    It returns variables, the optimizer's state, and the loss before the step.

    Example:
        >>> tx = optax.sgd(0.5)
        >>> step = make_step(lambda w, x: (w - x) ** 2, tx)
        >>> w, _, loss = step(jnp.float32(3), tx.init(jnp.float32(3)), 1.0)
        >>> float(w), float(loss)
        (1.0, 4.0)
    """

    @jax.jit
    def step(variables, state, *batch):
        value, grads = jax.value_and_grad(loss)(variables, *batch)
        updates, state = tx.update(grads, state, variables)
        return optax.apply_updates(variables, updates), state, value

    return step


def clipped_adamw(
    rate: float, steps: int, weight_decay: float = 0.1
) -> optax.GradientTransformation:
    """Returns AdamW after clipping to norm 1, with warm-up and a cosine.

    The rate rises during a tenth of the steps, and falls to a twentieth.
    """
    warm_up = min(max(steps // 10, 1), steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, rate, warm_up, steps, 0.05 * rate
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.95, weight_decay=weight_decay),
    )


def asked_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy where a target is not negative."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(targets, 0)
    )
    asked = targets >= 0
    return (losses * asked).sum() / asked.sum()
