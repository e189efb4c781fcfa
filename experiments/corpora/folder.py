"""The folder of a corpus: what may be in it, its tokenizer and its manifest."""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import pathlib
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.corpora.reading import JOURNAL, Inputs, Journal
from experiments.corpora.shards import publish, write_atomically
from nl_jax.data import BPETokenizer, Tokenizer
from nl_jax.data.array_records import MANIFEST
from nl_jax.data.documents import is_held_out, parse, text_digest
from nl_jax.data.prepared import FORMAT, UNFINISHED
from nl_jax.data.tokenizers import bounded_sample
from nl_jax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SETTINGS, _LOCK, TOKENIZER = "settings.json", "lock", "tokenizer.json"
_PACKAGES = ("array_record", "grain", "numpy", "tokenizers")


@contextlib.contextmanager
def opened(folder: pathlib.Path, asked: Mapping[str, Any]) -> Iterator[bool]:
    """Makes the folder ready, or refuses it; it is ours until the end.

    Args:
        folder: of the corpus.
        asked: ``settings``, all that the result depends on but the inputs, and
            ``inputs``, from :func:`describe_inputs`.

    Yields:
        Whether there is something to do.

    Raises:
        InputError: if the folder holds something else, another process uses it,
            or, at any time, if it cannot be written to.
    """
    work = folder / UNFINISHED
    try:
        if (folder / MANIFEST).exists():
            _check_same(folder, folder / MANIFEST, asked, "give a new folder")
            shutil.rmtree(work, ignore_errors=True)
            yield False
            return
        _check_ours(folder)
        new = not folder.exists()
        work.mkdir(parents=True, exist_ok=True)
        with (work / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"--output: another process prepares {folder} now"
                ) from error
            if (work / JOURNAL).exists():
                words = "repeat the command that began it, or remove the folder"
                _check_same(folder, work / _SETTINGS, asked, words)
            else:  # Nothing has been done that could be lost.
                for path in work.iterdir():
                    if path.name != _LOCK:
                        path.unlink()
                write_atomically(work / _SETTINGS, asked)
            try:
                yield True
            except InputError:
                if not (work / JOURNAL).exists():
                    shutil.rmtree(work, ignore_errors=True)
                    if new and not _others(folder, set()):
                        folder.rmdir()
                raise
    except OSError as error:
        full = error.errno in _FULL
        if not full and not str(error.filename).startswith(str(folder)):
            raise
        words = "make room and repeat the command, which goes on"
        raise InputError(
            f"--output: cannot write to {folder} ({error.strerror}); "
            f"{words if full else 'give another folder'}"
        ) from error


def describe_inputs(files: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
    """Returns names, sizes and times of modification of the inputs."""
    found = []
    for file in files:
        parts = [p for p in file.rglob("*") if p.is_file()] or [file]
        stats = [part.stat() for part in parts]
        found.append(
            {
                "file": str(file),
                "bytes": sum(stat.st_size for stat in stats),
                "modified_ns": max(stat.st_mtime_ns for stat in stats),
            }
        )
    return found


def _check_ours(folder: pathlib.Path) -> None:
    if not folder.exists() or (folder / UNFINISHED / _SETTINGS).exists():
        return
    ours = {UNFINISHED} if not _others(folder / UNFINISHED, {_LOCK}) else set()
    others = _others(folder, ours)
    if others:
        raise InputError(
            f"--output: {folder} holds something else ({others[0]}); give a "
            "new folder"
        )


def _others(folder: pathlib.Path, ours: set[str]) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.name not in ours)


def _check_same(folder, path, asked, words) -> None:
    try:
        found = json.loads(path.read_text())
        known = {**found["settings"]}
        names, now = (
            [entry["file"] for entry in entries]
            for entries in (found["inputs"], asked["inputs"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--output: {path} is not ours or is damaged; give a new folder"
        ) from error
    if names != now:
        raise InputError(
            f"--output: {folder} was begun with other files in --input; {words}"
        )
    for before, entry in zip(found["inputs"], asked["inputs"], strict=True):
        if before != entry:
            raise InputError(
                f"--output: {entry['file']} of --input has changed since "
                f"{folder} was begun, in size or time; {words}"
            )
    for name in {**known, **asked["settings"]}:
        before, now = known.get(name), asked["settings"].get(name)
        if before != now:
            raise InputError(
                f"--output: {folder} was begun with --{name}={before!r}, not "
                f"{now!r}; {words}"
            )


def prepare_tokenizer(
    folder: pathlib.Path,
    inputs: Inputs,
    settings: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> str:
    """Writes the tokenizer into the unfinished folder, unless it is there.

    Args:
        folder: of the corpus.
        inputs: text for a new BPE, which is trained on what is not held out.
        settings: of the corpus.
        tokenizer: a given one; ``None`` for bytes or a new BPE.

    Returns:
        The path of the file, or ``""`` for bytes.
    """
    if settings["tokenizer"] == "byte":
        return ""
    path = folder / UNFINISHED / TOKENIZER
    if not path.exists():
        if tokenizer is None:
            sample = bounded_sample(
                _training_texts(inputs, settings["held_out"]),
                settings["bpe_sample_bytes"],
            )
            if not sample.strip():
                raise InputError("--input has no text to train a BPE on")
            size = settings["bpe_vocab_size"]
            tokenizer = BPETokenizer.train(sample, size)
        write_atomically(path, tokenizer.to_json()["model"])
    return str(path)


def _training_texts(inputs: Inputs, share: float) -> Iterator[bytes]:
    for index in range(len(inputs.files)):
        for batch in inputs.batches(index):
            for document in parse(batch, inputs.fields):
                if not is_held_out(text_digest(document.text), share):
                    yield document.text


def check_parts(folder: pathlib.Path, journal: Journal) -> None:
    """Removes the work and raises ``InputError`` if a part has no document."""
    sizes = journal.sizes
    empty = journal.read == journal.empty
    for part in ("train", "held_out"):
        rows = (n for n in sizes if n.startswith(part) and n.endswith(".rows"))
        if any(sizes[name] for name in rows):
            continue
        shutil.rmtree(folder / UNFINISHED)
        if empty:
            raise InputError("--input has no text; give files with documents")
        words = "larger" if part == "held_out" else "smaller"
        raise InputError(
            f"--held_out leaves no document in the part {part!r} out of "
            f"{journal.read - journal.empty}; give more documents, or a "
            f"{words} share"
        )


def finish(
    folder: pathlib.Path,
    tokenizer: Tokenizer,
    asked: Mapping[str, Any],
    journal: Journal,
    shards: Mapping[str, Sequence[Mapping[str, Any]]],
    record_tokens: int,
) -> dict[str, Any]:
    """Writes the manifest, with which the corpus is there to be read.

    Args:
        folder: of the corpus.
        tokenizer: of the shards.
        asked: settings and inputs.
        journal: of the inputs.
        shards: what was written, of each part.
        record_tokens: most ids in a record.

    Returns:
        The manifest.
    """
    saved = tokenizer.to_json()
    words = {"kind": saved["kind"], "hash": saved["hash"]}
    words["vocab_size"] = tokenizer.vocab_size
    packages = list(_PACKAGES)
    if saved["kind"] == "byte":
        packages.remove("tokenizers")
    else:
        words["file"] = TOKENIZER
        publish(folder / UNFINISHED / TOKENIZER, folder / TOKENIZER)
    parts = {}
    for part, written in shards.items():
        found = [shard["shard"] for shard in written]
        total = {
            name: sum(shard[name] for shard in found)
            for name in ("documents", "tokens", "text_bytes")
        }
        parts[part] = {**total, "shards": found}
    versions = {name: importlib.metadata.version(name) for name in packages}
    manifest = {
        "format": FORMAT,
        "tokenizer": words,
        "record_tokens": record_tokens,
        "prompts": bool(asked["settings"]["prompt_field"]),
        "parts": parts,
        "documents_read": journal.read,
        "empty": journal.empty,
        "duplicates": sum(s["duplicates"] for w in shards.values() for s in w),
        **asked,
        "versions": {**versions, "python": platform.python_version()},
    }
    write_atomically(folder / MANIFEST, manifest)
    shutil.rmtree(folder / UNFINISHED)
    return manifest
