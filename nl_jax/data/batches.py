"""Tokens to batches: a Grain pipeline, and a held-out part in one shape.

The pipeline is a function of the text, the seed and a position; its position
is all of its state, so a checkpoint holds it and a restart reads on where the
run stopped. Rows of the global batch do not depend on the number of processes.
"""

import random
from typing import NamedTuple

import grain
import numpy as np

from nl_jax.data.text import Corpus, DataConfig, load_corpus
from nl_jax.data.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from nl_jax.errors import InputError


class Dataset(NamedTuple):
    """A corpus in tokens."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: np.ndarray
    """Tokens to train on, int32."""
    held_out: np.ndarray
    """One token of context and then the held-out tokens, int32."""


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
