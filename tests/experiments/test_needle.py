"""Needles: prompts against the rules, greedy answers, and the script."""

import jax
import numpy as np
import pytest

from experiments.haystacks import answers, needle, ruler
from experiments.haystacks.words import WordIds, background
from nl_jax.models import build

ESSAY = ("it", "rains", ".", "we", "read", "a", "long", "book", "now", ".")
WORDS = ruler.word_ids(ESSAY)


def draw(name, *, count=60, length=160, training=False):
    rng = np.random.default_rng(0)
    task = ruler.TASKS[name]
    found = ruler.draw(
        task, rng, count, length, ESSAY, WORDS, training=training
    )
    prompts = [WORDS.decode(row) for row in found.prompts]
    answers = [WORDS.decode(row) for row in found.answers]
    assert found.prompts.shape == (count, length)
    return prompts, answers, found.references


def told(prompt):
    """Returns the values of each key in a prompt, and the haystack's rest."""
    found, parts = {}, prompt.split("one of the special magic ")
    rest = [parts[0]]
    for part in parts[1:]:
        head, _, more = part.partition(" is : ")
        value, _, more = more.partition(" . ")
        found.setdefault(head.split(" for ")[1], []).append(value)
        rest.append(more)
    return found, rest


@pytest.mark.parametrize("name", ruler.TASKS)
def test_the_answer_is_what_the_needles_of_the_asked_keys_say(name):
    task = ruler.TASKS[name]
    for prompt, answer, wanted in zip(*draw(name), strict=True):
        values, _ = told(prompt)
        question = prompt.rpartition("the special magic")[2]
        kind, _, asked = question.partition(" for ")
        assert kind.strip() == task.kind
        asked = asked.removesuffix(" :").rpartition(" ")[0].split(" , ")
        assert len(asked) == task.queries
        assert wanted == [v for key in asked for v in values[key]]
        assert answer == " , ".join(wanted) + " ."
        assert len(wanted) == task.queries * task.values
        if task.haystack != "needles":
            assert len(values) == task.keys
        for value in wanted:
            symbols = value.replace(" ", "")
            if task.kind == "numbers":
                assert 1_000_000 <= int(symbols) < 10_000_000
            else:
                cuts = [len(part) for part in symbols.split("-")]
                assert cuts == [8, 4, 4, 4, 12]
                int(symbols.replace("-", ""), 16)


def test_keys_of_tests_are_not_those_of_training():
    seen = [
        {
            key
            for prompt in draw("mk-2", training=t)[0]
            for key in told(prompt)[0]
        }
        for t in (True, False)
    ]
    # The first needle of a haystack may be cut off within its key.
    assert len({key for key in seen[0] & seen[1] if "-" in key}) == 0
    assert len(ruler.all_keys(True)) == 1280
    assert len(ruler.all_keys(False)) == 320


def test_needles_are_at_all_depths_between_sentences():
    depths = []
    for prompt in draw("s-niah-1", count=200)[0]:
        before, after = told(prompt)[1]
        assert before == "" or before.endswith(". ")
        after = after.rpartition("the special magic")[0]
        depths.append(len(before) / (len(before) + len(after)))
    assert min(depths) == 0 and max(depths) > 0.9
    assert abs(np.mean(depths) - 0.5) < 0.06


def test_an_essay_may_be_shorter_than_a_haystack():
    prompts, _, _ = draw("s-niah-2", count=1)
    assert prompts[0].count("rains") > 5


def test_answers_are_the_likeliest_tokens_after_all_of_a_prompt():
    model = build("lstm", vocab_size=20, d_model=8, n_heads=1, n_layers=1)
    prompts = np.arange(14).reshape(2, 7) % 20
    variables = jax.jit(model.init)(jax.random.key(3), prompts)
    written = answers.write_answer(model, variables, prompts, 3, chunk=4)
    read = np.concatenate([prompts, written.ids[:, :2]], 1)
    logits, _ = jax.jit(model.apply)(variables, read)
    assert (written.ids == logits[:, 6:].argmax(-1)).all()
    assert len(written.resident) == 2  # Chunks of four and of three.


def test_the_score_is_the_share_of_values_contained():
    outputs = ["1 2 3 , 7 .", "4 4", ""]
    values = [["1 2 3", "7", "8", "9"], ["4 4"], ["1"]]
    assert ruler.score(outputs, values) == pytest.approx((0.5 + 1 + 0) / 3)


SMALL = (
    "--runs=lstm",
    "--tasks=s-niah-1",
    "--width=8",
    "--length=64",
    "--batch=2",
    "--tests=3",
    "--steps=2",
    "--factors=1,2",
)


def test_the_script_scores_each_length(finished, monkeypatch):
    out, record = finished(needle, *SMALL)
    (row,) = record["rows"]
    assert len(row["scores"]) == 2 and len(row["curve"]) == 1
    assert "| 64 tokens | 128 tokens |" in out
    monkeypatch.setattr(needle, "run_one", lambda **_: 1 / 0)
    assert finished(needle, *SMALL)[1]["rows"] == record["rows"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--factors=", "must not be empty"),
        ("--length=20", "needles and a question of 30 tokens"),
        ("--factors=0", "must be integers >= 1"),
        ("--documents=nowhere", "no texts there"),
        ("--tasks=s-niah", "allowed are s-niah-1"),
    ],
)
def test_wrong_flags(refused, flag, words):
    refused(needle, words, "--tasks=s-niah-1", flag)


def test_unknown_words_of_the_essay_have_one_id():
    words = WordIds(["a"])
    assert words.encode(["a", "b", "c"]) == [1, 0, 0] and len(words) == 2
    assert len(background("topics")) > 50_000
