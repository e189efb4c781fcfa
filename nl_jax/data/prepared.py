"""Prepared corpora: shards of tokens in ArrayRecord files, with a manifest.

``python -m experiments.prepare_text`` writes them. A record holds at most
``record_tokens`` ids of one document, little-endian, in the smallest unsigned
type that holds the vocabulary; a longer document has several records. Beside
each shard, an array int32 ``[documents, 2]`` holds the length of each document
and how many of its tokens are a prompt.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from nl_jax.data.sources import Document, Span, masked
from nl_jax.data.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from nl_jax.errors import InputError

FORMAT = 1
"""Version of the format."""
MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
"""Folder with the work that a preparation has done so far."""
PARTS = ("train", "held_out")
_EDGE = 1 << 16


def id_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest type that holds the ids.

    Example:
        >>> id_dtype(256).str, id_dtype(4096).str
        ('|u1', '<u2')
    """
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


def record_counts(lengths: np.ndarray, record_tokens: int) -> np.ndarray:
    """Returns the number of records of each document."""
    return -(-lengths.astype(np.int64) // record_tokens)


def edges_sha256(path: pathlib.Path) -> str:
    """Returns the hash of a file's first and last 64 KiB.

    The last of an ArrayRecord file hold the places of its records, so another
    shard is recognised without reading it.
    """
    with path.open("rb") as file:
        edges = file.read(_EDGE)
        file.seek(max(os.path.getsize(path) - _EDGE, 0))
        return hashlib.sha256(edges + file.read(_EDGE)).hexdigest()


def file_sha256(path: pathlib.Path) -> str:
    """Returns the hash of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_prepared(path: str | os.PathLike) -> bool:
    """Returns whether a folder holds a prepared corpus.

    Raises:
        InputError: if its preparation has not been finished.
    """
    folder = pathlib.Path(path).expanduser()
    if (folder / MANIFEST).is_file():
        return True
    if (folder / UNFINISHED).is_dir():
        raise InputError(
            f"{path} is not finished; repeat the command that prepared it"
        )
    return False


class PreparedCorpus(NamedTuple):
    """A prepared corpus, of which nothing but the index has been read."""

    train: "PreparedDocuments"
    held_out: "PreparedDocuments"
    tokenizer: Tokenizer
    sha256: str
    """Hash of the manifest, which has those of all shards."""


def open_prepared(
    path: str | os.PathLike, *, field: str = "data.paths", verify: bool = False
) -> PreparedCorpus:
    """Opens a prepared corpus.

    Args:
        path: folder of the corpus.
        field: name of the setting with the path, for error messages.
        verify: whether to compare the hashes of all files, which reads them.
            Without, their sizes are compared, and the hashes of their edges.

    Raises:
        InputError: naming the file and the field of the manifest, if a file is
            missing, truncated or another one.
    """
    folder = pathlib.Path(path).expanduser()
    text, manifest = read_manifest(folder, field)
    try:
        for part in PARTS:
            for shard in manifest["parts"][part]["shards"]:
                for file in (shard["records"], shard["index"]):
                    _check_file(field, folder, part, file, verify)
        tokenizer = _tokenizer(field, folder, manifest["tokenizer"])
        train, held_out = (
            PreparedDocuments(folder, manifest, part) for part in PARTS
        )
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{field}: {folder / MANIFEST} is damaged (no {error})"
        ) from error
    sha256 = hashlib.sha256(text).hexdigest()
    return PreparedCorpus(train, held_out, tokenizer, sha256)


def read_manifest(
    path: str | os.PathLike, field: str = "data.paths"
) -> tuple[bytes, dict[str, Any]]:
    """Returns the manifest of a prepared corpus, as text and parsed.

    Raises:
        InputError: if it is missing, damaged or that of another version.
    """
    folder = pathlib.Path(path).expanduser()
    if not is_prepared(folder):
        raise InputError(f"{field}: {folder} has no {MANIFEST}")
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest = json.loads(text)
        known = manifest["format"] == FORMAT
    except OSError as error:
        raise InputError(
            f"{field}: cannot read {folder / MANIFEST} ({error.strerror})"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{field}: {folder / MANIFEST} is not that of a prepared corpus"
        ) from error
    if not known:
        raise InputError(
            f"{field}: {folder / MANIFEST} has format={manifest['format']!r}; "
            f"this version reads {FORMAT}; prepare the text again"
        )
    return text, manifest


def _check_file(field, folder, part, file, verify) -> None:
    path = folder / file["file"]
    place = f"{field}: {path}"
    try:
        size = path.stat().st_size
        if size != file["bytes"]:
            raise InputError(
                f"{place} has {size} bytes; parts.{part}.bytes of "
                f"{MANIFEST} is {file['bytes']}: the file was cut off or "
                "exchanged; copy or prepare the corpus again"
            )
        for name, hash_of in (
            ("edges_sha256", edges_sha256),
            ("sha256", file_sha256),
        ):
            if name == "sha256" and not verify:
                continue
            found = hash_of(path)
            if found != file[name]:
                raise InputError(
                    f"{place} has {name} {found[:12]}…; parts.{part}.{name} of "
                    f"{MANIFEST} is {file[name][:12]}…: it is another file, or "
                    "damaged; copy or prepare the corpus again"
                )
    except OSError as error:
        raise InputError(
            f"{place}, which {MANIFEST} lists, cannot be read "
            f"({error.strerror})"
        ) from error


def _tokenizer(field, folder, saved) -> Tokenizer:
    if saved["kind"] == "byte":
        return ByteTokenizer()
    path = folder / saved["file"]
    try:
        tokenizer = BPETokenizer.from_file(path)
    except InputError as error:
        raise InputError(f"{field}: {error}") from error
    found = tokenizer.to_json()["hash"]
    if found != saved["hash"]:
        raise InputError(
            f"{field}: {path} has the hash {found[:12]}…; tokenizer.hash of "
            f"{MANIFEST} is {saved['hash'][:12]}…: it is another tokenizer "
            "than that of the shards"
        )
    return tokenizer


class _WholeFile(NamedTuple):
    """An ArrayRecord file as Grain knows it without opening it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class PreparedDocuments:
    """Source of one part of a prepared corpus; tokens are read when asked for.

    Args:
        folder: of the corpus.
        manifest: of the corpus, whose files have been checked.
        part: ``"train"`` or ``"held_out"``.
    """

    def __init__(self, folder: pathlib.Path, manifest: Any, part: str):
        self._dtype = id_dtype(manifest["tokenizer"]["vocab_size"])
        self._record_tokens = manifest["record_tokens"]
        shards = manifest["parts"][part]["shards"]
        index = [np.load(folder / s["index"]["file"]) for s in shards]
        self.lengths = np.concatenate([found[:, 0] for found in index])
        self.weighted = manifest["prompts"]
        self._prompts = None
        if self.weighted:
            self._prompts = np.concatenate([found[:, 1] for found in index])
        counts = record_counts(self.lengths, self._record_tokens)
        self._first = np.cumsum(counts) - counts
        self._files = []
        for shard in shards:
            path = str(folder / shard["records"]["file"])
            count = shard["records"]["count"]
            self._files.append(_WholeFile(path, 0, count, count))
        self._records = grain.sources.ArrayRecordDataSource(self._files)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        return self.read([Span(index, 0, int(self.lengths[index]))])[0]

    def read(self, slices: Iterable[Span]) -> list[Document]:
        """Returns parts of documents.

        Raises:
            InputError: if a shard is damaged.
        """
        slices, size = list(slices), self._record_tokens
        spans = []
        for index, start, stop in slices:
            first = int(self._first[index])
            spans.append(range(first + start // size, first - (-stop // size)))
        keys = list(dict.fromkeys(key for span in spans for key in span))
        found = dict(zip(keys, self._fetch(keys), strict=True))
        out = []
        for (index, start, stop), span in zip(slices, spans, strict=True):
            parts = [np.frombuffer(found[key], self._dtype) for key in span]
            at = start % size
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            tokens = whole[at : at + stop - start].astype(np.int32)
            if self._prompts is None:
                out.append(Document(tokens))
            else:
                prompt = int(self._prompts[index]) - start
                out.append(masked(tokens, max(prompt, 0)))
        return out

    def _fetch(self, keys: list[int]) -> Sequence[bytes]:
        """Reads records; an error names the file of one that is damaged."""
        key = 0
        try:
            try:
                return self._records.__getitems__(keys)
            except (RuntimeError, ValueError, OSError):
                for key in keys:
                    self._records[key]
                raise
        except (RuntimeError, ValueError, OSError) as error:
            ends = np.cumsum([file.take for file in self._files])
            name = self._files[int(np.searchsorted(ends, key, "right"))][0]
            raise InputError(
                f"data.paths: {name} is damaged, or was changed since it was "
                f"opened ({error})"
            ) from error
