"""Files of text: found in folders, unpacked, and read in pieces."""

import contextlib
import gzip
import io
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from nl_jax.errors import InputError

_GZIP, _ZSTD, _BOM = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"
PACKED = (".gz", ".zst")
"""Endings of the names of compressed files."""


def find_files(field: str, name: str) -> list[pathlib.Path]:
    """Returns a file, or the files in a folder but hidden ones.

    A folder that the package ``datasets`` has saved is returned itself.

    Raises:
        InputError: naming ``field``, if there are none, or they are those of a
            prepared corpus.
    """
    path = pathlib.Path(name).expanduser()
    try:
        if not path.exists():
            raise InputError(
                f"{field}: {name!r} does not exist; give files or directories"
            )
        if path.is_file() or is_saved_dataset(path):
            _refuse_prepared(field, name, [path])
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
    _refuse_prepared(field, name, files)
    return files


def _refuse_prepared(field: str, name: str, files: list[pathlib.Path]) -> None:
    ending, first = "*.array_record", files[0]
    beside = first.parent.glob(ending) if first.name == "manifest.json" else ()
    if any(path.match(ending) for path in (*files, *beside)):
        raise InputError(
            f"{field}: {name!r} is a prepared corpus, not text, or has one in "
            "it; only data.paths and evaluate --file take a corpus"
        )


def is_saved_dataset(path: pathlib.Path) -> bool:
    """Returns whether ``save_to_disk`` of ``datasets`` has made the folder."""
    one = {path / "dataset_info.json", path / "state.json"}
    several = {path / "dataset_dict.json"}
    return any(all(f.is_file() for f in files) for files in (one, several))


def _hidden(path: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@contextlib.contextmanager
def opened(path: pathlib.Path):
    """Opens a file after its byte order mark, unpacked if it is compressed.

    Raises:
        InputError: if it cannot be read, or as long as it is open.
    """
    damaged: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    try:
        with path.open("rb") as packed:
            start = packed.peek(4)
            file: Any = packed
            if start.startswith(_GZIP):
                file = gzip.GzipFile(fileobj=packed)
            elif start.startswith(_ZSTD):
                zstandard = optional_package("zstandard", path)
                damaged += (zstandard.ZstdError,)
                reader = zstandard.ZstdDecompressor().stream_reader(
                    packed, read_across_frames=True
                )
                file = io.BufferedReader(reader, 1 << 17)
            if file.peek(3).startswith(_BOM):
                file.read(3)
            yield file
    except damaged as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path} ({why})") from error


def optional_package(name: str, path: pathlib.Path):
    """Imports a package of the extra ``corpora``, which ``path`` needs.

    Raises:
        InputError: if it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{path} needs the package {name.partition('.')[0]}: "
            'pip install -e ".[corpora]"'
        ) from error


def read_blocks(
    path, size: int = 1 << 16, longest: int | None = None
) -> Iterator[bytes]:
    """Yields the text of a file in pieces, which end at a line's end if any.

    A file may be compressed; a byte order mark is left out.

    Args:
        path: of the file.
        size: bytes of a piece, at most, unless a line is longer.
        longest: bytes after which a line is split; ``16 * size`` by default.

    Raises:
        InputError: if the file is missing, empty, binary or damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a text file")
    longest = 16 * size if longest is None else longest
    rest, found = b"", False
    with opened(path) as file:
        while block := file.read(size - len(rest) % size):
            found = True
            block = rest + block
            cut = block.rfind(b"\n") + 1
            if not cut and len(block) >= longest:
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


def character_start(text: bytes, cut: int) -> int:
    """Moves a cut in UTF-8 text back to the start of a character."""
    while 0 < cut < len(text) and text[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _utf8(path, block: bytes) -> bytes:
    try:
        block.decode()
        binary = b"\0" in block
    except UnicodeDecodeError:
        binary = True
    if binary:
        raise InputError(
            f"{path} is binary or not UTF-8; convert it (iconv -t utf-8) or "
            "leave it out"
        )
    return block
