"""Next-token cross-entropy, as sums that add up over batches and devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax.array_typing import Ids, Logits, Losses


class LossSums(NamedTuple):
    """What a mean over any set of tokens is made of."""

    nats: jax.Array
    """Sum of cross-entropies."""
    tokens: jax.Array
    """Number of targets."""
    n_bytes: jax.Array
    """Bytes that the targets spell."""

    @classmethod
    def of(
        cls,
        losses: Losses,
        targets: Ids,
        byte_lengths: np.ndarray,
        weights: Losses | None = None,
    ) -> "LossSums":
        """Adds up; ``weights`` 0 leaves a target out."""
        weights = jnp.ones_like(losses) if weights is None else weights
        lengths = jnp.asarray(byte_lengths, jnp.float32)[targets]
        return cls(
            (losses * weights).sum(), weights.sum(), (lengths * weights).sum()
        )


def token_losses(logits: Logits, targets: Ids) -> Losses:
    """Returns the cross-entropy of each target in nats, float32."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), targets
    )


def bits_per_byte(sums: LossSums) -> float:
    """Returns bits per byte of text, which do not depend on the tokenizer."""
    return float(sums.nats) / float(np.log(2)) / max(float(sums.n_bytes), 1.0)
