"""Corpora prepared for training: nothing is lost, repeated or mixed up."""

import fcntl
import gzip
import hashlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.corpora import prepare_text, reading, shards
from nl_jax.data import open_prepared
from nl_jax.data.documents import TextFields
from nl_jax.data.sources import Span
from nl_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [f"Text {i}: " + "naïve words, 日本. " * (i % 7) for i in range(90)]


def share_of(text: str) -> float:
    """The number that decides whether a document is held out."""
    digest = hashlib.sha256(text.strip().encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def write_lines(path, texts, **more):
    lines = (json.dumps({"text": text} | more) + "\n" for text in texts)
    path.write_text("".join(lines))
    return path


def documents(source, tokenizer):
    return [
        tokenizer.decode(source[i].tokens).decode() for i in range(len(source))
    ]


def parts(folder):
    found = open_prepared(folder, verify=True)
    return tuple(
        documents(source, found.tokenizer)
        for source in (found.train, found.held_out)
    )


@pytest.fixture
def prepare(script, tmp_path):
    """Prepares files into a folder, which it returns."""

    def run(*files, out="corpus", **flags):
        flags = {"held_out": 0.2, "processes": 1} | flags
        status, printed, errors = script(
            prepare_text,
            f"--input={','.join(map(str, files))}",
            f"--output={tmp_path / out}",
            *(f"--{name}={value}" for name, value in flags.items()),
        )
        assert not status, errors
        run.printed = printed
        return tmp_path / out

    return run


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_text_alone_decides_where_a_document_goes(prepare, tmp_path):
    """Copies of it are left out, whatever files they are in."""
    first = write_lines(tmp_path / "a.jsonl", TEXTS[:60])
    copies = [f"\n{text}  " for text in TEXTS[20:30]] * 2 + ["", " \n"]
    second = write_lines(tmp_path / "b.jsonl", TEXTS[60:] + copies)
    expected = [
        sorted(t for t in TEXTS if (share_of(t) < 0.2) == held)
        for held in (False, True)
    ]
    assert 5 < len(expected[1]) < 40
    one = prepare(first, second, out="one", shards=3)
    assert "20 duplicates, 2 documents without text" in prepare.printed
    other = prepare(second, first, out="other", shards=2)
    for folder in (one, other):
        found = [sorted(t.strip() for t in part) for part in parts(folder)]
        assert found == [[t.strip() for t in part] for part in expected]
    alone = parts(prepare(first, out="alone"))
    assert {*alone[1]} == {*expected[1]} & {*TEXTS[:60]}
    assert {*alone[0]} <= {*expected[0]}


def test_all_formats_hold_the_same_documents(prepare, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    plain = write_lines(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.JSONL.gz").write_bytes(gzip.compress(plain.read_bytes()))
    text = "\n<|end|>\n".join(TEXTS).encode()
    halves = [text[:500], text[500:]]  # Two frames.
    packed = b"".join(map(zstandard.compress, halves))
    (tmp_path / "c.txt.zst").write_bytes(packed)
    table = pyarrow.table({"id": range(len(TEXTS)), "text": TEXTS})
    parquet.write_table(table, tmp_path / "d.parquet")
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02}.txt").write_text(text)
    (folder / ".hidden").write_text("hidden")
    names = ["a.jsonl", "b.JSONL.gz", "c.txt.zst", "d.parquet", "texts"]
    expected = [
        [t for t in TEXTS if (share_of(t) < 0.2) == held]
        for held in (False, True)
    ]
    for name in names:
        end = "<|end|>"
        found = parts(prepare(tmp_path / name, out=f"_{name}", separator=end))
        assert [*found] == expected, name


def test_saved_datasets_are_read(prepare, tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": TEXTS, "id": [*range(90)]})
    whole.save_to_disk(str(tmp_path / "one"))
    split = {"a": whole.select(range(40)), "b": whole.select(range(40, 90))}
    datasets.DatasetDict(split).save_to_disk(str(tmp_path / "two"))
    found = [parts(prepare(tmp_path / n, out=f"_{n}")) for n in ("one", "two")]
    assert found[0] == found[1]
    assert sorted(found[0][0] + found[0][1]) == sorted(TEXTS)


def test_prompts_are_no_targets(prepare, tmp_path):
    path = tmp_path / "a.jsonl"
    pairs = [
        {"ask": f"{i}+{i} = ", "say": f"{i + i}, naïve"} for i in range(30)
    ]
    path.write_text("\n".join(map(json.dumps, pairs)))
    folder = prepare(
        path,
        text_field="say",
        prompt_field="ask",
        tokenizer="bpe",
        bpe_vocab_size=280,
    )
    found = open_prepared(folder)
    prompts = {f"{p['ask']}{p['say']}": p for p in pairs}
    assert found.train.weighted and len(found.train) > 10
    for i in range(len(found.train)):
        tokens, weights = found.train[i]
        pair = prompts[found.tokenizer.decode(tokens).decode()]
        count = int((weights == 0).sum())
        decode = found.tokenizer.decode
        assert decode(tokens[:count]).decode() == pair["ask"]
        assert weights.tolist() == [0] * count + [1] * (len(tokens) - count)
        part = found.train.read([Span(i, 1, len(tokens))])[0]
        np.testing.assert_array_equal(part.tokens, tokens[1:])
        np.testing.assert_array_equal(part.weights, weights[1:])


def test_text_is_cut_at_lines_and_records_are_not(prepare, tmp_path):
    lines = [f"line {i} 日本\n" for i in range(3000)]
    (tmp_path / "a.txt").write_text("".join(lines))
    train, held_out = parts(prepare(tmp_path / "a.txt", document_bytes=1000))
    for document in train + held_out:
        assert document.endswith("\n") and len(document.encode()) <= 1000
    assert sorted("".join(train + held_out).splitlines(True)) == sorted(lines)
    line = "".join(map(chr, range(0x4E00, 0x4E00 + 1800)))
    (tmp_path / "b.txt").write_text(line)
    train, held_out = parts(
        prepare(tmp_path / "b.txt", out="b", document_bytes=1000, held_out=0.4)
    )
    sizes = sorted(len(d.encode()) for d in train + held_out)
    assert sum(sizes) == 5400 and sizes[1] > 990 and sizes[-1] <= 1000
    assert {*"".join(train + held_out)} == {*line}

    long = write_lines(tmp_path / "c.jsonl", ["".join(lines), *TEXTS])
    folder = prepare(long, out="c", document_bytes=1000, held_out=0.1)
    found = open_prepared(folder)
    source = found.train if share_of("".join(lines)) >= 0.1 else found.held_out
    index = int(source.lengths.argmax())
    whole = source[index].tokens
    assert whole.astype(np.uint8).tobytes() == "".join(lines).encode()
    assert len(whole) > 2 * prepare_text.RECORD_TOKENS
    for start, stop in ((0, 1), (16383, 16385), (16384, 40000), (5, 33000)):
        part = source.read([Span(index, start, stop)])[0].tokens
        np.testing.assert_array_equal(part, whole[start:stop])


def test_a_bpe_is_trained_on_a_bounded_part_of_the_training_text(
    prepare, tmp_path, monkeypatch
):
    seen = []
    train = prepare_text.corpus_folder.BPETokenizer.train
    monkeypatch.setattr(
        prepare_text.corpus_folder.BPETokenizer,
        "train",
        lambda text, size: seen.append(text) or train(text, size),
    )
    path = write_lines(tmp_path / "a.jsonl", TEXTS)
    flags = {"tokenizer": "bpe", "bpe_vocab_size": 300}
    folder = prepare(path, bpe_sample_bytes=500, **flags)
    held_out = [t for t in TEXTS if share_of(t) < 0.2]
    assert len(seen[0]) == 500
    assert not any(t.encode() in seen[0] for t in held_out)
    again = prepare(path, out="again", tokenizer=folder / "tokenizer.json")
    assert parts(again) == parts(folder)
    names = [n for n in contents(folder) if n.startswith("train")]
    for name in names:
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    text = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256((folder / names[0]).read_bytes()).hexdigest()
    shard = text["parts"]["train"]["shards"][0]
    assert digest in (shard["records"]["sha256"], shard["index"]["sha256"])


def test_a_bpe_sees_copies_of_a_text_once(prepare, tmp_path):
    """Training on 200 copies of a word would merge its bytes first."""
    texts = TEXTS[:40]
    copies = [f" {texts[0]}\n"] * 200
    flags = {"tokenizer": "bpe", "bpe_vocab_size": 290}
    found = [
        (prepare(write_lines(tmp_path / f"{i}.jsonl", t), out=str(i), **flags))
        for i, t in enumerate((texts, texts + copies))
    ]
    one, other = ((f / "tokenizer.json").read_bytes() for f in found)
    assert one == other


def test_separators_are_written_with_escapes(prepare, tmp_path):
    path = tmp_path / "a.txt"
    for written, between in (
        (r"\r\n\r\n", "\r\n\r\n"),
        (r"\t\\n", "\t\\n"),
        ("<|end|>", "\n<|end|>\n"),
    ):
        path.write_bytes(between.join(TEXTS).encode())
        out = str(len(between))
        found = parts(prepare(path, out=out, separator=written))
        assert sorted(found[0] + found[1]) == sorted(TEXTS)
        assert "warning" not in prepare.printed
    path.write_bytes("\n\n".join(TEXTS).encode())
    flags = {"separator": r"\r\n\r\n", "document_bytes": 99}
    prepare(write_lines(tmp_path / "b.jsonl", TEXTS), path, out="no", **flags)
    words = r"warning: --separator=\r\n\r\n is in no text file of --input"
    assert prepare.printed.splitlines()[0] == words


def test_a_separator_is_found_where_blocks_meet(tmp_path):
    """Blocks end where lines do, and so amid the separator."""
    path = tmp_path / "a.txt"
    path.write_text("one\n\n<|end|>two")
    for text, expected in ((b"\n\n<|end|>", True), (b"\n\n\n<|end|>", False)):
        inputs = reading.Inputs([path], TextFields(), 1 << 20, text)
        assert inputs.have_separator() == expected


class _KilledError(Exception):
    """The process ends here, without any of its own code."""


@pytest.mark.parametrize("where", ["reading", "writing", "manifest"])
def test_a_killed_preparation_goes_on(prepare, tmp_path, monkeypatch, where):
    """Same files, byte for byte; nothing is read that is not finished."""
    files = [
        write_lines(tmp_path / f"{i}.jsonl", TEXTS[i::3] + TEXTS[:5])
        for i in range(3)
    ]
    flags = {"tokenizer": "bpe", "bpe_vocab_size": 280, "shards": 3}
    expected = contents(prepare(*files, out="whole", **flags))
    monkeypatch.setattr(reading, "SAVE_SECONDS", 0.0)
    small = reading.read_batches
    monkeypatch.setattr(
        reading,
        "read_batches",
        lambda *args, **more: small(*args, batch_bytes=500, **more),
    )
    kills = 0

    def kill_after(module, name, count):
        found, calls = getattr(module, name), iter(range(count))

        def wrapped(*arguments):
            if next(calls, None) is None:
                raise _KilledError
            return found(*arguments)

        patch.setattr(module, name, wrapped)

    for count in range(2, 9, 3):
        with pytest.MonkeyPatch.context() as patch:
            if where == "reading":
                kill_after(reading, "tokenize_batch", count)
            elif where == "writing":
                kill_after(shards, "_file_entry", 3)
            else:
                kill_after(prepare_text.corpus_folder, "publish", 0)
            with pytest.raises(_KilledError):
                prepare(*files, out="killed", **flags)
            kills += 1
        with pytest.raises(InputError, match="is not finished"):
            open_prepared(tmp_path / "killed")
        if where == "reading":  # What came after the journal is cut off.
            for path in (tmp_path / "killed/unfinished").glob("*.ids"):
                with path.open("ab") as file:
                    file.write(b"half a docu")
    assert kills == 3
    assert contents(prepare(*files, out="killed", **flags)) == expected


@pytest.mark.slow
def test_a_preparation_that_is_killed_at_random_goes_on(prepare, tmp_path):
    """kill -9 of the whole command, which tokenizes in two processes."""
    texts = [f"{i} " + TEXTS[i % 90] * 9 for i in range(20_000)]
    path = write_lines(tmp_path / "a.jsonl", texts)
    flags = {"tokenizer": "bpe", "bpe_vocab_size": 280, "shards": 3}
    expected = contents(prepare(path, out="whole", **flags))
    arguments = [f"--{n}={v}" for n, v in flags.items()] + [
        f"--input={path}",
        f"--output={tmp_path / 'killed'}",
        "--held_out=0.2",
        "--processes=2",
    ]
    code = (
        "from experiments.corpora import prepare_text, reading\n"
        "from experiments.shared import cli\n"
        "reading.SAVE_SECONDS = 0.01\n"
        "if __name__ == '__main__': cli.run(prepare_text)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    work = tmp_path / "killed" / "unfinished"
    states = []

    def start():
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    for _ in range(3):
        process = start()
        size = sum(p.stat().st_size for p in work.glob("*.ids"))
        while process.poll() is None:
            now = sum(p.stat().st_size for p in work.glob("*.ids"))
            if now > size + 200_000:
                break
            time.sleep(0.001)
        process.kill()
        process.communicate()
        states.append((work / "journal.json").read_text())
    assert '"finished": false' in states[0]
    assert len({*states}) == 3
    process = start()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert contents(tmp_path / "killed") == expected


@pytest.mark.parametrize("limit", [3_000, 30_000], ids=["buckets", "shards"])
def test_a_full_disk(prepare, script, tmp_path, limit):
    """One line; what was done is kept, and nothing unfinished is read."""
    path = write_lines(tmp_path / "a.jsonl", TEXTS)
    expected = contents(prepare(path, out="whole"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        status, _, errors = script(
            prepare_text,
            f"--input={path}",
            f"--output={tmp_path / 'full'}",
            "--held_out=0.2",
            "--processes=1",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2 and errors.count("\n") == 1
    assert "cannot write" in errors and str(tmp_path / "full") in errors
    assert "File too large" in errors
    with pytest.raises(InputError, match="is not finished"):
        open_prepared(tmp_path / "full")
    assert contents(prepare(path, out="full")) == expected


def test_what_is_refused(prepare, script, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", TEXTS)
    done = prepare(path, out="done")
    before = contents(done)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "an app"}')
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": 5}\n')
    nul = write_lines(tmp_path / "nul.jsonl", ["a\0b"])
    blank = tmp_path / "blank.txt"
    blank.write_text("  \n")
    new = tmp_path / "new"
    for words, files, out, *flags in (
        ("thesis.txt", path, other),
        ("manifest.json is not ours", path, foreign),
        ("--held_out=0.2, not 0.5; give a new folder", path, done, "0.5"),
        ("other files in --input", bad, done),
        ("is in --input", tmp_path, new),
        (
            "line 2 has no text in 'text'; name the field with --text_field",
            bad,
            new,
        ),
        ("line 1 has a NUL character in 'text'", nul, new),
        ("--output: cannot write to /proc/xx (No such", path, "/proc/xx"),
        ("--tokenizer='gpt'", path, new, "0.2", "--tokenizer=gpt"),
        ("'nowhere' does not exist", "nowhere", new),
        ("--input has no text", blank, new),
        (
            "part 'held_out' out of 90; give more documents, or a larger",
            path,
            new,
            "1e-9",
        ),
        ("--held_out=0.0 must be in (0, 1)", path, new, "0"),
    ):
        share, *flags = flags or ("0.2",)
        status, _, errors = script(
            prepare_text,
            f"--input={files}",
            f"--output={out}",
            "--processes=1",
            f"--held_out={share}",
            *flags,
        )
        assert status == 2 and errors.count("\n") == 1, errors
        assert words in errors
    assert contents(done) == before and len(contents(other)) == 1
    assert not new.exists()
    (new / "unfinished").mkdir(parents=True)
    with (new / "unfinished" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        flags = (f"--input={path}", f"--output={new}")
        status, _, errors = script(prepare_text, *flags)
        assert "another process prepares" in errors and status == 2
    prepare(path, out="new")  # What was refused left nothing in the way.
    assert contents(new).keys() == before.keys()
    prepare(path, out="done")
    assert "already" in prepare.printed
    text = path.read_bytes()
    path.write_bytes(text.replace(b"Text 1:", b"Text 0:"))
    flags = (f"--input={path}", f"--output={done}", "--held_out=0.2")
    status, _, errors = script(prepare_text, *flags)
    assert status == 2 and f"{path} of --input has changed since" in errors
    assert len(text) == path.stat().st_size and errors.count("\n") == 1
