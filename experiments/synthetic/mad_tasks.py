"""The six tasks of MAD (Poli et al., arXiv 2403.17844).

Recall and fuzzy recall are trained on every next token, and tested on the
values of keys that were shown before. The other tasks have the same targets in
training and in tests.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_HALF = 8
"""Keys, and values, of recall."""
_MOTIF = 3
"""Tokens of a motif, at most."""
_COPIED = 16
"""Symbols to be copied."""
_MAP_SEED = 0
Drawn = tuple[np.ndarray, np.ndarray]


class MadTask(NamedTuple):
    """A generator, and the sizes of the paper."""

    vocab: int
    length: int
    draw: Callable[[np.random.Generator, int, int, bool], Drawn]
    """Takes a generator, the number of sequences, their even length, and
    whether they are for training. Returns tokens and targets, int32 ``[N, T]``;
    targets are -1 where nothing is asked."""
    steps: int
    """At which small models are compared."""
    examples: int = 12_800
    """To train on."""


def _recall(rng, count, length, training, noise=0.0):
    pairs = length // 2
    keys = rng.integers(0, _HALF, (count, pairs))
    is_noise = rng.random((count, pairs)) < noise
    is_noise[:, -1] = False
    kept = rng.integers(0, pairs - 1, count)  # One pair at least.
    is_noise[np.arange(count), kept] = False
    shown = keys[:, :-1, None] == np.arange(_HALF)
    shown = (shown & ~is_noise[:, :-1, None]).any(1)
    # A shown key, each with the same probability.
    keys[:, -1] = np.where(shown, rng.random(shown.shape), -1).argmax(-1)
    values = rng.integers(_HALF, 2 * _HALF, (count, _HALF))
    values = np.take_along_axis(values, keys, 1)
    tokens = np.stack([keys, values], -1)
    tokens[is_noise] = rng.integers(2 * _HALF, 4 * _HALF, (is_noise.sum(), 2))
    asked = np.zeros(tokens.shape, bool)
    asked[..., 1] = _repeated(np.where(is_noise, -1, keys)) & ~is_noise
    tokens, asked = (a.reshape(count, -1) for a in (tokens, asked))
    return _following(tokens, asked | training)


def _noisy_recall(rng, count, length, training):
    return _recall(rng, count, length, training, noise=0.2)


def _fuzzy_recall(rng, count, length, training):
    """Pairs of motifs; the first that is drawn is asked for at the end."""
    pairs = length // 2
    least = 1 if training else _MOTIF
    keys, key_sizes = _motifs(rng, (count, pairs), np.arange(7), least)
    values, value_sizes = _motifs(rng, (count, pairs), np.arange(7, 15), least)
    names = (np.where(keys < 0, 15, keys) * 16 ** np.arange(_MOTIF)).sum(-1)
    first = (names[:, :, None] == names[:, None]).argmax(-1)
    values = np.take_along_axis(values, first[..., None], 1)
    value_sizes = np.take_along_axis(value_sizes, first, 1)
    sizes = key_sizes + value_sizes
    held = sizes.cumsum(-1) <= length - sizes[:, :1]
    place = (rng.random(count) * held.sum(-1)).astype(int)
    order = np.arange(pairs) + np.zeros((count, 1), int)
    order = np.where(order < place[:, None], order + 1, order)
    order[np.arange(count), place] = 0
    order = np.concatenate([order, np.zeros((count, 1), int)], 1)
    held = np.concatenate([held, np.ones((count, 1), bool)], 1)
    names = np.take_along_axis(names, order, 1)
    found = np.concatenate([keys, values], -1)
    found = np.take_along_axis(found, order[..., None], 1)
    asked = np.zeros(found.shape, bool)
    asked[..., _MOTIF:] = _repeated(np.where(held, names, -1))[..., None]
    used = (found >= 0) & held[..., None]
    tokens = np.full((count, length), 15)
    wanted = np.zeros((count, length), bool)
    # Both masks go through the rows in order, and select as many of each.
    at = np.arange(length) >= length - used.sum((1, 2))[:, None]
    tokens[at], wanted[at] = found[used], asked[used]
    return _following(tokens, wanted | training)


def _motifs(rng, shape, symbols, least):
    """Draws motifs of different symbols, -1 after their ends, and sizes."""
    order = rng.random((*shape, len(symbols))).argsort(-1)[..., :_MOTIF]
    sizes = rng.integers(least, _MOTIF + 1, shape)
    motifs = np.where(np.arange(_MOTIF) < sizes[..., None], symbols[order], -1)
    return motifs, sizes


def _memorization(rng, count, length, training):
    del training
    pairs = length // 2
    keys = rng.integers(0, 127, (count, pairs))
    values = 127 + np.random.default_rng(_MAP_SEED).permutation(128)[:127]
    tokens = np.full((count, pairs, 2), 255)
    targets = np.full((count, pairs, 2), -1)
    tokens[..., 0], targets[..., 1] = keys, values[keys]
    return _as_ids(tokens), _as_ids(targets)


def _compression(rng, count, length, training):
    del training
    tokens = rng.integers(0, 15, (count, length))
    tokens[:, -1] = 15
    return _as_ids(tokens), _as_ids(tokens)


def _selective_copying(rng, count, length, training):
    del training
    symbols = rng.integers(0, 14, (count, _COPIED))
    before = length - _COPIED - 1
    places = rng.random((count, before)).argsort(-1)[:, :_COPIED]
    tokens = np.full((count, length), 14)
    np.put_along_axis(tokens, np.sort(places, -1), symbols, 1)
    tokens[:, before] = 15
    targets = np.full((count, length), -1)
    targets[:, -_COPIED:] = symbols
    return _as_ids(tokens), _as_ids(targets)


def _repeated(names):
    """Returns whether each name occurred before in its row."""
    same = names[:, :, None] == names[:, None]
    return np.tril(same, -1).any(-1)


def _following(tokens, asked):
    """Returns tokens, and as targets the next ones that are asked for."""
    targets = np.full(tokens.shape, -1)
    targets[:, :-1] = np.where(asked, tokens, -1)[:, 1:]
    return _as_ids(tokens), _as_ids(targets)


def _as_ids(array):
    return array.reshape(len(array), -1).astype(np.int32)


TASKS = {
    "recall": MadTask(16, 128, _recall, 600),
    "noisy-recall": MadTask(32, 128, _noisy_recall, 600),
    "fuzzy-recall": MadTask(16, 128, _fuzzy_recall, 600),
    "memorization": MadTask(256, 32, _memorization, 600, examples=256),
    "compression": MadTask(16, 32, _compression, 600),
    "selective-copying": MadTask(16, 256, _selective_copying, 1000),
}


def accuracies(predicted: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """Returns macro accuracy and the share of tokens that are right.

    Macro accuracy is the mean over classes of the share of their targets that
    are predicted. As in torchmetrics, a class that is predicted but never a
    target counts as 0, and one that is neither does not count.

    Example:
        >>> wanted = np.array([0, 0, 0, 1, -1])
        >>> macro, token = accuracies(np.array([0, 0, 0, 2, 2]), wanted)
        >>> round(macro, 3), token
        (0.333, 0.75)
    """
    asked = targets >= 0
    predicted, targets = predicted[asked], targets[asked]
    right = predicted == targets
    present = np.unique(np.concatenate([predicted, targets]))
    shares = [
        right[targets == c].mean() if (targets == c).any() else 0.0
        for c in present
    ]
    return float(np.mean(shares)), float(right.mean())
