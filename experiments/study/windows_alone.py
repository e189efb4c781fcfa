"""Documents read window by window, each from nothing."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.study.freezing import means_between
from nl_jax.models import LanguageModel
from nl_jax.training import token_losses

ALONE = "each window from nothing"
"""Name of this way of reading in records."""


def edges_to(length: int, positions: int) -> list[int]:
    """Returns the windows' ends, each twice the last, up to ``positions``.

    Example:
        >>> edges_to(256, 2048)
        [0, 256, 512, 1024, 2048]
    """
    edges, end = [0], length
    while end < positions:
        edges.append(end)
        end *= 2
    return [*edges, positions]


def alone(
    model: LanguageModel,
    variables: Any,
    documents: np.ndarray,
    edges: Sequence[int],
    length: int,
) -> list[list[float]]:
    """Returns bits per byte like ``freezing.by_position``.

    Args:
        model: trained model.
        variables: its parameters.
        documents: ids ``[N, T]``.
        edges: positions, rising, of which the last is at most ``T``.
        length: tokens of a window.
    """

    @jax.jit
    def read(ids):
        logits, _ = model.apply(variables, ids[:, :-1])
        return token_losses(logits, ids[:, 1:])

    # A window begins with the last token of the one before, as in training.
    padded = np.pad(documents[:, : edges[-1]], ((0, 0), (0, 1)))
    nats = [np.full((len(documents), 1), np.nan)]
    for start in range(0, edges[-1], length):
        nats.append(np.asarray(read(padded[:, start : start + length + 1])))
    bits = np.concatenate(nats, 1)[:, : edges[-1]] / np.log(2)
    return means_between(bits, edges)
