"""Text: files, folders, a default that needs no download, a held-out part."""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import random
import sysconfig
from collections.abc import Iterator
from typing import Literal, NamedTuple

from nl_jax.checks import check_choice, check_count
from nl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text and its tokens."""

    paths: tuple[str, ...] = ()
    """Files or folders of UTF-8 text or JSONL; empty for the default text."""
    stdlib: bool = False
    """Add the standard library's top-level ``*.py`` to the default text."""
    text_field: str = "text"
    """Field of a JSONL line that holds its text."""
    tokenizer: Literal["byte", "bpe"] = "byte"
    """Bytes, or a BPE trained on the training part of the text."""
    bpe_vocab_size: int = 4096
    """Entries of the BPE vocabulary; at least 256, for every byte."""
    held_out: float = 0.1
    """Share of the text, at its end, that is not trained on."""
    max_held_out_bytes: int = 1_048_576
    """Most bytes of the held-out part that are evaluated."""

    def __post_init__(self):
        object.__setattr__(self, "paths", tuple(self.paths))
        check_choice("data.tokenizer", self.tokenizer, ("byte", "bpe"))
        check_count("data.bpe_vocab_size", self.bpe_vocab_size, 256)
        check_count("data.max_held_out_bytes", self.max_held_out_bytes)
        if not 0 < self.held_out < 1:
            raise InputError(f"data.held_out={self.held_out} must be in (0, 1)")


class Corpus(NamedTuple):
    """Text in two parts."""

    train: bytes
    """What is trained on."""
    held_out: bytes
    """What is only evaluated."""
    sha256: str
    """Hash of both, in this order; the default text differs by Python."""


def load_corpus(config: DataConfig) -> Corpus:
    """Reads the text; documents are shuffled once, the same way always.

    The default text is ``pydoc_data.topics``, English that every CPython has.

    Raises:
        InputError: for missing, empty or binary files and bad JSONL.
    """
    documents = _user_text(config) if config.paths else _default_text(config)
    # Neighbours in alphabetical order resemble one another, so that an
    # unshuffled end would be an odd sample of the text.
    random.Random(0).shuffle(documents)
    text = b"\n".join(documents)
    cut = round(len(text) * (1 - config.held_out))
    cut = text.rfind(b"\n", 0, cut) + 1 or cut
    while cut < len(text) and text[cut] & 0xC0 == 0x80:
        cut += 1  # Not inside a character.
    train, held_out = text[:cut], text[cut:]
    if not train.strip() or not held_out.strip():
        raise InputError(
            f"the text has {len(text)} bytes, too few to hold out "
            f"{config.held_out:.0%}; give more text in data.paths"
        )
    digest = hashlib.sha256(text).hexdigest()
    held_out = held_out[: config.max_held_out_bytes]
    return Corpus(train, held_out, digest)


def gzip_bits_per_byte(text: bytes) -> float:
    """Returns the bits per byte of ``gzip -9``.

    Example:
        >>> gzip_bits_per_byte(b"a" * 1000) < 1
        True
    """
    return len(gzip.compress(text, 9)) * 8 / len(text)


def _default_text(config: DataConfig) -> list[bytes]:
    from pydoc_data import topics

    documents = [topic.encode() for _, topic in sorted(topics.topics.items())]
    if config.stdlib:
        folder = pathlib.Path(sysconfig.get_path("stdlib"))
        for path in sorted(folder.glob("*.py")):
            documents.append(_read(path))
    return documents


def _user_text(config: DataConfig) -> list[bytes]:
    documents = []
    for name in config.paths:
        path = pathlib.Path(name).expanduser()
        if not path.exists():
            raise InputError(
                f"data.paths: {name} does not exist; give files or directories"
            )
        files = [path]
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            files = [p for p in files if not _hidden(p.relative_to(path))]
        if not files:
            raise InputError(f"data.paths: {name} has no files in it")
        for file in files:
            text = _read(file)
            if file.suffix == ".jsonl":
                documents += _json_lines(file, text, config.text_field)
            else:
                documents.append(text)
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise InputError(
            f"data.paths: {', '.join(config.paths)} hold no text; give files "
            "that are not empty"
        )
    return documents


def _hidden(path: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: pathlib.Path) -> bytes:
    text = path.read_bytes()
    try:
        text.decode()
        binary = b"\0" in text
    except UnicodeDecodeError:
        binary = True
    if binary:
        raise InputError(
            f"data.paths: {path} is binary or not UTF-8; convert it "
            "(iconv -t utf-8) or leave it out"
        )
    return text


def _json_lines(path, text: bytes, field: str) -> list[bytes]:
    documents = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"data.paths: {path}, line {number} is not JSON: {error}"
            ) from error
        if not isinstance(record, dict) or not isinstance(
            record.get(field), str
        ):
            raise InputError(
                f"data.paths: {path}, line {number} has no text in "
                f"{field!r}; name the field with data.text_field"
            )
        documents.append(record[field].encode())
    return documents


def read_blocks(path, size: int = 1 << 16) -> Iterator[bytes]:
    """Yields the text of a file in pieces that end where a line ends, if any.

    Raises:
        InputError: for a file that is missing, empty or binary.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a text file")
    rest, found = b"", False
    with path.open("rb") as file:
        while block := file.read(size):
            found = True
            if b"\0" in block:
                raise InputError(f"{path} is binary; give UTF-8 text")
            block = rest + block
            cut = block.rfind(b"\n") + 1
            if not cut and len(block) > 16 * size:
                # A line without an end must not fill the memory.
                cut = len(block)
                while cut and block[cut - 1] & 0xC0 == 0x80:
                    cut -= 1
                cut -= 1
            if cut:
                yield _utf8(path, block[:cut])
            rest = block[cut:]
    if rest:
        yield _utf8(path, rest)
    if not found:
        raise InputError(f"{path} is empty; give a text file")


def _utf8(path, block: bytes) -> bytes:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8; convert it (iconv -t utf-8)"
        ) from error
    return block
