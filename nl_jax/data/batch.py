"""A batch of token rows, with the documents in them."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Rows of tokens, of which each but the first is a target.

    Example:
        >>> import numpy as np
        >>> ids = np.array([[1, 1, 2, 2, 0]])
        >>> batch = Batch(np.array([[7, 8, 9, 5, 0]]), segment_ids=ids)
        >>> batch.target_weights()
        array([[1., 0., 1., 0.]], dtype=float32)
    """

    tokens: Any
    """Token ids, int32 ``[B, T + 1]``."""
    segment_ids: Any = None
    """Document of each token, int32 ``[B, T + 1]``: ids rise along a row, and 0
    is padding. ``None`` if rows are not divided into documents."""
    weights: Any = None
    """Weight of each token as a target, float32 ``[B, T + 1]``; ``None`` if all
    count alike."""

    def target_weights(self) -> Any:
        """Returns each target's weight, ``[B, T]``; ``None`` if all are 1.

        A target counts if the token before it is of the same document.
        """
        weights = None if self.weights is None else self.weights[:, 1:]
        if self.segment_ids is None:
            return weights
        before, ids = self.segment_ids[:, :-1], self.segment_ids[:, 1:]
        counted = ((before == ids) & (ids != 0)).astype("float32")
        return counted if weights is None else counted * weights
