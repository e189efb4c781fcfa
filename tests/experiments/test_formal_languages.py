"""Formal languages: the generators, one small run, wrong flags."""

import numpy as np
import pytest

from experiments.languages import formal_languages
from experiments.languages.formal import LANGUAGES, draw


def strings(name, part=0, count=200):
    language = LANGUAGES[name]
    symbols, labels = draw(language, np.random.default_rng(0), count, part)
    assert symbols.max() < language.symbols
    assert labels.max() < language.classes
    for row, wanted in zip(symbols, labels, strict=True):
        size = int((wanted >= 0).sum())
        assert (wanted[size:] == -1).all()
        yield [*row[:size]], [*wanted[:size]]


def test_parity():
    for bits, labels in strings("parity"):
        ones = 0
        for bit, label in zip(bits, labels, strict=True):
            ones += bit
            assert label == (ones % 2 == 0)


@pytest.mark.parametrize(
    ("name", "word"), [("aa", [0, 0]), ("abab", [0, 1] * 2)]
)
def test_repetitions(name, word):
    """The label tells apart what may come next, and whether it may end."""
    for symbols, labels in strings(name):
        assert symbols == word * (len(symbols) // len(word))
        for t, label in enumerate(labels, 1):
            ends = t % len(word) == 0
            assert label % 2 == ends and label // 2 == symbols[t - 1]


@pytest.mark.parametrize(("name", "letters"), [("anbn", 2), ("anbncn", 3)])
def test_counts(name, letters):
    for symbols, labels in strings(name):
        n = len(symbols) // letters
        assert symbols == sorted([*range(letters)] * n)
        for t, label in enumerate(labels, 1):
            # 0: a or b; else the one symbol that is legal, or the end.
            following = symbols[t] if t < len(symbols) else letters
            assert label == (0 if t <= n - 1 or t == n else following)


def test_shuffle():
    """Each kind is balanced by itself; the label says which are open."""
    both = 0
    for symbols, labels in strings("shuffle-2"):
        depth = [0, 0]
        for symbol, label in zip(symbols, labels, strict=True):
            depth[symbol // 2] += 1 - 2 * (symbol % 2)
            assert min(depth) >= 0
            assert label == (depth[0] > 0) + 2 * (depth[1] > 0)
            both += label == 3
        assert depth == [0, 0]
    assert both > 100, "kinds are interleaved"


@pytest.mark.parametrize("name", LANGUAGES)
def test_bins_do_not_overlap(name):
    parts = [
        {len(symbols) for symbols, _ in strings(name, part)} for part in (0, 1)
    ]
    assert max(parts[0]) < min(parts[1])


def test_a_run_is_kept(finished):
    flags = (
        "--languages=parity",
        "--runs=transformer",
        "--steps=2",
        "--batch=2",
        "--width=8",
        "--strings=20",
        "--test_strings=4",
    )
    out, _ = finished(formal_languages, *flags)
    assert "parity transformer seed 0 step 2" in out and "rope_base=None" in out
    out, record = finished(formal_languages, *flags)
    assert "step 2" not in out
    assert len(record["runs"]) == 1 and len(record["runs"][0]["bins"]) == 2


def test_control_differs_in_the_step_alone():
    ours, control = (
        formal_languages.RUNS[name][1]["titans"]
        for name in ("hope-held", "hope-held-positive")
    )
    assert {k for k in ours if ours[k] != control[k]} == {"eta_max"}
    longest = max(LANGUAGES[name].sizes[1][1] for name in ("parity", "aa"))
    chunks = {control["chunk_size"], control["memory_chunk_size"]}
    assert min(chunks) > longest, "else more than alpha - eta moves a memory"
    assert ours["eta_max"] == 2 and control["eta_max"] == 1


def test_every_number_has_its_choices(tmp_path, capsys):
    row = {"language": "parity", "run": "hope", "seed": 0, "bins": [50, 25]}
    row |= {"steps": 1, "parameters": 9, "curve": [[1, 0.5, 50, 25]]}
    rows = [row, row | {"run": "transformer"}]
    formal_languages.summarize(rows, {}, tmp_path)
    line = capsys.readouterr().out.splitlines()[2]
    assert "50.0 | 25.0" in line
    assert "chunk_size=1," in line and "eta_max=2," in line


@pytest.mark.slow
def test_parity_needs_the_long_step(finished):
    _, record = finished(
        formal_languages,
        "--languages=parity",
        "--runs=hope,hope-held-positive",
        "--steps=300",
        "--every=50",
        "--test_strings=100",
    )
    ours, control = (row["bins"] for row in record["runs"])
    assert ours == [100, 100] and control[1] < 50


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--languages=latin", "allowed are parity, aa"),
        ("--runs=gpt", "allowed are hope, hope-held"),
        ("--steps=0", "steps"),
    ],
)
def test_wrong_flags(refused, flag, words):
    refused(formal_languages, words, flag)
