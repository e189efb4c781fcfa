"""Order in which documents are read, known from their lengths alone.

Grain's index shuffle gives each corpus an order of its own in each epoch
without holding it in memory. Corpora are mixed by tokens: the next document is
always one of the corpus that is furthest behind its share.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from nl_jax.checks import check_count, is_number
from nl_jax.errors import InputError

_GRAIN_COUNT = 1024
"""Below it, Grain's shuffle takes up to milliseconds for each document."""


class Draw(NamedTuple):
    """A document that is read next."""

    corpus: int
    """Which corpus it is from."""
    document: int
    """Its index in that corpus."""
    length: int
    """Its tokens."""
    epoch: int
    """How often its corpus was read through before."""


class DocumentOrder:
    """Endless order of the documents of one corpus or of several.

    Each epoch of a corpus reads each of its documents once. Those shorter than
    ``least`` are left out. The state is a few numbers for each corpus.

    Args:
        lengths: tokens of each document, for each corpus.
        weights: shares of the corpora in the tokens, in any unit; empty for
            their own tokens, so that their epochs end at about the same time.
        seed: seed of the order, at least 0.
        least: fewest tokens of a document that is read.

    Raises:
        InputError: if weights do not fit, the seed is negative, or a corpus
            has no document that is long enough.

    Example:
        >>> order = DocumentOrder([np.array([5, 3, 9])], (), seed=0)
        >>> [next(order).document for _ in range(6)]
        [1, 2, 0, 2, 1, 0]
        >>> order.get_state()
        {'drawn': [6], 'tokens': [34]}
    """

    def __init__(
        self,
        lengths: Sequence[np.ndarray],
        weights: Sequence[float],
        seed: int,
        *,
        least: int = 2,
    ):
        check_count("seed", seed, 0, 2**32)
        check_weights(weights, len(lengths))
        for number, corpus in enumerate(lengths):
            if not len(corpus) or corpus.max() < least:
                raise InputError(
                    f"corpus {number + 1} of {len(lengths)} in data.paths has "
                    f"no document of at least {least} tokens; leave it out"
                )
        # Views read single numbers of a memory map much faster.
        self.lengths = [np.asarray(corpus) for corpus in lengths]
        self._weights = list(weights) or [
            float(corpus.sum(dtype=np.int64)) for corpus in self.lengths
        ]
        self._least = least
        self._shuffled = [_shuffled(len(corpus), seed) for corpus in lengths]
        zeros = [0] * len(lengths)
        self.set_state({"drawn": zeros, "tokens": zeros})

    def __iter__(self) -> "DocumentOrder":
        return self

    def __next__(self) -> Draw:
        corpus = 0
        if len(self.lengths) > 1:
            shares = zip(self._tokens, self._weights, strict=True)
            behind = [tokens / weight for tokens, weight in shares]
            corpus = behind.index(min(behind))
        draw = self._next[corpus]
        self._tokens[corpus] += draw.length
        self._drawn[corpus] += 1
        self._next[corpus] = self._look(corpus)
        return draw

    def _look(self, corpus: int) -> Draw:
        """Goes on to the next document of a corpus that is long enough."""
        lengths, shuffled = self.lengths[corpus], self._shuffled[corpus]
        while True:
            drawn = self._drawn[corpus]
            index = shuffled(drawn)
            length = int(lengths[index])
            if length >= self._least:
                return Draw(corpus, index, length, drawn // len(lengths))
            self._drawn[corpus] += 1

    @property
    def epoch(self) -> int | None:
        """Epoch of the next document; ``None`` where corpora are mixed."""
        return self._next[0].epoch if len(self.lengths) == 1 else None

    def get_state(self) -> dict[str, Any]:
        """Returns the position, for :meth:`set_state`, as JSON values."""
        return {"drawn": [*self._drawn], "tokens": [*self._tokens]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a position."""
        self._drawn = [*state["drawn"]]
        self._tokens = [*state["tokens"]]
        self._next = [self._look(k) for k in range(len(self.lengths))]


def _shuffled(count: int, seed: int) -> Callable[[int], int]:
    """Returns the order of an endless repetition of ``range(count)``."""
    if count >= _GRAIN_COUNT:
        dataset = grain.MapDataset.range(count).seed(seed).shuffle().repeat()
        return dataset.__getitem__

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> list[int]:
        return random.Random(f"{seed}/{epoch}").sample(range(count), count)

    return lambda drawn: order(drawn // count)[drawn % count]


def check_weights(weights: Sequence[float], corpora: int) -> None:
    """Checks the shares of corpora.

    Raises:
        InputError: unless there are none, or a positive one for each corpus.
    """
    if not all(is_number(weight) and weight > 0 for weight in weights):
        raise InputError(f"data.weights={weights!r} must be positive numbers")
    if len(weights) not in (0, corpora):
        raise InputError(
            f"data.weights={weights!r} has {len(weights)} numbers and "
            f"data.paths has {corpora} corpora; give one number for each, or "
            "none"
        )
