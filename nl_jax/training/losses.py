"""Losses of predicted tokens, and bits per byte of the text that they spell.

Bits per byte compare models with different tokenizers: the loss, as a code
length, divided by the number of bytes of the predicted text. Targets that spell
no text, such as BOS and other special tokens, count in neither.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax.array_typing import Ids, Logits, Losses


class LossSums(NamedTuple):
    """Loss, tokens and bytes summed over targets that spell text."""

    nats: jax.Array | float
    """Sum of cross-entropies, in nats."""
    tokens: jax.Array | float
    """Number of targets."""
    n_bytes: jax.Array | float
    """Number of bytes of text in the targets."""

    @classmethod
    def of(
        cls,
        losses: Losses,
        targets: Ids,
        byte_lengths: np.ndarray,
        weights: Losses | None = None,
    ) -> "LossSums":
        """Sums over all targets; a weight of 0 leaves a target out."""
        lengths = jnp.asarray(byte_lengths, jnp.float32)[targets]
        text = (lengths > 0).astype(losses.dtype)
        weights = text if weights is None else weights * text
        return cls(
            (losses * weights).sum(), weights.sum(), (lengths * weights).sum()
        )


def token_losses(logits: Logits, targets: Ids) -> Losses:
    """Returns the cross-entropy of each target in nats, float32."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), targets
    )


def bits_per_byte(sums: LossSums) -> float:
    """Returns the loss in bits per byte, comparable across tokenizers."""
    return float(sums.nats) / float(np.log(2)) / max(float(sums.n_bytes), 1.0)
