"""Text for training and evaluation, from files or Python's documentation."""

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
    """Text and tokenizer of a run."""

    paths: tuple[str, ...] = ()
    """Files or folders of UTF-8 text or JSONL; empty for the default text."""
    stdlib: bool = False
    """Add the standard library's top-level ``*.py`` to the default text."""
    text_field: str = "text"
    """Name of the field with the text in each line of a JSONL file."""
    tokenizer: Literal["byte", "bpe"] = "byte"
    """``"byte"``, or ``"bpe"`` for a BPE trained on the training text."""
    bpe_vocab_size: int = 4096
    """Size of the BPE vocabulary; at least 256, for all bytes."""
    held_out: float = 0.1
    """Fraction of the text, at its end, that is held out from training."""
    max_held_out_bytes: int = 1_048_576
    """Number of bytes of the held-out text that are evaluated, at most."""

    def __post_init__(self):
        object.__setattr__(self, "paths", tuple(self.paths))
        check_choice("data.tokenizer", self.tokenizer, ("byte", "bpe"))
        check_count("data.bpe_vocab_size", self.bpe_vocab_size, 256)
        check_count("data.max_held_out_bytes", self.max_held_out_bytes)
        if not 0 < self.held_out < 1:
            raise InputError(f"data.held_out={self.held_out} must be in (0, 1)")


class Corpus(NamedTuple):
    """Text, split for training and evaluation."""

    train: bytes
    """Training text."""
    held_out: bytes
    """Text for evaluation only."""
    sha256: str
    """Hash of the whole text; the default text varies with Python's version."""


def load_corpus(config: DataConfig) -> Corpus:
    """Reads the text, shuffles its documents in a fixed order and splits it.

    The default text is ``pydoc_data.topics``, English included in CPython.

    Raises:
        InputError: if a file is missing, empty, binary or invalid JSONL.
    """
    documents = _user_text(config) if config.paths else _default_text(config)
    # Documents with similar names are often similar: without shuffling, the
    # end would not represent the text.
    random.Random(0).shuffle(documents)
    text = b"\n".join(documents)
    cut = round(len(text) * (1 - config.held_out))
    cut = text.rfind(b"\n", 0, cut) + 1 or cut
    while cut < len(text) and text[cut] & 0xC0 == 0x80:
        cut += 1  # Do not split a character.
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
    """Returns the size of ``gzip -9``'s output in bits per byte of text.

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
    """Yields the text of a file in pieces, which end at a line's end if any.

    Raises:
        InputError: if the file is missing, empty or binary.
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
                # Split a very long line, so that it does not fill the memory.
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
