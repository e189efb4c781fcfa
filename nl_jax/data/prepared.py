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
from typing import Any, NamedTuple

from nl_jax.data.array_records import MANIFEST, SHARD, PreparedDocuments
from nl_jax.data.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from nl_jax.errors import InputError

FORMAT = 1
"""Version of the format."""
UNFINISHED = "unfinished"
"""Folder with the work that a preparation has done so far."""
PARTS = ("train", "held_out")
_EDGE = 1 << 16


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


def is_prepared(path: str | os.PathLike, field: str = "data.paths") -> bool:
    """Returns whether a path is a prepared corpus: its folder or manifest.

    Args:
        path: of a file or folder.
        field: name of the setting with the path, for error messages.

    Raises:
        InputError: if its preparation has not been finished.
    """
    folder = _folder(path)
    if (folder / MANIFEST).is_file():
        return True
    if (folder / UNFINISHED).is_dir():
        raise InputError(
            f"{field}: {folder} is not finished; repeat the command that "
            "prepared it"
        )
    if next(folder.glob(f"*{SHARD}"), None):
        raise InputError(
            f"{field}: {folder} has shards but no {MANIFEST}: it was not "
            "prepared or copied to the end; do that again"
        )
    return False


def _folder(path: str | os.PathLike) -> pathlib.Path:
    folder = pathlib.Path(path).expanduser()
    return folder.parent if folder.name == MANIFEST else folder


class PreparedCorpus(NamedTuple):
    """A prepared corpus, of which nothing but the index has been read."""

    train: PreparedDocuments
    held_out: PreparedDocuments
    tokenizer: Tokenizer
    sha256: str
    """Hash of the manifest, which has those of all shards."""
    held_out_share: float
    """Share of the documents that are held out, by their hashes."""


def open_prepared(
    path: str | os.PathLike, *, field: str = "data.paths", verify: bool = False
) -> PreparedCorpus:
    """Opens a prepared corpus.

    Args:
        path: folder of the corpus, or its manifest.
        field: name of the setting with the path, for error messages.
        verify: whether to compare the hashes of all files, which reads them.
            Without, their sizes are compared, and the hashes of the indices
            and of the edges of the shards.

    Raises:
        InputError: naming the file and the field of the manifest, if a file is
            missing, truncated or another one.
    """
    folder = _folder(path)
    text, manifest = read_manifest(folder, field)
    try:
        for part in PARTS:
            for shard in manifest["parts"][part]["shards"]:
                _check_file(field, folder, part, shard["records"], verify)
                _check_file(field, folder, part, shard["index"], True)
        tokenizer = _tokenizer(field, folder, manifest["tokenizer"])
        train, held_out = (
            PreparedDocuments(folder, manifest, part, field) for part in PARTS
        )
        share = float(manifest["settings"]["held_out"])
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{field}: {folder / MANIFEST} is damaged (no {error})"
        ) from error
    sha256 = hashlib.sha256(text).hexdigest()
    return PreparedCorpus(train, held_out, tokenizer, sha256, share)


def read_manifest(
    path: str | os.PathLike, field: str = "data.paths"
) -> tuple[bytes, dict[str, Any]]:
    """Returns the manifest of a prepared corpus, as text and parsed.

    Raises:
        InputError: if it is missing, damaged or that of another version.
    """
    folder = _folder(path)
    if not is_prepared(folder, field):
        raise InputError(f"{field}: {folder} has no {MANIFEST}")
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest = json.loads(text)
        known = manifest["format"] == FORMAT
        if known:
            int(manifest["tokenizer"]["vocab_size"])
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
    tokenizer = _saved_tokenizer(field, folder, saved)
    if saved["vocab_size"] != tokenizer.vocab_size:
        raise InputError(
            f"{field}: tokenizer.vocab_size of {folder / MANIFEST} is "
            f"{saved['vocab_size']!r}, but the tokenizer has "
            f"{tokenizer.vocab_size} ids; copy or prepare the corpus again"
        )
    return tokenizer


def _saved_tokenizer(field, folder, saved) -> Tokenizer:
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
