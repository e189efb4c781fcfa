"""Novel languages: the generator, one small run, wrong flags."""

import jax
import numpy as np
import pytest

from experiments.languages import novel_languages, stream
from experiments.languages.invented import (
    PAIR,
    PROMPT,
    VOCABULARY,
    invent,
    make_pairs,
    make_sentences,
    translate,
)
from nl_jax.continual import metrics


def draw(seed, learned=12, tested=12):
    rng = np.random.default_rng(seed)
    return invent(rng), *make_sentences(rng, learned, tested)


def test_the_same_seed_draws_the_same():
    (first, *sentences), (second, *again) = draw(3), draw(3)
    assert sentences == again and first[1:] == second[1:]
    assert (first.words == second.words).all()
    assert (first.words != draw(4)[0].words).any()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_tested_was_not_learned_but_its_words_were(seed):
    _, learned, tested = draw(seed)
    assert len(learned) == 12 and len(set(tested)) == 12
    assert not set(learned) & set(tested)
    nouns, verbs = map(np.bincount, zip(*learned, strict=True))
    assert nouns.tolist() == [2] * 6 and verbs.tolist() == [0] * 6 + [3] * 4


@pytest.mark.parametrize("seed", range(20))
def test_a_translation_has_every_word_in_order_and_one_affix(seed):
    """It says which sentence it is of, and another never becomes the same."""
    language, learned, tested = draw(seed)
    assert len({tuple(word) for word in language.words.tolist()}) == 10
    seen = {}
    for sentence in learned + tested:
        out = translate(language, sentence)
        seen.setdefault(tuple(out), set()).add(sentence)
        assert out == translate(language, sentence) and len(out) == 5
        place = language.order.index(language.marked)
        assert out.pop(2 * place + 2) == language.affix
        words = [language.words[sentence[role]] for role in language.order]
        assert out == np.concatenate(words).tolist()
    assert all(len(sentences) == 1 for sentences in seen.values())


def test_languages_differ_in_all_that_is_invented():
    languages = [draw(seed)[0] for seed in range(40)]
    assert {language.order for language in languages} == {(0, 1), (1, 0)}
    assert {language.marked for language in languages} == {0, 1}
    assert len({language.affix for language in languages}) > 6


def test_pairs_tell_the_language_and_part_the_kinds_of_token():
    language, learned, _ = draw(0)
    first, second = (make_pairs(language, tag, learned) for tag in (0, 3))
    assert first.shape == (12, PAIR) and first.max() < VOCABULARY
    assert (first[:, 1:] == second[:, 1:]).all()
    assert (second[:, 0] - first[:, 0] == 3).all()
    assert (first[:, 1:3] == learned).all()
    assert np.ptp(first[:, PROMPT - 1]) == 0
    kinds = [first[:, :1], first[:, 1:3], first[:, 3:4], first[:, PROMPT:]]
    values = [set(kind.ravel().tolist()) for kind in kinds]
    assert sum(map(len, values)) == len(set.union(*values))


def test_streams_of_test_and_training_are_not_the_same():
    sizes = (3, 12, 4)
    read, asked = stream.make_stream(np.random.default_rng(0), *sizes)
    assert read.shape == (3, 12, PAIR) and asked.shape == (3, 4, PAIR)
    assert len(set(read[:, 0, 0].tolist())) == 3
    other, _ = stream.make_stream(np.random.default_rng((0, 1)), *sizes)
    assert (read[:, :, PROMPT:] != other[:, :, PROMPT:]).any()


def test_runs_have_equally_many_weights():
    settings = {"pairs": 4, "width": 48, "layers": 1, "rate": 0.5}
    settings |= {"languages": 2}
    counts = {}
    for run, levels in stream.LEVELS.items():
        model = stream.make_model(run, settings)
        variables = jax.eval_shape(lambda model=model: stream.init(model, 0))
        counts[run] = sum(x.size for x in jax.tree.leaves(variables))
        # A norm of each level, and its rate if it learns.
        counts[run] -= 48 * max(levels, 1) + levels
        assert model.learns_in_context == (levels > 0)
    assert len(set(counts.values())) == 1


def test_levels_begin_with_the_same_rate_per_token():
    settings = {"pairs": 12, "width": 48, "layers": 1, "rate": 0.5}
    settings |= {"languages": 2}
    model = stream.make_model("hope-3", settings)
    variables = stream.init(model, 0)
    _, rates = model.fast_parameters(variables["params"])
    periods = model.config.cms.periods
    assert periods == (PAIR, 4 * PAIR, 12 * PAIR)
    for rate, period in zip(rates, periods, strict=True):
        assert rate * period == pytest.approx(0.5 * PAIR)


TINY = (
    "--steps=2",
    "--batch=2",
    "--width=8",
    "--pairs=4",
    "--languages=2",
    "--streams=2",
    "--questions=3",
    "--seeds=0",
)


def test_a_run_is_kept(finished):
    flags = (*TINY, "--runs=hope-1,in context")
    out, record = finished(novel_languages, *flags)
    assert "seed 0, hope-1" in out and "step 2 loss" in out
    assert [row["run"] for row in record["rows"]] == ["hope-1", "in context"]
    for row in record["rows"]:
        for unit in ("syllables", "sentences"):
            R = np.array(row[unit]["R"])
            assert R.shape == (2, 2) and len(row[unit]["b"]) == 2
            assert row[unit]["forgetting"] == pytest.approx(
                metrics.forgetting(R), abs=1e-4
            )
        assert np.isfinite(row["losses"]).all() and len(row["losses"]) == 2
    again, _ = finished(novel_languages, *flags)
    assert again in out and "step" not in again


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--runs=gpt", "allowed are hope-1, "),
        ("--width=12", "must be a multiple of 8"),
        ("--pairs=6", "must be a multiple of 4"),
        ("--languages=5", "there are 4 tags"),
        ("--questions=21", "of the 24 sentences of a language 20 are"),
        ("--seeds=a", "--seeds=a"),
    ],
)
def test_wrong_flags(refused, flag, words):
    refused(novel_languages, words, *TINY, flag)
