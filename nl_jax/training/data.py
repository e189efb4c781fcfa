"""Text to batches: documents, a held-out part, and a Grain pipeline.

The pipeline is a function of the text, the seed and a position; its position
is all of its state, so a checkpoint holds it and a restart reads on where the
run stopped. Rows of the global batch do not depend on the number of processes.
"""

import gzip
import hashlib
import json
import pathlib
import random
import sysconfig
from typing import NamedTuple

import grain
import numpy as np

from nl_jax.training.config import DataConfig
from nl_jax.training.errors import InputError
from nl_jax.training.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer

__all__ = [
    "Corpus",
    "Dataset",
    "gzip_bits_per_byte",
    "held_out_batches",
    "load_corpus",
    "make_iterator",
    "prepare",
]


class Corpus(NamedTuple):
    """Text in two parts."""

    train: bytes
    """What is trained on."""
    held_out: bytes
    """What is only evaluated."""
    sha256: str
    """Hash of both, in this order; the default text differs by Python."""


class Dataset(NamedTuple):
    """A corpus in tokens."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: np.ndarray
    """Tokens to train on, int32."""
    held_out: np.ndarray
    """One token of context and then the held-out tokens, int32."""


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


def prepare(
    config: DataConfig, seq_len: int, tokenizer: Tokenizer | None = None
) -> Dataset:
    """Reads the text and turns it into tokens.

    Args:
        config: which text and which tokens.
        seq_len: tokens per sequence; the text must have more.
        tokenizer: of a checkpoint; ``None`` makes or trains one.

    Raises:
        InputError: as :func:`load_corpus`, and for too little text.
    """
    corpus = load_corpus(config)
    if tokenizer is None and config.tokenizer == "byte":
        tokenizer = ByteTokenizer()
    elif tokenizer is None:
        tokenizer = BPETokenizer.train(corpus.train, config.bpe_vocab_size)
    train = tokenizer.encode(corpus.train)
    if len(train) <= 2 * seq_len:
        raise InputError(
            f"the training text has {len(train)} tokens; seq_len={seq_len} "
            f"needs more than {2 * seq_len}: give more text in data.paths or "
            "a smaller seq_len"
        )
    held_out = tokenizer.encode(corpus.held_out)
    held_out = np.concatenate([train[-1:], held_out])
    return Dataset(corpus, tokenizer, train, held_out)


class _Windows:
    """Where each sequence of an epoch starts; a Grain data source."""

    def __init__(self, count: int, seq_len: int):
        self.count, self.seq_len = count, seq_len

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index * self.seq_len


def make_iterator(
    tokens: np.ndarray,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns an endless iterator of batches ``[B / processes, seq_len + 1]``.

    Each epoch reads every sequence once, in its own order. Sequences of later
    epochs start at a shifted place, so that their cuts differ. The iterator's
    ``get_state`` and ``set_state`` move it to any position.

    Args:
        tokens: int32 ``[n]``.
        seq_len: tokens that a sequence predicts.
        batch_size: sequences over all processes.
        seed: of the order and the shifts.
        process_index: this process.
        process_count: all processes; divides ``batch_size``.

    Raises:
        InputError: if the processes cannot share the batch.
    """
    if batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} must be a multiple of the "
            f"{process_count} processes"
        )
    # One sequence less than fit, to leave room for the shift.
    count = (len(tokens) - 1) // seq_len - 1

    def read(index: int, start: int) -> np.ndarray:
        epoch = index // count
        shift = random.Random(f"{seed}/{epoch}").randrange(seq_len)
        start = start + (shift if epoch else 0)
        return tokens[start : start + seq_len + 1]

    pipeline = (
        grain.MapDataset.source(_Windows(count, seq_len))
        .seed(seed)
        .shuffle()
        .repeat()
        .map_with_index(read)[process_index::process_count]
        .batch(batch_size // process_count)
    )
    # Tokens are in memory: threads would cost more than they save.
    options = grain.ReadOptions(num_threads=0)
    return iter(pipeline.to_iter_dataset(options))


def held_out_batches(tokens: np.ndarray, *, seq_len: int, batch_size: int):
    """Cuts held-out tokens into batches of one shape.

    Yields:
        ``(tokens [B, seq_len + 1], weights [B, seq_len])``: each held-out
        token is predicted once, with weight 1; padding has weight 0.
    """
    count = len(tokens) - 1
    rows = -(-count // seq_len)
    rows = -(-rows // batch_size) * batch_size
    padded = np.zeros(rows * seq_len + 1, np.int32)
    padded[: count + 1] = tokens
    weights = (np.arange(rows * seq_len) < count).astype(np.float32)
    weights = weights.reshape(rows, seq_len)
    windows = np.lib.stride_tricks.sliding_window_view(padded, seq_len + 1)
    windows = windows[::seq_len]
    for row in range(0, rows, batch_size):
        chosen = slice(row, row + batch_size)
        yield windows[chosen], weights[chosen]


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
