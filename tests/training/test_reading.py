"""Batches of whole documents: packed, and read on from step to step."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.data import (
    DataConfig,
    Document,
    DocumentsInMemory,
    make_iterator,
    prepare,
    train_batches,
)
from nl_jax.data import packing as packing_module
from nl_jax.data.packing import best_fit
from nl_jax.errors import InputError

STRIDE = 1000
"""Token ``i`` of document ``d`` is ``d * STRIDE + i``: each occurs once."""
CASES = settings(max_examples=20, deadline=None)
LENGTHS = st.lists(st.integers(2, 40), min_size=4, max_size=12)
SMALL_BLOCKS = {"_BLOCK_TOKENS": 60, "_BLOCK_WINDOWS": 1}


def corpus(lengths, first=0, weighted=False):
    documents = []
    for number, length in enumerate(lengths, first):
        tokens = np.arange(length, dtype=np.int32) + number * STRIDE
        weights = (tokens % 3 / 2).astype(np.float32) if weighted else None
        documents.append(Document(tokens, weights))
    return DocumentsInMemory(documents)


def batches(lengths, reading, **options):
    options = {"seq_len": 8, "batch_size": 1, "seed": 0} | options
    return make_iterator([corpus(lengths)], reading=reading, **options)


def arrays(batch):
    return [a for a in batch if a is not None]


def targets(batch):
    """Returns the targets that count in each row, and checks their ids."""
    tokens, ids, _ = batch
    out = []
    for row, segments in zip(tokens, ids, strict=True):
        assert (np.diff(segments[segments > 0]) >= 0).all()
        assert not segments[: np.count_nonzero(segments)].tolist().count(0)
        counts = (segments[:-1] == segments[1:]) & (segments[1:] != 0)
        # Consecutive tokens of one document: no two share an id.
        assert (np.diff(row)[counts] == 1).all()
        out.append(row[1:][counts].tolist())
    return out


def all_targets(lengths):
    return {d * STRIDE + i for d, n in enumerate(lengths) for i in range(1, n)}


@CASES
@given(LENGTHS, st.integers(0, 3), st.sampled_from(["packed", "contiguous"]))
def test_each_epoch_predicts_each_token_once(lengths, seed, reading):
    lengths = [*lengths, 1, 9]
    iterator = batches(lengths, reading, seed=seed)
    expected = all_targets(lengths)
    found = []
    while len(found) < 3 * len(expected):
        found += targets(next(iterator))[0]
    for epoch in range(3):
        start = epoch * len(expected)
        part = found[start : start + len(expected)]
        assert len(part) == len(set(part)) and set(part) == expected


@CASES
@given(LENGTHS, st.integers(0, 2), st.sampled_from([0.0, 0.25, 0.5]))
def test_rows_read_documents_on(lengths, carry_windows, packed_share):
    lengths = [*lengths, 36]
    iterator = batches(
        lengths,
        "contiguous",
        batch_size=4,
        carry_windows=carry_windows,
        packed_share=packed_share,
    )
    segments = collections.defaultdict(list)
    windows = collections.Counter()
    last = np.zeros(4, np.int64)
    for _ in range(20):
        batch = next(iterator)
        targets(batch)
        assert (batch.segment_ids[:, 0] >= last).all()
        last = batch.segment_ids[:, -2]
        for row in range(4):
            for token, segment in zip(
                batch.tokens[row], batch.segment_ids[row], strict=True
            ):
                if not segment:
                    continue
                found = segments[row, segment]
                # The last token of a window is the first of the next one.
                if not found or found[-1] != token:
                    found.append(token)
            inputs = batch.segment_ids[row, :-1]
            windows.update((row, s) for s in set(inputs.tolist()) - {0})
    packed = {2: {1, 3}, 1: {3}, 0: set()}[round(4 * packed_share)]
    rows = collections.defaultdict(list)
    for (row, _), found in segments.items():
        assert (np.diff(found) == 1).all()
        if row not in packed:
            rows[row].append(found)
    for found in rows.values():
        joined = [found[0]]
        for piece in found[1:]:
            if carry_windows and piece[0] == joined[-1][-1]:
                joined[-1] = joined[-1] + piece[1:]
            else:
                joined.append(piece)
        for document in joined[:-1]:
            number, start = divmod(document[0], STRIDE)
            assert start == 0
            assert len(document) == lengths[number]
    for (row, _), count in windows.items():
        most = 1 if row in packed else carry_windows
        assert count <= (most or 20)


@pytest.mark.parametrize("reading", ["windows", "packed", "contiguous"])
@pytest.mark.parametrize("processes", [2, 4])
def test_resumed_on_any_number_of_processes(monkeypatch, reading, processes):
    for name, value in SMALL_BLOCKS.items():
        monkeypatch.setattr(packing_module, name, value)
    sources = [
        corpus([30, 5, 9, 80, 2, 14], weighted=True),
        corpus([25] * 4, 6),
    ]
    options = {"seq_len": 8, "batch_size": 4, "seed": 5, "reading": reading}
    options |= {"weights": (2, 1), "carry_windows": 3}
    if reading == "contiguous":
        options["packed_share"] = 0.25
    whole = make_iterator(sources, **options)
    states, expected = [], []
    for _ in range(30):
        states.append(json.loads(json.dumps(whole.get_state())))
        expected.append(next(whole))
    share = 4 // processes
    for process in range(processes):
        rows = range(process * share, (process + 1) * share)
        for start in (0, 7, 19):
            part = make_iterator(sources, **options, rows=rows)
            part.set_state(states[start])
            for step in range(start, 30 if start else 8):
                for a, b in zip(
                    arrays(next(part)), arrays(expected[step]), strict=True
                ):
                    np.testing.assert_array_equal(a, b[rows.start : rows.stop])


def test_packed_windows_go_on_in_batches_of_another_size(monkeypatch):
    for name, value in SMALL_BLOCKS.items():
        monkeypatch.setattr(packing_module, name, value)
    lengths = [30, 5, 9, 80, 2, 14]
    whole = batches(lengths, "packed", batch_size=4)
    expected = np.concatenate([next(whole).tokens for _ in range(8)])
    first = batches(lengths, "packed", batch_size=4)
    small = [next(first).tokens for _ in range(4)]
    later = batches(lengths, "packed", batch_size=8)
    later.set_state(first.get_state())
    large = [next(later).tokens for _ in range(2)]
    np.testing.assert_array_equal(np.concatenate(small + large), expected)


def test_rows_that_read_on_keep_their_number():
    first = batches([40] * 8, "contiguous", batch_size=4)
    next(first)
    with pytest.raises(InputError, match="batch_size must stay 4, not 2"):
        batches([40] * 8, "contiguous", batch_size=2).set_state(
            first.get_state()
        )


def test_corpora_are_mixed_by_tokens():
    """Documents of 5 and of 20 tokens, 3 to 1 in tokens."""
    few, many = corpus([5] * 40), corpus([20] * 40, first=40)
    for reading in ("windows", "packed", "contiguous"):
        iterator = make_iterator(
            [few, many],
            seq_len=24,
            batch_size=4,
            seed=0,
            reading=reading,
            weights=(3, 1),
        )
        tokens = np.concatenate([next(iterator).tokens for _ in range(100)])
        share = (tokens[tokens > 0] // STRIDE < 40).mean()
        assert share == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("reading", ["windows", "packed", "contiguous"])
def test_targets_keep_their_weights(reading):
    sources = [corpus([30, 9, 21], weighted=True), corpus([18] * 3, 3)]
    iterator = make_iterator(
        sources, seq_len=8, batch_size=2, seed=0, reading=reading
    )
    for _ in range(20):
        tokens, ids, weights = next(iterator)
        assert weights.dtype == np.float32
        expected = np.where(tokens < 3 * STRIDE, tokens % 3 / 2, 1)
        used = np.ones_like(tokens, bool) if ids is None else ids > 0
        np.testing.assert_array_equal(weights[used], expected[used])


@CASES
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_best_fit(lengths):
    """Fills windows as the definition does, which searches all of them."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [r for r in rooms if r >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else 12) - length)
    windows = best_fit(lengths, 12)
    found = [12 - sum(lengths[i] for i in window) for window in windows]
    assert sorted(found) == sorted(rooms)
    assert sorted(i for w in windows for i in w) == [*range(len(lengths))]


@pytest.mark.parametrize("seq_len", [512, 1024, 4096])
def test_packing_wastes_little(seq_len):
    """On log-normal lengths with a mean of 700 tokens."""
    drawn = np.random.default_rng(0).lognormal(np.log(700) - 0.5, 1.0, 8000)
    source = corpus(np.maximum(drawn, 1).astype(int).tolist())
    iterator = make_iterator(
        [source], seq_len=seq_len, batch_size=16, seed=0, reading="packed"
    )
    ids = np.concatenate([next(iterator).segment_ids for _ in range(20)])
    assert (ids == 0).mean() < 0.02


def test_documents_without_targets_are_left_out(caplog):
    caplog.set_level("INFO")
    iterator = batches([1, 30, 1, 1, 20], "packed")
    assert "left out 3 documents of fewer than 2 tokens" in caplog.text
    seen = set()
    for _ in range(20):
        seen |= {*(next(iterator).tokens.ravel() // STRIDE).tolist()}
    assert seen - {0} == {1, 4}


def test_long_documents_are_counted_once(caplog):
    """Of 16 + 1 tokens, two windows of 8 predict all."""
    caplog.set_level("INFO")
    iterator = batches([17, 18, 40], "contiguous", carry_windows=2)
    next(iterator), next(iterator)
    words = "2 of 3 documents are longer than data.carry_windows=2"
    assert caplog.text.count(words) == 1


@pytest.mark.parametrize(
    ("lengths", "options", "words"),
    [
        ([9] * 9, {"reading": "rows"}, "data.reading='rows' must be one of"),
        ([9] * 9, {"weights": (1, 2)}, r"weights=\(1, 2\) has 2 numbers and"),
        ([9] * 9, {"weights": (0,)}, r"weights=\(0,\) must be positive"),
        ([9] * 9, {"seed": -1}, "seed=-1 must be an integer >= 0"),
        ([9], {"batch_size": 2}, "documents have 9 tokens, too few for one"),
        ([1, 1], {}, "no document of at least 2 tokens"),
        (
            [90],
            {"batch_size": 2, "reading": "contiguous"},
            "each of batch_size=2 rows; the corpus has only 1 of",
        ),
        (
            [90] * 9,
            {"reading": "contiguous", "batch_size": 4, "packed_share": 0.1},
            "packed_share=0.1 of batch_size=4 is 0 rows",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(lengths, options, words):
    with pytest.raises(InputError, match=words):
        batches(lengths, **({"reading": "packed"} | options))


def test_settings_of_reading(tmp_path):
    (tmp_path / "a,b").touch()
    comma = str(tmp_path / "a,b")
    config = DataConfig(paths="x.txt,y.txt", weights=(2, 1))
    assert config.paths == ("x.txt", "y.txt")
    assert DataConfig(paths=comma).paths == (comma,)
    for change, words in (
        ({"reading": "rows"}, "data.reading='rows' must be one of 'windows'"),
        ({"weights": (1, 2, 3)}, "has 3 numbers and data.paths has 2 corpora"),
        ({"weights": (1, "a")}, "must be positive numbers"),
        ({"packed_share": 1.0}, r"packed_share=1.0 must be in \[0, 1\)"),
        ({"carry_windows": -1}, "carry_windows=-1 must be an integer >= 0"),
    ):
        with pytest.raises(InputError, match=words):
            dataclasses.replace(config, **change)


def test_plain_files_are_mixed_by_weight(tmp_path):
    """Of two files of equal size, one is read three times as often."""
    for name in "ab":
        lines = [json.dumps({"text": f"{i} {name * 40}"}) for i in range(90)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    paths = tuple(str(tmp_path / f"{name}.jsonl") for name in "ab")
    config = DataConfig(paths=paths, weights=(3, 1), reading="packed")
    options = {"seq_len": 64, "batch_size": 4, "seed": 0}
    iterator = train_batches(prepare(config, 64), config, **options)
    tokens = np.concatenate([next(iterator).tokens for _ in range(300)])
    first, second = (int((tokens == ord(name)).sum()) for name in "ab")
    assert first / (first + second) == pytest.approx(0.75, abs=0.01)
