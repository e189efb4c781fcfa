"""Text for training and evaluation, from files or Python's documentation."""

import dataclasses
import gzip
import hashlib
import os
import pathlib
import random
import re
import sysconfig
from collections.abc import Iterable
from typing import Literal, NamedTuple

from nl_jax.checks import check_fields
from nl_jax.data.documents import (
    TextDocument,
    TextFields,
    is_held_out,
    read_documents,
    text_digest,
)
from nl_jax.data.order import check_weights
from nl_jax.data.prepared import is_prepared, read_manifest
from nl_jax.data.repeats import without_repeats
from nl_jax.data.text_files import character_start
from nl_jax.data.tokenizers import BPETokenizer
from nl_jax.errors import InputError

_RULED_LINE = re.compile(r"^[^\w\n]{40,}\n", re.MULTILINE)
"""A line that tables or headings are drawn with."""
TEXT_FIELDS = ("text_field", "prompt_field")
"""Settings of documents that are records."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text and tokenizer of a run."""

    paths: tuple[str, ...] = ()
    """Prepared corpora, or files or folders of UTF-8 text, JSONL or Parquet;
    as flags, separated by commas; empty for the default text."""
    held_out_paths: tuple[str, ...] = ()
    """Files or folders to evaluate on; empty to hold out a part of the text."""
    stdlib: bool = False
    """Add the standard library's top-level ``*.py`` to the default text."""
    text_field: str = "text"
    """Name of the field with the text in each line of a JSONL file."""
    prompt_field: str = ""
    """Name of the field with a prompt that comes before the text and is no
    target, in each line of a JSONL file; empty if there is none."""
    unique_paragraphs: bool = False
    """Keep only one of paragraphs of 40 bytes or more that occur repeatedly, so
    that the held-out text quotes the training text less. Prepared corpora stay
    as they are."""
    tokenizer: str = "auto"
    """``"byte"``, ``"bpe"`` for a BPE trained on the training text, the path of
    a ``tokenizer.json`` with a byte-level BPE, or ``"auto"`` for that of
    prepared corpora, and bytes without any."""
    bpe_vocab_size: int = 4096
    """Size of the BPE vocabulary; at least 256, for all bytes."""
    bpe_sample_bytes: int = 8_388_608
    """Number of bytes that a BPE is trained on, at most."""
    verify: bool = False
    """Compare the hashes of all files of prepared corpora at the start, which
    reads them whole."""
    held_out: float = 0.1
    """Fraction of the text, at its end, that is held out from training. With
    ``held_out_paths``, or beside prepared corpora, whose share by hash then
    holds for all, it cannot be set."""
    max_held_out_bytes: int = 1_048_576
    """Number of bytes of the held-out text that are evaluated, at most."""

    reading: Literal["windows", "packed", "contiguous"] = "windows"
    """How batches are read: in ``"windows"`` of documents joined with newlines;
    in windows ``"packed"`` with whole documents; or ``"contiguous"``, where
    each row of the batch reads documents on from step to step."""
    carry_windows: int = 0
    """Number of windows over which a document is carried on in contiguous rows,
    at most; the rest of it is read as a new document. 0 for no bound."""
    packed_share: float = 0.0
    """Fraction of the rows that are packed windows among contiguous ones."""
    weights: tuple[float, ...] = ()
    """Shares of the corpora in the tokens that are read, one for each of
    ``paths``, in any unit; empty to read all as one corpus."""

    def __post_init__(self):
        for name in ("paths", "held_out_paths"):
            paths = getattr(self, name)
            if isinstance(paths, (str, os.PathLike)):
                paths = (paths,)
            kinds = (str, os.PathLike)
            listed = isinstance(paths, Iterable)
            if not listed or not all(
                isinstance(p, kinds) and str(p) for p in paths
            ):
                raise InputError(
                    f"data.{name}={paths!r} must be paths of files or folders"
                )
            # Flags separate paths with commas.
            names = [
                part
                for path in map(str, paths)
                for part in (
                    [path]
                    if pathlib.Path(path).expanduser().exists()
                    else map(str.strip, path.split(","))
                )
            ]
            if not all(names):
                raise InputError(
                    f"data.{name}={','.join(names)!r} has an empty path"
                )
            object.__setattr__(self, name, tuple(names))
        object.__setattr__(self, "tokenizer", str(self.tokenizer))
        check_fields(self, "data.", bpe_vocab_size=256, carry_windows=0)
        weights = self.weights
        if not isinstance(weights, Iterable) or isinstance(weights, str):
            weights = (weights,)
        object.__setattr__(self, "weights", tuple(weights))
        check_weights(self.weights, len(self.paths))
        if not 0 <= self.packed_share < 1:
            raise InputError(
                f"data.packed_share={self.packed_share} must be in [0, 1)"
            )
        known = self.tokenizer in ("auto", "byte", "bpe")
        if not known and not self.tokenizer.endswith(".json"):
            raise InputError(
                f"data.tokenizer={self.tokenizer!r} must be one of 'auto', "
                "'byte', 'bpe', or the path of a tokenizer.json"
            )
        if not 0 < self.held_out < 1:
            raise InputError(f"data.held_out={self.held_out} must be in (0, 1)")
        if self.reading != "contiguous":
            rows = ("carry_windows", "packed_share")
            self.refuse(rows, "without data.reading='contiguous'")
        if self.tokenizer != "bpe":
            bpe = ("bpe_vocab_size", "bpe_sample_bytes")
            self.refuse(bpe, "without data.tokenizer='bpe'")
        if self.held_out_paths:
            self.refuse(("held_out",), "with data.held_out_paths")
        if self.paths:
            self.refuse(("stdlib",), "with data.paths")
        elif not self.held_out_paths:
            self.refuse(TEXT_FIELDS, "on the default text, which is no JSONL")

    def refuse(self, names: Iterable[str], where: str) -> None:
        """Raises ``InputError`` if a field is set that has no effect.

        Example:
            >>> DataConfig(stdlib=True).refuse(["stdlib"], "here")
            Traceback (most recent call last):
            ...
            nl_jax.errors.InputError: data.stdlib=True has no effect here; \
leave it out
        """
        for name in names:
            value = getattr(self, name)
            if value != getattr(DataConfig, name):
                raise InputError(
                    f"data.{name}={value!r} has no effect {where}; leave it out"
                )

    def vocab_size(self) -> int:
        """Returns the number of ids that a model of the text needs."""
        if self.tokenizer == "bpe":
            return self.bpe_vocab_size
        if self.tokenizer.endswith(".json"):
            return BPETokenizer.from_file(self.tokenizer).vocab_size
        for path in self.paths if self.tokenizer == "auto" else ():
            if is_prepared(path):
                _, manifest = read_manifest(path)
                return manifest["tokenizer"]["vocab_size"]
        return 256


class Corpus(NamedTuple):
    """Text, split for training and evaluation."""

    train: bytes
    """Training text."""
    held_out: bytes
    """Text for evaluation only."""
    sha256: str
    """Hash of the whole text; the default text varies with Python's version."""
    train_documents: tuple[TextDocument, ...]
    """The documents of the training text, which newlines join."""
    held_out_documents: tuple[TextDocument, ...]
    """The documents of the text for evaluation; the first may be the rest of
    the last one of the training text."""


def load_corpus(
    config: DataConfig, hashed_share: float | None = None
) -> Corpus:
    """Reads the text, shuffles its documents in a fixed order and splits it.

    Of documents that occur more than once only one is kept, in the held-out
    text if it occurs there; with ``unique_paragraphs``, of paragraphs too. The
    default text is ``pydoc_data.topics``, English included in CPython, which
    quotes itself so much that this is always done to it.

    Args:
        config: which text to read, and how to split it.
        hashed_share: share of the documents to hold out by their hashes, which
            may be none, as prepared corpora do; ``None`` to hold out the end.

    Raises:
        InputError: if a file is missing, empty, binary or invalid JSONL.
    """
    fields = TextFields(config.text_field, config.prompt_field)
    if config.paths:
        documents = read_documents("data.paths", config.paths, fields)
    else:
        documents = _default_text(config)
    seen: set[bytes] = set()
    unique = config.unique_paragraphs
    each = unique or not config.paths
    if config.held_out_paths or hashed_share is not None:
        if hashed_share is None:
            whose = "data.held_out_paths hold"
            found = read_documents(
                "data.held_out_paths", config.held_out_paths, fields
            )
        else:
            whose = f"the hashes below {hashed_share} hold out"
            found, documents = _by_hash(documents, hashed_share)
        held_out_documents = _shuffled(found, seen, unique)
        train_documents = _shuffled(documents, seen, each)
        if not train_documents:
            raise InputError(
                f"{whose} all documents of data.paths "
                f"({', '.join(config.paths)}); give others to train on"
            )
        train, held_out = _joined(train_documents), _joined(held_out_documents)
        text = train + b"\0" + held_out
    else:
        shuffled = _shuffled(documents, seen, each)
        text = _joined(shuffled)
        cut = _cut(text, round(len(text) * (1 - config.held_out)))
        train, held_out = text[:cut], text[cut:]
        train_documents, held_out_documents = _split(shuffled, cut)
    most = character_start(held_out, config.max_held_out_bytes)
    held_out = held_out[:most]
    held_out_documents, _ = _split(held_out_documents, most)
    empty = hashed_share is None and not held_out.strip()
    if not train.strip() or empty:
        raise InputError(
            f"the text has {len(text)} bytes, too few to hold out "
            f"{config.held_out:.0%}; give more text in data.paths"
        )
    sha256 = hashlib.sha256(text).hexdigest()
    return Corpus(train, held_out, sha256, train_documents, held_out_documents)


def _by_hash(
    documents: Iterable[TextDocument], share: float
) -> tuple[list[TextDocument], list[TextDocument]]:
    """Returns the documents to hold out, and the others."""
    parts: tuple[list[TextDocument], list[TextDocument]] = ([], [])
    for document in documents:
        held_out = is_held_out(text_digest(document.text), share)
        parts[not held_out].append(document)
    return parts


def _joined(documents: Iterable[TextDocument]) -> bytes:
    return b"\n".join(document.text for document in documents)


def _split(
    documents: Iterable[TextDocument], cut: int
) -> tuple[tuple[TextDocument, ...], tuple[TextDocument, ...]]:
    """Splits documents, joined with newlines, at a byte."""
    before, after = [], []
    for document in documents:
        text, prompt = document
        here = min(max(cut, 0), len(text))
        if here:
            before.append(TextDocument(text[:here], min(prompt, here)))
        if text[here:]:
            after.append(TextDocument(text[here:], max(prompt - here, 0)))
        cut -= len(text) + 1
    return tuple(before), tuple(after)


def _shuffled(
    documents: list[TextDocument], seen: set[bytes], paragraphs: bool
) -> tuple[TextDocument, ...]:
    """Returns what is new in documents, in a fixed random order."""
    # Documents with similar names are often similar: without shuffling, the
    # end would not represent the text.
    random.Random(0).shuffle(documents)
    return tuple(without_repeats(documents, seen, paragraphs=paragraphs))


def _cut(text: bytes, cut: int) -> int:
    """Moves a cut back to a line's end or else a word's, if one is near.

    What is held out grows by a tenth at most.
    """
    least = cut - (len(text) - cut) // 10
    for separator in (b"\n", b" "):
        found = text.rfind(separator, max(least, 0), cut)
        if found >= 0:
            return found + 1
    return character_start(text, cut)


def gzip_bits_per_byte(text: bytes) -> float:
    """Returns the size of ``gzip -9``'s output in bits per byte of text.

    Example:
        >>> gzip_bits_per_byte(b"a" * 1000) < 1
        True
    """
    return len(gzip.compress(text, 9)) * 8 / len(text)


def _default_text(config: DataConfig) -> list[TextDocument]:
    from pydoc_data import topics

    documents = [
        TextDocument(_RULED_LINE.sub("", topic).encode())
        for _, topic in sorted(topics.topics.items())
    ]
    if config.stdlib:
        folder = pathlib.Path(sysconfig.get_path("stdlib"))
        files = map(str, sorted(folder.glob("*.py")))
        documents += read_documents("data.stdlib", [*files], TextFields())
    return documents
