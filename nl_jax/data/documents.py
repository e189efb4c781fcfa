"""Documents of text and JSONL files (JSON lines), gzipped or not."""

import contextlib
import gzip
import hashlib
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nl_jax.errors import InputError

_GZIP, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
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


def read_documents(
    field: str, paths: Sequence[str], fields: TextFields
) -> list[TextDocument]:
    """Reads the documents of text and JSONL files; all of a text file is one.

    Files whose names end with ``.jsonl``, ``.ndjson`` or ``.jsonlines``, in any
    case, are JSONL.

    Args:
        field: name of the configuration's field, for error messages.
        paths: files or folders; hidden files in folders are left out.
        fields: which fields of JSONL files hold the text.

    Raises:
        InputError: if a file is missing, binary or invalid JSONL, or no file
            has text.
    """
    documents: list[TextDocument] = []
    for name in paths:
        for file in _files(field, name):
            text = _read(field, file)
            if file.name.lower().removesuffix(".gz").endswith(_JSON_LINES):
                documents += _json_lines(field, file, text, fields)
            else:
                documents.append(TextDocument(text))
    documents = [found for found in documents if found.text.strip()]
    if not documents:
        raise InputError(
            f"{field}: {', '.join(paths)} hold no text; give files that are "
            "not empty"
        )
    return documents


def _files(field: str, name: str) -> list[pathlib.Path]:
    """Returns a file, or the files in a folder."""
    path = pathlib.Path(name).expanduser()
    try:
        if not path.exists():
            raise InputError(
                f"{field}: {name!r} does not exist; give files or directories"
            )
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise InputError(
                f"{field}: {name!r} is a pipe or device; give files or "
                "directories"
            )
        files = sorted(p for p in path.rglob("*") if p.is_file())
    except OSError as error:
        raise InputError(
            f"{field}: cannot read {error.filename or name} ({error.strerror})"
        ) from error
    files = [p for p in files if not _hidden(p.relative_to(path))]
    if not files:
        raise InputError(f"{field}: {name} has no files in it")
    return files


def _hidden(path: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@contextlib.contextmanager
def _opened(path: pathlib.Path):
    """Opens a file after its byte order mark, unpacked if it is gzipped."""
    try:
        with path.open("rb") as packed:
            gzipped = packed.read(2) == _GZIP
            packed.seek(0)
            file = gzip.GzipFile(fileobj=packed) if gzipped else packed
            if file.read(3) != _BOM:
                file.seek(0)
            yield file
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path} ({why})") from error


def _read(field: str, path: pathlib.Path) -> bytes:
    with _opened(path) as file:
        text = file.read()
    try:
        text.decode()
        binary = b"\0" in text
    except UnicodeDecodeError:
        binary = True
    if binary:
        raise InputError(
            f"{field}: {path} is binary or not UTF-8; convert it "
            "(iconv -t utf-8) or leave it out"
        )
    return text


def _json_lines(
    field: str, path: pathlib.Path, text: bytes, fields: TextFields
) -> Iterator[TextDocument]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield parse_line(f"{field}: {path}, line {number}", line, fields)


def parse_line(place: str, line: bytes, fields: TextFields) -> TextDocument:
    """Reads a line of a JSONL file.

    Args:
        place: of the line, for error messages.
        line: a JSON object.
        fields: which of its fields hold the text.

    Raises:
        InputError: if it is not JSON, or a field is missing or not text.

    Example:
        >>> fields = TextFields("answer", "prompt")
        >>> parse_line("", b'{"prompt": "1+1=", "answer": "2"}', fields)
        TextDocument(text=b'1+1=2', prompt_bytes=4)
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    parts = []
    for setting in ("prompt", "text") if fields.prompt else ("text",):
        name = getattr(fields, setting)
        found = record.get(name) if isinstance(record, dict) else None
        if not isinstance(found, str):
            raise InputError(
                f"{place} has no text in {name!r}; name the field with "
                f"{fields.settings}{setting}_field"
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


def read_blocks(path, size: int = 1 << 16) -> Iterator[bytes]:
    """Yields the text of a file in pieces, which end at a line's end if any.

    A file may be gzipped; a byte order mark is left out.

    Raises:
        InputError: if the file is missing, empty, binary or damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a text file")
    rest, found = b"", False
    with _opened(path) as file:
        while block := file.read(size):
            found = True
            if b"\0" in block:
                raise InputError(f"{path} is binary; give UTF-8 text")
            block = rest + block
            cut = block.rfind(b"\n") + 1
            if not cut and len(block) > 16 * size:
                # Split a very long line, so that it does not fill the memory.
                # At 0 it is no text, which is said at once.
                cut = character_start(block, len(block) - 1) or len(block)
            if cut:
                yield _utf8(path, block[:cut])
            rest = block[cut:]
    if rest:
        yield _utf8(path, rest)
    if not found:
        raise InputError(f"{path} is empty; give a text file")


def text_digest(text: bytes) -> bytes:
    """Returns 16 bytes that are equal for documents of equal text.

    Space around the text does not count.
    """
    return hashlib.sha256(text.strip()).digest()[:16]


def character_start(text: bytes, cut: int) -> int:
    """Moves a cut in UTF-8 text back to the start of a character."""
    while 0 < cut < len(text) and text[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _utf8(path, block: bytes) -> bytes:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8; convert it (iconv -t utf-8)"
        ) from error
    return block
