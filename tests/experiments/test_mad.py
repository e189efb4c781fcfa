"""MAD: generators against rules applied in plain Python, and the script."""

import jax
import numpy as np
import pytest

from experiments.recall.task import RUNS
from experiments.synthetic import mad
from experiments.synthetic.mad_tasks import TASKS, accuracies


def draw(name, *, count=200, length=64, training=False, seed=0):
    rng = np.random.default_rng(seed)
    tokens, targets = TASKS[name].draw(rng, count, length, training)
    assert tokens.shape == targets.shape == (count, length)
    assert tokens.min() >= 0 and tokens.max() < TASKS[name].vocab
    return tokens.tolist(), targets.tolist()


def answers(row, pairs):
    """Returns the targets of a row from pairs (first place, key, value)."""
    told, wanted = {}, [-1] * len(row)
    for at, key, value in pairs:
        if key in told:
            assert told[key] == value
            for i, token in enumerate(value):
                wanted[at + len(key) + i - 1] = token
        told[key] = value
    return wanted


@pytest.mark.parametrize("name", ["recall", "noisy-recall"])
def test_recall_asks_for_values_of_shown_keys(name):
    noise, last, values = 0, set(), set()
    for row, targets in zip(*draw(name), strict=True):
        pairs = []
        for at in range(0, 64, 2):
            key, value = row[at : at + 2]
            if key >= 16:
                assert value >= 16 and at < 62
                noise += 1
                continue
            assert key < 8 <= value < 16
            pairs.append((at, (key,), (value,)))
            values.add(value)
        assert targets == answers(row, pairs)
        assert targets[62] == row[63]  # The last key was shown.
        last.add(row[62])
    assert last == set(range(8)) and values == set(range(8, 16))
    share = noise / (200 * 31)
    assert share == 0 if name == "recall" else abs(share - 0.2) < 0.02


@pytest.mark.parametrize("name", ["recall", "noisy-recall", "fuzzy-recall"])
def test_recall_trains_on_every_next_token(name):
    tokens, targets = draw(name, training=True)
    for row, wanted in zip(tokens, targets, strict=True):
        assert wanted == [*row[1:], -1]


def motifs(row):
    """Splits a row into pads and pairs (first place, key, value)."""
    start = next(i for i, token in enumerate(row) if token != 15)
    cuts = [
        i
        for i in range(start, len(row))
        if i == start or (row[i] < 7 <= row[i - 1])
    ]
    pairs = []
    for a, b in zip(cuts, [*cuts[1:], len(row)], strict=True):
        middle = next(i for i in range(a, b) if row[i] >= 7)
        pairs.append((a, tuple(row[a:middle]), tuple(row[middle:b])))
    return start, pairs


@pytest.mark.parametrize("training", [True, False])
def test_fuzzy_recall_has_motifs_and_a_probe_at_a_random_place(training):
    places, sizes, pads = [], set(), set()
    drawn = draw("fuzzy-recall", training=training)
    for row, targets in zip(*drawn, strict=True):
        start, pairs = motifs(row)
        for _, key, value in pairs:
            assert len({*key}) == len(key) and len({*value}) == len(value)
            assert max(key) < 7 and min(value) >= 7 and max(value) < 15
            sizes |= {len(key), len(value)}
        wanted = answers(row, pairs)
        assert wanted[-2] == row[-1]  # The probe was shown.
        if not training:
            assert targets == wanted
        shown = [key for _, key, _ in pairs]
        places.append(shown.index(shown[-1]) / (len(shown) - 1))
        pads.add(start)
    assert sizes == ({1, 2, 3} if training else {3})
    # Another pair did not fit. In tests, ten of six tokens do.
    assert (max(pads) < 6 and len(pads) > 1) if training else pads == {4}
    assert abs(np.mean(places) - 0.45) < 0.1


def test_memorization_has_one_map_of_all_keys():
    told = {}
    for seed in (0, 1):
        tokens, targets = draw("memorization", length=32, seed=seed)
        for row, wanted in zip(tokens, targets, strict=True):
            assert row[1::2] == [255] * 16 and wanted[::2] == [-1] * 16
            for key, value in zip(row[::2], wanted[1::2], strict=True):
                assert told.setdefault(key, value) == value
    assert set(told) == set(range(127))
    assert len({*told.values()}) == 127
    assert min(told.values()) >= 127 and max(told.values()) < 255


def test_compression_asks_for_everything():
    tokens, targets = draw("compression", length=32)
    assert tokens == targets
    assert {row[-1] for row in tokens} == {15}
    assert {token for row in tokens for token in row[:-1]} == set(range(15))


def test_selective_copying_keeps_the_order_of_symbols():
    for row, targets in zip(*draw("selective-copying"), strict=True):
        symbols = [token for token in row[:47] if token < 14]
        assert len(symbols) == 16 and row[:47].count(14) == 31
        assert row[47:] == [15, *[14] * 16]
        assert targets == [-1] * 48 + symbols


def test_macro_accuracy():
    targets = np.array([[0, 0, 0, 0, 1, 1, 2, -1]])
    predicted = np.array([[0, 0, 0, 1, 1, 2, 3, 4]])
    # Class 0: 3 of 4; class 1: 1 of 2; class 2: none; class 3: no target.
    macro, token = accuracies(predicted, targets)
    assert macro == pytest.approx((0.75 + 0.5 + 0 + 0) / 4)
    assert token == pytest.approx(4 / 7)


SMALL = (
    "--runs=lstm",
    "--width=16",
    "--length=34",
    "--batch=4",
    "--examples=8",
    "--tests=6",
    "--steps=3",
    "--every=2",
)


def test_the_script_writes_both_accuracies_and_repeats_nothing(
    finished, monkeypatch
):
    flags = (*SMALL, "--tasks=compression")
    out, record = finished(mad, *flags)
    assert "compression lstm seed 0 step 2 loss" in out
    for row in record["rows"]:
        assert [point[0] for point in row["curve"]] == [2, 3]
        assert row["curve"][-1][2:] == [row["macro"], row["token"]]
        assert row["tokens"] == 32
    assert "| compression | lstm | 32 | 3 |" in out
    monkeypatch.setattr(mad, "train", lambda **_: 1 / 0)
    assert finished(mad, *flags)[1]["rows"] == record["rows"]


def test_a_compressor_reads_the_whole_sequence_in_its_last_vector():
    model = mad.model_for("lstm", "compression", 16, 32)
    tokens = np.zeros((2, 32), np.int32)
    tokens[1, 5] = 1
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    logits, _ = jax.jit(model.apply)(variables, tokens)
    assert logits.shape == (2, 32, 16)
    assert np.abs(logits[0] - logits[1]).max(-1).min() > 0


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--tasks=", "must not be empty"),
        ("--tasks=copying", f"allowed are {', '.join(TASKS)}"),
        ("--length=32", "34"),
        ("--length=35", "even"),
        ("--runs=none", f"allowed are {', '.join(RUNS)}"),
    ],
)
def test_wrong_flags(refused, flag, words):
    refused(mad, words, flag)
