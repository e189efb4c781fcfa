"""Stories of people, places and things, by the rules of bAbI's tasks 1 to 3.

A person goes to places, takes things that lie there and drops them (Weston et
al., arXiv 1502.05698). A question needs one to three facts of the story.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.haystacks.words import background, sentence_ends

PEOPLE = ("daniel", "john", "mary", "sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
_GO = ("went to", "moved to", "travelled to", "journeyed to")
_TAKE = ("took", "picked up", "grabbed")
_DROP = ("dropped", "left", "discarded")


class Question(NamedTuple):
    """Where people or things are, and how long stories are."""

    text: str
    facts: tuple[int, int]
    """Fewest and most facts of a story."""


TASKS = {
    "qa1": Question("where is {person} ?", (2, 8)),
    "qa2": Question("where is the {thing} ?", (4, 10)),
    "qa3": Question("where was the {thing} before the {place} ?", (6, 14)),
}


class Story(NamedTuple):
    """Facts, a question, and the place that answers it, as words."""

    facts: list[list[str]]
    question: list[str]
    answer: str


def tell(task: str, rng: np.random.Generator) -> Story:
    """Draws a story whose question can be answered.

    Args:
        task: ``"qa1"``: where a person is; ``"qa2"``: where a thing is, which
            goes with the person who holds it; ``"qa3"``: where a thing was
            before it was at a place where it was once.
        rng: NumPy generator.
    """
    form, (fewest, most) = TASKS[task]
    while True:
        told = _simulate(
            rng, int(rng.integers(fewest, most + 1)), task != "qa1"
        )
        asked = list(_questions(task, form, *told[1:]))
        if asked:
            question, answer = asked[rng.integers(len(asked))]
            facts = [fact.split() for fact in told[0]]
            return Story(facts, question.split(), answer)


def _simulate(rng, count, with_things):
    """Returns facts, the places of people, and all places of things."""
    facts: list[str] = []
    at: dict[str, str] = {}
    holders: dict[str, str] = {}
    visited: dict[str, list[str]] = {}

    def pick(options: Sequence[str]) -> str:
        return options[rng.integers(len(options))]

    while len(facts) < count:
        person = pick(PEOPLE)
        place = at.get(person)
        held = [thing for thing in THINGS if holders.get(thing) == person]
        lying = [
            thing
            for thing in THINGS
            if thing not in holders and visited.get(thing, [place])[-1] == place
        ]
        act = rng.random() if with_things and place else 1.0
        if act < 0.35 and lying:
            thing = pick(lying)
            holders[thing] = person
            visited.setdefault(thing, [place])
            facts.append(f"{person} {pick(_TAKE)} the {thing} .")
        elif act < 0.5 and held:
            thing = pick(held)
            del holders[thing]
            facts.append(f"{person} {pick(_DROP)} the {thing} .")
        else:
            at[person] = pick([other for other in PLACES if other != place])
            for thing in held:
                visited[thing].append(at[person])
            facts.append(f"{person} {pick(_GO)} the {at[person]} .")
    return facts, at, visited


def _questions(task, form, at, visited) -> Iterator[tuple[str, str]]:
    """Yields all questions that have an answer, with it."""
    if task == "qa1":
        for person, place in at.items():
            yield form.format(person=person), place
        return
    for thing, places in visited.items():
        if task == "qa2":
            yield form.format(thing=thing), places[-1]
            continue
        for before, place in itertools.pairwise(places):
            if places.count(place) == 1:
                yield form.format(thing=thing, place=place), before


def scattered(
    story: Story, rng: np.random.Generator, kind: str, size: int
) -> Iterator[list[str]]:
    """Yields the words of a story with others between its facts.

    Args:
        story: to be told, its question last.
        rng: NumPy generator.
        kind: of the background, whose sentences are read from a random place
            on, again and again.
        size: words of it that are put between facts.
    """
    text, ends = background(kind), sentence_ends(kind)
    at = int(rng.integers(len(text)))
    places = at + np.sort(rng.integers(0, size + 1, len(story.facts)))
    rounds, rest = np.divmod(places, len(text))
    # At the sentence's end, or that of the text.
    ends = np.append(ends, len(text))
    places = rounds * len(text) + ends[np.searchsorted(ends, rest)]
    gaps = np.diff(np.minimum(places - at, size), prepend=0, append=size)
    for gap, fact in zip(gaps, [*story.facts, story.question], strict=True):
        left = int(gap)
        while left:
            part = list(text[at : at + min(left, 4096)])
            at = (at + len(part)) % len(text)
            left -= len(part)
            yield part
        yield fact


def is_right(output: str, answer: str, question: Sequence[str]) -> bool:
    """Returns whether the places in an output are the answer only.

    Places that the question names do not count.

    Example:
        >>> question = "where was the milk before the office ?".split()
        >>> is_right("the garden , not the office", "garden", question)
        True
        >>> is_right("garden or kitchen", "garden", question)
        False
    """
    found = {place for place in PLACES if place in output.split()}
    return found - {*question} == {answer}
