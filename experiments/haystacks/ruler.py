"""Needles in haystacks, after RULER (Hsieh et al., arXiv 2404.06654).

A prompt is a haystack with needles, "One of the special magic numbers for
{key} is: {value}.", and a question. Keys are pairs of an adjective and a noun;
a fifth of the pairs occurs in tests only.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.haystacks.words import WordIds, common, cut, split
from nl_jax.errors import InputError

_NOISE = split(
    "The grass is green. The sky is blue. The sun is yellow. Here we go. "
    "There and back again."
)
_DEPTHS = np.linspace(0, 1, 40)
_COMMON = 1000
_ADJECTIVES = split(
    "ancient bitter bold brave bright calm careful clever cold cosy curious "
    "dark deep eager early fair fancy gentle golden grand happy heavy honest "
    "humble idle jolly kind late light lively loud lucky mellow modest narrow "
    "noble odd patient plain proud"
)
_NOUNS = split(
    "anchor apple badger barrel beacon bridge candle canyon castle cherry "
    "cloud comet copper cottage desert dragon eagle engine falcon feather "
    "forest garden glacier hammer harbor island jacket kettle lantern lemon "
    "marble meadow mirror mountain needle orchard otter pebble piano planet"
)
Key = tuple[str, ...]


class NeedleTask(NamedTuple):
    """What is hidden in which haystack, and what is asked for."""

    haystack: str
    """``"noise"``, ``"essay"`` or ``"needles"``, of keys not asked for."""
    kind: str = "numbers"
    """Of values: ``"numbers"`` of seven digits or ``"uuids"``."""
    keys: int = 1
    values: int = 1
    """Of each key."""
    queries: int = 1
    """Keys that are asked for."""


TASKS = {
    "s-niah-1": NeedleTask("noise"),
    "s-niah-2": NeedleTask("essay"),
    "s-niah-3": NeedleTask("essay", "uuids"),
    "mk-1": NeedleTask("essay", keys=4),
    "mk-2": NeedleTask("needles"),
    "mv": NeedleTask("essay", values=4),
    "mq": NeedleTask("essay", keys=4, queries=4),
}
"""RULER's tasks with one and several keys, values and queries."""


class Needles(NamedTuple):
    """Prompts of equal length, their answers, and what these must contain."""

    prompts: np.ndarray
    """Ids, int32 ``[N, T]``."""
    answers: np.ndarray
    """Ids, int32 ``[N, A]``."""
    references: list[list[str]]
    """The values that are asked for, as decoded."""


def word_ids(essay: Sequence[str]) -> WordIds:
    """Returns ids of all words of needles, and of the essay's commonest."""
    needed = "one of the special magic numbers uuids for is are : , . -"
    signs = [*needed.split(), *"0123456789abcdef"]
    known = [*signs, *_NOISE, *_ADJECTIVES, *_NOUNS]
    return WordIds([*known, *common(essay, _COMMON)])


def all_keys(training: bool) -> list[Key]:
    """Returns the keys of training, or those of tests."""
    return [
        (adjective, "-", noun)
        for i, adjective in enumerate(_ADJECTIVES)
        for j, noun in enumerate(_NOUNS)
        if ((i + j) % 5 > 0) == training
    ]


def draw(
    task: NeedleTask,
    rng: np.random.Generator,
    count: int,
    length: int,
    essay: Sequence[str],
    words: WordIds,
    *,
    training: bool,
) -> Needles:
    """Draws prompts of a task.

    Args:
        task: one of ``TASKS``.
        rng: NumPy generator.
        count: of prompts.
        length: tokens of a prompt.
        essay: words to cut haystacks from.
        words: ids of words.
        training: whether keys are those of training.

    Raises:
        InputError: if needles and question are longer than a prompt.
    """
    keys = all_keys(training)
    drawn = [_one(task, rng, length, essay, keys) for _ in range(count)]
    prompts, answers, values = zip(*drawn, strict=True)
    return Needles(
        np.array([words.encode(prompt) for prompt in prompts], np.int32),
        np.array([words.encode(answer) for answer in answers], np.int32),
        [[" ".join(value) for value in own] for own in values],
    )


def _one(task, rng, length, essay, all_keys):
    order = rng.permutation(len(all_keys))
    keys = [all_keys[i] for i in order[: task.keys]]
    others = [all_keys[i] for i in order[task.keys :]]
    told: dict[Key, list] = {key: [] for key in keys}
    needles = []
    for i in rng.permutation(task.keys * task.values):
        key, value = keys[i % task.keys], _value(task, rng)
        told[key].append(value)
        needles.append(_needle(task, key, value))
    asked = keys[: task.queries]
    values = [value for key in asked for value in told[key]]
    question = split(f"The special magic {task.kind} for")
    question += [*_listed(asked), "are" if len(values) > 1 else "is", ":"]
    size = length - len(question) - sum(map(len, needles))
    if size < 0:
        raise InputError(
            f"--length={length}: the task has needles and a question of "
            f"{length - size} tokens"
        )
    hay = _haystack(task, rng, size, essay, others)
    prompt = _hidden(hay, needles, rng) + question
    return prompt, [*_listed(values), "."], values


def _value(task, rng):
    if task.kind == "numbers":
        return list(str(rng.integers(1_000_000, 10_000_000)))
    found = rng.bytes(16).hex()
    cuts = (0, 8, 12, 16, 20, 32)
    parts = (found[a:b] for a, b in itertools.pairwise(cuts))
    return list("-".join(parts))


def _needle(task, key, value):
    head = split(f"One of the special magic {task.kind} for")
    return [*head, *key, "is", ":", *value, "."]


def _listed(items):
    """Joins lists of words with commas between them."""
    first, *rest = items
    return [*first, *(word for item in rest for word in (",", *item))]


def _haystack(task, rng, size, essay, keys):
    """Returns ``size`` words."""
    if task.haystack == "noise":
        return cut(_NOISE, rng, size)
    if task.haystack == "essay":
        return cut(essay, rng, size)
    found: list[str] = []
    while len(found) < size:
        key = keys[rng.integers(len(keys))]
        found += _needle(task, key, _value(task, rng))
    return found[len(found) - size :]


def _hidden(hay, needles, rng):
    """Returns a haystack with needles, in order, between its sentences."""
    ends = [0, *(i + 1 for i, word in enumerate(hay) if word == ".")]
    depths = np.sort(rng.choice(_DEPTHS, len(needles), replace=False))
    found, last = [], 0
    for depth, needle in zip(depths, needles, strict=True):
        place = ends[round(depth * (len(ends) - 1))]
        found += hay[last:place] + needle
        last = place
    return found + hay[last:]


def score(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns the mean share of reference strings that an output contains.

    Example:
        >>> score(["1 2 , 3 4 .", "5 6 ."], [["1 2", "4 3"], ["5 6"]])
        0.75
    """
    shares = [
        np.mean([reference in output for reference in own])
        for output, own in zip(outputs, references, strict=True)
    ]
    return float(np.mean(shares))
