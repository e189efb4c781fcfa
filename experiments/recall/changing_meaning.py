"""Documents in which tokens change their meaning from phase to phase.

Each task draws tokens and targets ``[N, phases * PHASE]``; a target is -1 where
nothing is asked. Tokens are below ``VOCAB``.
"""

import itertools

import numpy as np

VOCAB = 32
PHASE = 48
"""Tokens of a phase, in three parts of 16."""
_PAIRS = PHASE // 6
_HALF = VOCAB // 2


def cipher(rng, count, phases):
    """Text of one source in a new cipher in each phase; all tokens are asked.

    The source is a Markov chain over 16 letters, the same in all documents, in
    which a letter has three successors. A cipher is a permutation of letters.
    """
    chain = np.random.default_rng(0)
    successors = chain.permuted(np.tile(np.arange(_HALF), (_HALF, 1)), axis=1)
    chosen = rng.choice(3, (count, phases * PHASE + 1), p=[0.7, 0.2, 0.1])
    letters = np.zeros_like(chosen)
    for place in range(1, letters.shape[1]):
        before = letters[:, place - 1]
        letters[:, place] = successors[before, chosen[:, place]]
    phase = np.minimum(np.arange(letters.shape[1]) // PHASE, phases - 1)
    ciphers = _orders(rng, (count, phases), _HALF)
    written = ciphers[np.arange(count)[:, None], phase, letters]
    # The first token of a phase cannot be known from those before it.
    targets = written[:, 1:].copy()
    targets[:, PHASE - 1 : -1 : PHASE] = -1
    return written[:, :-1], targets


def keys(rng, count, phases):
    """Pairs of a key and a value, then the keys; each phase has new values."""
    named = _orders(rng, (count,), _HALF)[:, :_PAIRS]

    def phase():
        values = _HALF + _orders(rng, (count,), _HALF)[:, :_PAIRS]
        return [(named, values, 0), _noise(rng, count), (named, values, 1)]

    return _asked(rng, [phase() for _ in range(phases)])


def aliases(rng, count, phases):
    """Names of names, then values of the former, then the latter are asked.

    A phase has new names, and needs two steps: a value is stored under one
    name, and asked for by another that stands beside it in the first part.
    """

    def phase():
        both = _orders(rng, (count,), _HALF)
        own, other = both[:, :_PAIRS], both[:, _PAIRS:]
        values = _HALF + _orders(rng, (count,), _HALF)[:, :_PAIRS]
        return [(own, other, 0), (own, values, 0), (other, values, 1)]

    return _asked(rng, [phase() for _ in range(phases)])


def products(rng, count, phases):
    """Permutations of three things; asked is the product of all so far.

    Nothing changes its meaning here: the state is what has to be tracked.
    """
    group = list(itertools.permutations(range(3)))
    times = np.array(
        [[group.index(tuple(a[i] for i in b)) for b in group] for a in group]
    )
    tokens = rng.integers(0, len(group), (count, phases * PHASE))
    targets, state = np.zeros_like(tokens), np.zeros(count, int)
    for place in range(tokens.shape[1]):
        state = times[state, tokens[:, place]]
        targets[:, place] = state
    return tokens, targets


TASKS = {
    "cipher": cipher,
    "keys": keys,
    "aliases": aliases,
    "products": products,
}


def _orders(rng, lead, size):
    return rng.permuted(
        np.broadcast_to(np.arange(size), (*lead, size)), axis=-1
    )


def _noise(rng, count):
    tokens = _HALF + rng.integers(0, _HALF, (2, count, _PAIRS))
    return tokens[0], tokens[1], 0


def _asked(rng, phases):
    """Returns pairs in random order; the second of some is asked."""
    tokens, targets = [], []
    for first, second, asked in itertools.chain.from_iterable(phases):
        order = _orders(rng, (len(first),), _PAIRS)
        pair = np.stack([first, second], -1)
        pair = np.take_along_axis(pair, order[..., None], 1)
        goal = np.full_like(pair, -1)
        if asked:
            goal[..., 0] = pair[..., 1]
        tokens.append(pair.reshape(len(first), -1))
        targets.append(goal.reshape(len(first), -1))
    return np.concatenate(tokens, 1), np.concatenate(targets, 1)
