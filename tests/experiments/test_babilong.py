"""BABILong: stories against a reader in plain Python, prompts, the script."""

import numpy as np
import pytest

from experiments.haystacks import babilong, stories
from experiments.haystacks.words import background

WORDS = babilong.word_ids(background("topics"))


def retell(facts):
    """Returns where people and things have been, in order."""
    people, things, holders = {}, {}, {}
    for fact in facts:
        person, *_, last, dot = fact
        assert dot == "." and person in stories.PEOPLE
        if last in stories.PLACES:
            assert people.get(person, [None])[-1] != last
            people.setdefault(person, []).append(last)
            for thing, holder in holders.items():
                if holder == person:
                    things[thing].append(last)
        elif fact[1] in ("took", "picked", "grabbed"):
            assert last not in holders
            here = people[person][-1]
            assert things.setdefault(last, [here])[-1] == here
            holders[last] = person
        else:
            assert fact[1] in ("dropped", "left", "discarded")
            assert holders.pop(last) == person
    return people, things


@pytest.mark.parametrize("task", stories.TASKS)
def test_the_answer_follows_from_the_facts(task):
    rng = np.random.default_rng(0)
    least, most = stories.TASKS[task].facts
    counts, answers = set(), set()
    for _ in range(300):
        facts, question, answer = stories.tell(task, rng)
        people, things = retell(facts)
        if task == "qa1":
            assert question[:2] == ["where", "is"]
            assert answer == people[question[2]][-1]
        elif task == "qa2":
            assert answer == things[question[3]][-1]
        else:
            places = things[question[3]]
            assert places.count(question[6]) == 1
            assert answer == places[places.index(question[6]) - 1]
        counts.add(len(facts))
        answers.add(answer)
    assert counts == set(range(least, most + 1))
    assert answers == set(stories.PLACES)


@pytest.mark.parametrize("length", [0, 128, 1000])
def test_prompts_hold_the_facts_in_order_between_sentences(length):
    rng = np.random.default_rng(1)
    told = [stories.tell("qa2", rng) for _ in range(5)]
    parts = list(babilong.streamed(told, rng, "topics", WORDS, length, 100))
    assert {part.shape[1] for part in parts[:-1]} <= {100}
    prompts = np.concatenate(parts, 1)
    sizes = [len(sum(s.facts, s.question)) for s in told]
    assert prompts.shape == (5, length or max(sizes))
    for row, story, size in zip(prompts, told, sizes, strict=True):
        text = WORDS.decode(row)
        gaps, at = [], 0
        for fact in [*story.facts, story.question]:
            found = text.index(" ".join(fact), at)
            gaps.append(text[at:found].strip())
            at = found + len(" ".join(fact))
        assert at == len(text)
        if length:
            # What would come after the last sentence stands at its cut end.
            cut = [gap for gap in gaps[:-1] if gap and gap[-1] != "."]
            last = [gap for gap in gaps if gap][-1:]
            assert cut in ([], last)
        else:
            filled = "<unknown> " * (max(sizes) - size)
            assert gaps == [filled.strip(), *[""] * len(story.facts)]


def test_half_of_the_prompts_of_training_are_stories_alone():
    rng = np.random.default_rng(0)
    prompts, answers = babilong.draw_answers(
        "qa1", rng, 200, 128, "topics", WORDS
    )
    alone = (prompts[:, :40] == 0).all(1)
    assert prompts.shape == (200, 128) and abs(alone.mean() - 0.5) < 0.12
    places = {WORDS.decode(row) for row in answers}
    assert places == {f"{place} ." for place in stories.PLACES}


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("garden .", True),
        ("the garden , not the office", True),  # The question names it.
        ("garden kitchen", False),
        ("kitchen", False),
        ("gardens", False),
        ("", False),
    ],
)
def test_an_answer_names_the_place_and_no_other(output, right):
    question = ["where", "was", "the", "milk", "before", "the", "office", "?"]
    assert stories.is_right(output, "garden", question) == right


def test_the_script_scores_each_length_and_reports_memory(
    finished, monkeypatch
):
    flags = (
        "--tasks=qa1",
        "--runs=lstm",
        "--width=8",
        "--batch=2",
        "--steps=2",
        "--tests=2",
        "--lengths=0,192",
        "--chunk=96",
    )
    out, record = finished(babilong, *flags)
    (row,) = record["rows"]
    assert len(row["scores"]) == len(row["memory"]) == 2
    assert all(first <= most for first, most in row["memory"])
    assert "| 0 words | 192 words | MB more |" in out
    monkeypatch.setattr(babilong, "run_one", lambda **_: 1 / 0)
    assert finished(babilong, *flags)[1]["rows"] == record["rows"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--lengths=", "must not be empty"),
        ("--length=95", "96"),
        ("--lengths=-1", "must be integers >= 0"),
        ("--tasks=qa4", "allowed are qa1, qa2, qa3"),
        ("--documents=nowhere", "no texts there"),
    ],
)
def test_wrong_flags(refused, flag, words):
    refused(babilong, words, flag)
