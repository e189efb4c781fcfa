"""Invented languages: words of syllables, a word order, an affix.

Sentences of all languages consist of a noun and a verb. A language has its own
two syllables for each noun and verb, its own word order, and an affix after
either the noun or the verb. Every item is one token, so there is nothing to
learn except the language.
"""

import itertools
from typing import NamedTuple

import numpy as np

Sentence = tuple[int, int]

_NOUNS, _VERBS, _SYLLABLES = 6, 4, 12
_CONCEPTS = _NOUNS + _VERBS
SENTENCES = _NOUNS * _VERBS
"""Number of sentences of a language."""
TAGS = 4
"""Number of tags, which are the names of languages."""
_COLON = _CONCEPTS + _SYLLABLES + TAGS
VOCABULARY = _COLON + 1
"""Number of token ids: nouns, verbs, syllables, tags, a colon."""
PROMPT = 4
"""Tokens before a translation: tag, noun, verb, colon."""
PAIR = PROMPT + 5
"""Tokens of a sentence and its translation."""


class InventedLanguage(NamedTuple):
    """The random choices that define a language."""

    words: np.ndarray
    """The two syllables of each concept, ``[concepts, 2]``."""
    order: tuple[int, ...]
    """The first and the second word: 0 is the noun, 1 the verb."""
    marked: int
    """The word that has the affix."""
    affix: int
    """The syllable that is the affix."""


def invent(rng: np.random.Generator) -> InventedLanguage:
    """Draws a language; no two of its concepts share a word."""
    codes = rng.choice(_SYLLABLES**2, _CONCEPTS, replace=False)
    return InventedLanguage(
        np.stack(np.divmod(codes, _SYLLABLES), 1),
        tuple(int(role) for role in rng.permutation(2)),
        int(rng.integers(2)),
        int(rng.integers(_SYLLABLES)),
    )


def translate(language: InventedLanguage, sentence: Sentence) -> list[int]:
    """Returns the five syllables of a noun and a verb.

    Example:
        >>> words = np.arange(20).reshape(10, 2)
        >>> translate(InventedLanguage(words, (1, 0), 1, 7), (0, 6))
        [12, 13, 7, 0, 1]
    """
    out: list[int] = []
    for role in language.order:
        out += language.words[sentence[role]].tolist()
        if role == language.marked:
            out.append(language.affix)
    return out


def make_sentences(
    rng: np.random.Generator, learned: int, tested: int
) -> tuple[list[Sentence], list[Sentence]]:
    """Draws sentences to learn a language from, and other test sentences.

    In the sentences to learn from, all nouns occur equally often and so do all
    verbs, or almost so if the numbers do not divide. A sentence may occur
    twice.
    """

    def evenly(concepts):
        rounds = -(-learned // len(concepts))
        drawn = [rng.permutation(concepts) for _ in range(rounds)]
        return np.concatenate(drawn)[:learned].tolist()

    nouns, verbs = range(_NOUNS), range(_NOUNS, _CONCEPTS)
    chosen = list(zip(evenly(nouns), evenly(verbs), strict=True))
    left = sorted(set(itertools.product(nouns, verbs)) - set(chosen))
    held_out = rng.choice(len(left), tested, replace=False)
    return chosen, [left[i] for i in held_out]


def make_pairs(
    language: InventedLanguage, tag: int, sentences: list[Sentence]
) -> np.ndarray:
    """Returns tag, sentence, colon and translation, ``[n, PAIR]`` int32."""
    rows = [
        [
            _CONCEPTS + _SYLLABLES + tag,
            *sentence,
            _COLON,
            *(_CONCEPTS + s for s in translate(language, sentence)),
        ]
        for sentence in sentences
    ]
    return np.array(rows, np.int32).reshape(-1, PAIR)
