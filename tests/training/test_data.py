import gzip
import json

import numpy as np
import pytest

from nl_jax.data import (
    DataConfig,
    Document,
    DocumentsInMemory,
    gzip_bits_per_byte,
    load_corpus,
    make_iterator,
    prepare,
)
from nl_jax.errors import InputError

TOKENS = np.arange(16 * 10 + 5, dtype=np.int32)
READ = {"seq_len": 16, "batch_size": 3, "seed": 0}


def windows(tokens=TOKENS, **options):
    source = DocumentsInMemory([Document(tokens)])
    return make_iterator([source], **options)


def take(iterator, count):
    return np.stack([next(iterator).tokens for _ in range(count)])


def test_default_text_is_the_same_every_time():
    first, again = load_corpus(DataConfig()), load_corpus(DataConfig())
    assert first == again
    share = len(first.held_out) / len(first.held_out + first.train)
    assert abs(share - 0.1) < 0.01


def test_the_standard_library_adds_text():
    more = load_corpus(DataConfig(stdlib=True))
    assert len(more.train) > 4 * len(load_corpus(DataConfig()).train)


def test_an_epoch_reads_every_sequence_once():
    rows = take(windows(**READ), 3).reshape(-1, 17)
    assert rows.shape == (9, 17)
    starts = sorted(rows[:, 0].tolist())
    assert starts == [16 * i for i in range(9)]
    assert (np.diff(rows, axis=1) == 1).all()


def test_later_epochs_have_another_order_and_other_cuts():
    epochs = take(windows(**READ), 9).reshape(3, 9, 17)
    shifts = epochs[:, :, 0] % 16
    assert (shifts == shifts[:, :1]).all()
    assert len(set(shifts[:, 0].tolist())) > 1
    order = epochs[:, :, 0] // 16
    assert not (order[0] == order[1]).all()
    assert epochs.max() < len(TOKENS)


def test_a_restored_iterator_goes_on():
    iterator = windows(**READ)
    take(iterator, 4)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 5)
    other = windows(**READ)
    other.set_state(state)
    np.testing.assert_array_equal(take(other, 5), expected)


def test_batches_of_another_size_go_on_with_the_next_sequence():
    """4 batches of 4 and 2 of 8 are 8 batches of 4, over two epochs."""
    read = {"seq_len": 16, "seed": 0}
    whole = windows(batch_size=4, **read)
    expected = take(whole, 8).reshape(32, 17)
    first = windows(batch_size=4, **read)
    small = take(first, 4).reshape(16, 17)
    later = windows(batch_size=8, **read)
    later.set_state(json.loads(json.dumps(first.get_state())))
    large = take(later, 2).reshape(16, 17)
    np.testing.assert_array_equal(np.concatenate([small, large]), expected)
    assert later.get_state() == whole.get_state()
    assert later.get_state()["plan"]["drawn"] == [32]


def test_batches_of_one_sequence():
    rows = take(windows(seq_len=16, batch_size=1, seed=0), 9)
    assert rows.shape == (9, 1, 17)
    assert sorted(rows[:, 0, 0].tolist()) == [16 * i for i in range(9)]


@pytest.mark.parametrize(
    ("tokens", "change"),
    [(TOKENS, {"seed": 1}), (TOKENS, {"seq_len": 8}), (TOKENS[1:], {})],
)
def test_another_order_begins_anew(tokens, change, caplog):
    iterator = windows(**READ)
    take(iterator, 2)
    other = windows(tokens, **(READ | change))
    other.set_state(iterator.get_state())
    assert "reading begins anew" in caplog.text
    fresh = windows(tokens, **(READ | change))
    np.testing.assert_array_equal(take(other, 1), take(fresh, 1))


@pytest.mark.parametrize(
    ("tokens", "change", "words"),
    [
        (TOKENS, {"seed": -1}, "seed=-1 must be an integer >= 0"),
        (TOKENS[:32], {}, "32 tokens are too few for seq_len=16"),
    ],
)
def test_an_iterator_refuses(tokens, change, words):
    with pytest.raises(InputError, match=words):
        windows(tokens, **(READ | change))
    assert next(windows(TOKENS[:33], **READ)).tokens.shape == (3, 17)
    with pytest.raises(InputError, match="another version"):
        windows(**READ).set_state({"next_index": 3})


def test_processes_share_the_batch():
    """Two rows each, in the order of one process's batch."""
    read = {"seq_len": 16, "batch_size": 6, "seed": 0}
    whole = take(windows(**read), 4)
    parts = [
        take(windows(**read, rows=range(2 * i, 2 * i + 2)), 4) for i in range(3)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
    with pytest.raises(InputError, match="must be rows of batch_size=6"):
        windows(**read, rows=range(6, 8))


def test_another_seed_is_another_order():
    first = take(windows(**READ), 3)
    other = take(windows(**(READ | {"seed": 1})), 3)
    assert (first != other).any()


def test_gzip():
    text = b"abc" * 100
    assert gzip_bits_per_byte(text) == len(gzip.compress(text, 9)) * 8 / 300


def test_directories_and_json_lines(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text('{"body": "alpha"}\n\n{"body": "beta"}')
    (tmp_path / "sub" / "b.txt").write_text("gamma\n" * 20)
    (tmp_path / ".hidden").write_text("hidden")
    corpus = load_corpus(
        DataConfig(paths=(str(tmp_path),), text_field="body", held_out=0.3)
    )
    text = corpus.train + corpus.held_out
    assert all(word in text for word in (b"alpha", b"beta", b"gamma"))
    assert b"hidden" not in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", None, "does not exist"),
        ("a.txt", b"", "hold no text"),
        ("a.txt", b" \n\n", "hold no text"),
        ("a.txt", b"ab\x00cd" * 50, "is binary"),
        ("a.txt", b"\xff\xfe" * 50, "is binary or not UTF-8"),
        ("a.txt", b"short", "too few|needs more"),
        ("a.txt", b"some words\n" * 3, "seq_len=16 needs more"),
        ("a.jsonl", b"{nope}\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"other": "x"}\n', "data.text_field"),
    ],
)
def test_bad_text_says_what_to_do(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        prepare(DataConfig(paths=(str(path),)), 16)


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no files"):
        load_corpus(DataConfig(paths=(str(tmp_path),)))
