"""Documents of files: text, JSONL (JSON lines), Parquet and saved datasets.

Files are read as batches of raw items, which cost little to read over, and
which :func:`parse` turns into documents, in another process if need be.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nl_jax.data.tables import read_dataset, read_parquet
from nl_jax.data.text_files import (
    PACKED,
    find_files,
    is_saved_dataset,
    opened,
    read_blocks,
)
from nl_jax.errors import InputError

_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")


class TextDocument(NamedTuple):
    """The text of one document, before it is tokenized."""

    text: bytes
    prompt_bytes: int = 0
    """How many bytes at its beginning are a prompt, which is no target."""


class TextFields(NamedTuple):
    """Names of the fields that hold the text of a record."""

    text: str = "text"
    """Name of the field with the text, or the answer to a prompt."""
    prompt: str = ""
    """Name of the field with the prompt, if there is one."""
    settings: str = "data."
    """What the settings' names begin with, for error messages."""

    def names(self) -> list[str]:
        """Returns the names of the fields, that of the prompt first."""
        return [self.prompt, self.text] if self.prompt else [self.text]


class RawBatch(NamedTuple):
    """Items of a file that follow one another, as they are in the file."""

    place: str
    """Name of the file, for error messages."""
    kind: str
    """``"text"``, or what the items are in error messages."""
    items: list[tuple[int, Any]]
    """The number of each item in the file, from 1, and the item: text, a line
    of JSON, or the texts of a record's fields."""
    size: int
    """Bytes of the items."""


def read_documents(
    field: str, paths: Sequence[str], fields: TextFields
) -> list[TextDocument]:
    """Reads the documents of files; all of a text file is one.

    Files whose names end with ``.jsonl``, ``.ndjson`` or ``.jsonlines``, in any
    case, are JSONL. They and text files may be compressed with gzip or zstd.
    Others are Parquet, by name, and folders that ``datasets`` has saved.

    Args:
        field: name of the configuration's field, for error messages.
        paths: files or folders; hidden files in folders are left out.
        fields: which fields of records hold the text.

    Raises:
        InputError: if a file is missing, binary or invalid, or no file has
            text.
    """
    documents: list[TextDocument] = []
    for name in paths:
        for file in find_files(field, name):
            for batch in read_batches(field, file, fields):
                documents += parse(batch, fields)
    documents = [found for found in documents if found.text.strip()]
    if not documents:
        raise InputError(
            f"{field}: {', '.join(paths)} hold no text; give files that are "
            "not empty"
        )
    return documents


def read_batches(
    field: str,
    path: pathlib.Path,
    fields: TextFields,
    *,
    batch_bytes: int = 1 << 18,
    document_bytes: int | None = None,
    separator: bytes = b"",
) -> Iterator[RawBatch]:
    """Yields the items of a file, the same batches every time.

    Args:
        field: name of the setting with the file, for error messages.
        path: of the file, or of a folder that ``datasets`` has saved.
        fields: which fields of records hold the text.
        batch_bytes: a batch ends with the item that reaches this size.
        document_bytes: text files are cut at lines' ends, if there are any,
            into documents of at most this size; ``None`` to leave them whole.
        separator: text between the documents of a text file, or ``b""``.

    Raises:
        InputError: if the file cannot be read.
    """
    name = _unpacked_name(path)
    kind = "row"
    items: Iterator[Any]
    if is_saved_dataset(path):
        items = read_dataset(path, fields.names())
    elif name.endswith(".parquet"):
        items = read_parquet(path, fields.names())
    elif name.endswith(_JSON_LINES):
        kind, items = "line", _lines(path)
    else:
        kind, items = "text", _texts(field, path, document_bytes, separator)
    batch: list[tuple[int, Any]] = []
    size = 0
    for item in enumerate(items, 1):
        batch.append(item)
        size += _size(item[1])
        if size >= batch_bytes:
            yield RawBatch(f"{field}: {path}", kind, batch, size)
            batch, size = [], 0
    if batch:
        yield RawBatch(f"{field}: {path}", kind, batch, size)


def is_text(path: pathlib.Path) -> bool:
    """Returns whether a file is read as text, by its name."""
    records = (".parquet", *_JSON_LINES)
    return path.is_file() and not _unpacked_name(path).endswith(records)


def _unpacked_name(path: pathlib.Path) -> str:
    name = path.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return name


def _size(item) -> int:
    if isinstance(item, bytes):
        return len(item)
    return sum(len(text) for text in item.values() if isinstance(text, str))


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    with opened(path) as file:
        yield from file


def _texts(field, path, document_bytes, separator) -> Iterator[bytes]:
    """Yields the documents of a text file."""
    if not path.stat().st_size:
        return
    try:
        if document_bytes is None:
            yield b"".join(read_blocks(path, 1 << 20))
        elif not separator:
            yield from read_blocks(path, document_bytes, document_bytes)
        else:
            held = b""
            for block in read_blocks(path, min(document_bytes, 1 << 16)):
                *whole, held = (held + block).split(separator)
                yield from (text.strip(b"\r\n") for text in whole)
                if len(held) > document_bytes:
                    yield held
                    held = b""
            yield held.strip(b"\r\n")
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


def parse(batch: RawBatch, fields: TextFields) -> Iterator[TextDocument]:
    """Yields the documents of a batch, empty ones too.

    Raises:
        InputError: naming the item, if it is not JSON, or a field is missing
            or not text.

    Example:
        >>> fields = TextFields("answer", "prompt")
        >>> lines = [(1, b'{"prompt": "1+1=", "answer": "2"}')]
        >>> list(parse(RawBatch("a.jsonl", "line", lines, 33), fields))
        [TextDocument(text=b'1+1=2', prompt_bytes=4)]
    """
    for number, item in batch.items:
        place = f"{batch.place}, {batch.kind} {number}"
        if batch.kind == "text":
            yield TextDocument(item)
        elif batch.kind == "row":
            yield _from_fields(place, item, fields)
        elif item.strip():
            yield _parse_line(place, item, fields)


def _parse_line(place: str, line: bytes, fields: TextFields) -> TextDocument:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    return _from_fields(place, record, fields)


def _from_fields(place: str, record, fields: TextFields) -> TextDocument:
    parts = []
    for setting in ("prompt", "text")[-len(fields.names()) :]:
        name = getattr(fields, setting)
        found = record.get(name) if isinstance(record, dict) else None
        if not isinstance(found, str):
            raise InputError(
                f"{place} has no text in {name!r}; name the field with "
                f"{fields.settings}{setting}_field"
            )
        if "\0" in found:
            raise InputError(
                f"{place} has a NUL character in {name!r}, as binary files do; "
                "leave it out"
            )
        try:
            parts.append(found.encode())
        except UnicodeEncodeError as error:
            raise InputError(
                f"{place} has a lone surrogate, {found[error.start]!r}, which "
                "no text can hold; leave it out"
            ) from error
    text = b"".join(parts)
    return TextDocument(text, len(text) - len(parts[-1]))


def text_digest(text: bytes) -> bytes:
    """Returns 16 bytes that are equal for documents of equal text.

    Space around the text does not count.
    """
    return hashlib.sha256(text.strip()).digest()[:16]


def is_held_out(digest: bytes, share: float) -> bool:
    """Returns whether a document is held out, which its text alone decides."""
    return int.from_bytes(digest[:8], "big") < share * 2**64
