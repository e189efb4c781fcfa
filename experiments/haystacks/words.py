"""Texts as ids of words, single digits and signs."""

import collections
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from experiments.streams.documents import read_documents

UNKNOWN = "<unknown>"


def split(text: str) -> list[str]:
    """Returns the words, digits and signs of a text, in lower case.

    Example:
        >>> split("Room 12 is shut.")
        ['room', '1', '2', 'is', 'shut', '.']
    """
    return re.findall(r"[a-z]+|[^a-z\s]", text.lower())


class WordIds:
    """Ids of known words; all others have the id 0.

    Example:
        >>> words = WordIds(["a", "b", "a"])
        >>> words.encode(["b", "c"]), words.decode([1, 2, 0])
        ([2, 0], 'a b <unknown>')
    """

    def __init__(self, words: Iterable[str]):
        self._words = [UNKNOWN, *dict.fromkeys(words)]
        self._ids = {word: i for i, word in enumerate(self._words)}

    def __len__(self):
        return len(self._words)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Returns the ids of words."""
        return [self._ids.get(word, 0) for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the words of ids, with a space between two."""
        return " ".join(self._words[i] for i in ids)


@functools.cache
def background(kind: str) -> tuple[str, ...]:
    """Returns the words of texts of a kind; see ``read_documents``."""
    return tuple(
        w for text in read_documents(kind).values() for w in split(text)
    )


@functools.cache
def sentence_ends(kind: str) -> np.ndarray:
    """Returns how many words of a background come before each new sentence."""
    dots = [i + 1 for i, word in enumerate(background(kind)) if word == "."]
    return np.array(dots)


def common(words: Iterable[str], count: int) -> list[str]:
    """Returns the most frequent words.

    Example:
        >>> common("abcbcc", 2)
        ['c', 'b']
    """
    counts = collections.Counter(words)
    return sorted(counts, key=lambda word: (-counts[word], word))[:count]


def cut(words: Sequence[str], rng: np.random.Generator, size: int) -> list[str]:
    """Returns ``size`` words from a random place on, repeated if too few."""
    start = int(rng.integers(len(words)))
    times = -(-(start + size) // len(words))
    return [*(words * times)[start : start + size]]
