"""Text as people have it: packed, repeated, without lines, with marks."""

import errno
import gzip
import hashlib
import json
import os
import pathlib

import pytest

from nl_jax.data import (
    BPETokenizer,
    DataConfig,
    load_corpus,
    quoted,
    read_blocks,
)
from nl_jax.errors import InputError

BOM = b"\xef\xbb\xbf"


def corpus(*paths, **fields):
    return load_corpus(DataConfig(paths=tuple(map(str, paths)), **fields))


def lines(count, word="line"):
    return "".join(f"{word} {i}\n" for i in range(count)).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"first line\n" + b"x" * 9000,
        b"first line\n" + b"word " * 2000,
        lines(900),
        ("first line\n" + "日本" * 2000).encode(),
        b"x" * 8900 + b"\n" + b"y" * 1000,
    ],
    ids=["no end", "one line", "lines", "characters", "two lines"],
)
def test_as_much_is_held_out_as_was_asked_for(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    found = corpus(path, held_out=0.1)
    assert found.train + found.held_out == text
    share = len(found.held_out) / len(text)
    rounding = 3 / len(text)  # Of a byte, and to a whole character.
    assert 0.1 - rounding <= share <= 0.11 + rounding
    found.train.decode(), found.held_out.decode()


def test_a_cut_is_at_a_line_or_else_at_a_word(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(lines(900))
    assert corpus(path).train.endswith(b"\n")
    path.write_bytes(b"first line\n" + b"word " * 2000)
    assert corpus(path).train.endswith(b" ")


def test_the_most_that_is_evaluated_ends_with_a_character(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("日本" * 200)
    assert len(corpus(path, max_held_out_bytes=50).held_out) == 48


def test_documents_that_occur_twice_are_read_once(tmp_path):
    """Else one copy could be in the held-out part."""
    for i in range(8):
        text = b"same\n" * 50 if i % 2 else lines(50, f"own{i}")
        (tmp_path / f"{i}.txt").write_bytes(text + b"\n" * i)
    records = [json.dumps({"text": "same\n" * 50})] * 3
    (tmp_path / "more.jsonl").write_text("\n".join(records))
    found = corpus(tmp_path, held_out=0.3)
    assert (found.train + found.held_out).count(b"same") == 50
    for i in range(0, 8, 2):
        assert (found.train + found.held_out).count(b"own%d" % i) == 50


def paragraphs(*words):
    """Paragraphs of 50 bytes, which begin with these words."""
    return "\n\n".join(word.ljust(50, ".") for word in words)


def test_paragraphs_that_occur_twice_are_read_once(tmp_path):
    """With another indentation too; short ones, such as titles, stay."""
    for i, name in enumerate(["own0", "own1", "own2"]):
        text = paragraphs("same", name, "same", name) + "\n\nTitle\n\n"
        (tmp_path / f"{i}.txt").write_text(
            text.replace("\n\n", "\n  \n" + " " * i)
        )
    (tmp_path / "single.txt").write_text(paragraphs("single"))
    found = corpus(tmp_path, held_out=0.3, unique_paragraphs=True)
    text = found.train + found.held_out
    for word in (b"same", b"own0", b"own1", b"own2", b"single"):
        assert text.count(word) == 1
    assert text.count(b"Title") == 3
    kept = corpus(tmp_path, held_out=0.3)
    assert (kept.train + kept.held_out).count(b"same") == 6


def test_paragraphs_of_held_out_files_are_not_trained_on(tmp_path):
    train, held_out = tmp_path / "train.txt", tmp_path / "held_out.txt"
    train.write_text(paragraphs("old", "both", "older"))
    held_out.write_text(paragraphs("new", "both", "newer"))
    found = corpus(train, held_out_paths=held_out, unique_paragraphs=True)
    assert found.train.decode() == paragraphs("old", "older")
    assert found.held_out == held_out.read_bytes()
    with pytest.raises(InputError, match="hold all documents"):
        corpus(train, held_out_paths=train, unique_paragraphs=True)


def test_quoted_windows_are_found():
    train, held_out = b"the cat sat on the mat", b"a cat sat on a mat"
    for length in (1, 4, 9):
        expected = [
            held_out[i : i + length] in train
            for i in range(len(held_out) - length + 1)
        ]
        assert quoted(train, held_out, length).tolist() == expected
    assert quoted(train, b"cat").shape == (0,)


def test_the_default_text_does_not_quote_itself():
    """63 % of the windows of 40 bytes were quotations once."""
    found = load_corpus(DataConfig())
    assert len(found.train) > 300_000
    assert quoted(found.train, found.held_out).mean() < 0.02


def test_one_path_may_be_given_without_a_tuple(tmp_path):
    path = tmp_path / "xy"
    path.write_bytes(lines(99))
    assert DataConfig(paths=str(path)).paths == (str(path),)
    assert load_corpus(DataConfig(paths=path)) == corpus(path)
    assert DataConfig(held_out_paths="xy").held_out_paths == ("xy",)
    with pytest.raises(InputError, match="'xy' does not exist"):
        load_corpus(DataConfig(paths="xy"))
    with pytest.raises(InputError, match="must be paths of files"):
        load_corpus(DataConfig(paths=""))


def test_byte_order_marks_are_left_out(tmp_path):
    plain, marked = tmp_path / "a.txt", tmp_path / "b.txt"
    plain.write_bytes(lines(99))
    marked.write_bytes(BOM + lines(99))
    assert corpus(plain) == corpus(marked)
    assert b"".join(read_blocks(marked)) == lines(99)
    line = json.dumps({"text": lines(99).decode()})
    (tmp_path / "c.jsonl").write_bytes(BOM + line.encode())
    assert corpus(tmp_path / "c.jsonl") == corpus(plain)


@pytest.mark.parametrize(
    "name", ["a.ndjson", "a.JSONL", "a.jsonlines", "a.NDJSON.GZ"]
)
def test_json_lines_have_several_endings(tmp_path, name):
    """Their text is read, not their quotes and field names."""
    line = json.dumps({"text": lines(99).decode()}).encode()
    zipped = name.endswith("GZ")
    (tmp_path / name).write_bytes(gzip.compress(line) if zipped else line)
    found = corpus(tmp_path / name)
    assert found.train + found.held_out == lines(99)


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"paths: .*pipe.txt' is a pipe"):
        corpus(pipe)
    with pytest.raises(InputError, match=r"pipe.txt: it is not a file"):
        BPETokenizer.from_file(pipe)

    def denied(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    (tmp_path / "a.txt").write_bytes(lines(99))
    monkeypatch.setattr(pathlib.Path, "is_file", denied)
    with pytest.raises(InputError, match=r"^data.paths: cannot read .*denied"):
        corpus(tmp_path)


def test_gzipped_text_is_read(tmp_path):
    plain, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    plain.write_bytes(lines(99))
    packed.write_bytes(gzip.compress(BOM + lines(99)))
    assert corpus(plain) == corpus(packed)
    assert b"".join(read_blocks(packed, 64)) == lines(99)
    line = json.dumps({"text": lines(99).decode()}).encode()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(line))
    assert corpus(tmp_path / "c.jsonl.gz") == corpus(plain)
    whole = packed.read_bytes()
    for damaged in (whole[:-9], whole[:20] + b"\xff" * 9 + whole[29:]):
        packed.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot read .*b.txt.gz"):
            corpus(packed)
        with pytest.raises(InputError, match=r"cannot read .*b.txt.gz"):
            list(read_blocks(packed))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r'{"text": "a\ud800"}', r"line 2 has a lone surrogate, '\\ud800'"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "line 2 is not JSON"),
        ('{"text": 5}', "line 2 has no text in 'text'"),
        ("[]", "line 2 has no text in 'text'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match=words) as error:
        corpus(path)
    assert str(path) in str(error.value)


def test_held_out_files(tmp_path):
    """What they hold is not trained on, even if it is there too."""
    train, held_out = tmp_path / "train", tmp_path / "held_out"
    train.mkdir(), held_out.mkdir()
    for i in range(4):
        (train / f"{i}.txt").write_bytes(lines(20, f"own{i}"))
    (held_out / "new.txt").write_bytes(lines(20, "new"))
    (held_out / "old.txt").write_bytes(lines(20, "own2"))
    found = corpus(train, held_out_paths=(str(held_out),))
    for i in range(4):
        part = found.held_out if i == 2 else found.train
        assert part.count(b"own%d" % i) == 20
    assert found.held_out.count(b"new") == 20
    assert len(found.train) == 3 * len(lines(20, "own0")) + 2  # Newlines.
    assert len(found.held_out) == len(lines(20, "own0") + lines(20, "new")) + 1
    # The hash is of both parts: a run is not resumed on another text.
    other = corpus(train, held_out_paths=(str(held_out / "new.txt"),))
    assert other.sha256 != found.sha256
    both = found.train + b"\0" + found.held_out
    assert found.sha256 == hashlib.sha256(both).hexdigest()
    with pytest.raises(InputError, match="hold all documents"):
        corpus(held_out, held_out_paths=(str(held_out),))
    with pytest.raises(InputError, match=r"held_out_paths: 'nowhere'"):
        corpus(train, held_out_paths=("nowhere",))


def test_default_text_with_held_out_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(lines(20))
    paths = (str(tmp_path),)
    found = load_corpus(DataConfig(held_out_paths=paths))
    assert found.held_out == lines(20)
    whole = load_corpus(DataConfig())
    assert found.train == whole.train + whole.held_out
