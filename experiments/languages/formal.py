"""Formal languages as transduction: strings with a label at every step.

After Bhattamishra et al., arXiv 2009.11264. A label is either a property of the
prefix (parity) or the index of the set of symbols that may come next. Bin 0
holds the training lengths, bin 1 the longer lengths after them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class FormalLanguage(NamedTuple):
    """How strings of a language are drawn and labelled."""

    symbols: int
    """Input symbols."""
    classes: int
    """Labels."""
    sizes: tuple[tuple[int, int], tuple[int, int]]
    """Smallest and largest size in bin 0 and in bin 1, inclusive."""
    string: Callable[[np.random.Generator, int], tuple[list, list]]
    """``(rng, size) -> (symbols, labels)``."""


def _parity(rng, size):
    """Label 1 while the number of ones so far is even."""
    bits = rng.integers(0, 2, size)
    return bits, 1 - np.cumsum(bits) % 2


def _repeat(period):
    """``(a b a b ...)*``: label 1 at the end of a repetition."""

    def string(rng, size):
        del rng
        at = np.arange(size // period * period)
        symbols = at % 2 if period == 4 else 0 * at
        return symbols, np.where((at + 1) % period == 0, 1, 0) + 2 * symbols

    return string


def _counts(letters):
    """``a^n b^n ...``: the label is the set of symbols that may come next."""

    def string(rng, n):
        del rng
        symbols = np.repeat(np.arange(letters), n)
        # After an a, both a and b are allowed. The first b fixes n and so the
        # rest of the string.
        labels = np.concatenate([np.zeros(n, int), symbols[n + 1 :], [letters]])
        return symbols, labels

    return string


def _shuffle(rng, size):
    """Two kinds of brackets, each balanced; the label says which are open."""
    pairs = size // 2
    depth, symbols, labels, opened = [0, 0], [], [], 0
    for left in range(2 * pairs, 0, -1):
        total = sum(depth)
        close = total > 0 and (
            total == left or opened == pairs or rng.random() < 0.5
        )
        if close:
            kinds = [kind for kind in (0, 1) if depth[kind]]
            kind = kinds[rng.integers(len(kinds))]
            depth[kind] -= 1
        else:
            kind = int(rng.integers(2))
            depth[kind] += 1
            opened += 1
        symbols.append(2 * kind + close)
        labels.append((depth[0] > 0) + 2 * (depth[1] > 0))
    return symbols, labels


_SHORT = ((2, 50), (51, 100))
_N = ((1, 50), (51, 100))

LANGUAGES = {
    "parity": FormalLanguage(2, 2, _SHORT, _parity),
    # Sizes are rounded down to whole repetitions.
    "aa": FormalLanguage(1, 2, ((2, 51), (52, 101)), _repeat(2)),
    "abab": FormalLanguage(2, 4, ((4, 51), (52, 103)), _repeat(4)),
    "anbn": FormalLanguage(2, 3, _N, _counts(2)),
    "anbncn": FormalLanguage(3, 4, _N, _counts(3)),
    "shuffle-2": FormalLanguage(4, 4, ((2, 50), (52, 100)), _shuffle),
}


def draw(language: FormalLanguage, rng, count: int, part: int):
    """Draws strings, padded at their end.

    Args:
        language: one of ``LANGUAGES``.
        rng: NumPy generator.
        count: number of strings.
        part: bin 0 or 1.

    Returns:
        ``(symbols, labels)``, int32 ``[count, longest]``; labels are -1 in the
        padding.
    """
    least, most = language.sizes[part]
    strings = [
        language.string(rng, int(rng.integers(least, most + 1)))
        for _ in range(count)
    ]
    longest = max(len(symbols) for symbols, _ in strings)
    out = np.zeros((2, count, longest), np.int32)
    out[1] = -1
    for row, (symbols, labels) in enumerate(strings):
        out[0, row, : len(symbols)] = symbols
        out[1, row, : len(labels)] = labels
    return out[0], out[1]
