"""Batches of tokens for training, from a Grain pipeline, and for evaluation.

Training batches depend only on the text, the seed and a position, which is the
pipeline's whole state: saved in a checkpoint, it lets a run resume where it
stopped. Rows of the global batch do not depend on the number of processes.
"""

import random
from typing import NamedTuple

import grain
import numpy as np

from nl_jax.data.text import Corpus, DataConfig, load_corpus
from nl_jax.data.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from nl_jax.errors import InputError


class Dataset(NamedTuple):
    """A tokenized corpus."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: np.ndarray
    """Training tokens, int32."""
    held_out: np.ndarray
    """Held-out tokens, int32, after one training token as their context."""


def prepare(
    config: DataConfig, seq_len: int, tokenizer: Tokenizer | None = None
) -> Dataset:
    """Reads and tokenizes the text.

    Args:
        config: which text to read, and which tokenizer to use.
        seq_len: tokens per sequence; the text needs more than twice as many.
        tokenizer: tokenizer of a checkpoint; ``None`` to make or train one.

    Raises:
        InputError: as for :func:`load_corpus`, or if the text is too short.
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
    """Grain data source of the start of each sequence of an epoch."""

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

    Each epoch reads every sequence once, in an order of its own. From the
    second on, boundaries between sequences are shifted at random. The
    iterator's ``get_state`` and ``set_state`` save and restore its position.

    Args:
        tokens: training tokens, int32 ``[n]``.
        seq_len: number of targets per sequence.
        batch_size: number of sequences over all processes.
        seed: seed of the order and the shifts.
        process_index: index of this process.
        process_count: number of processes; divides ``batch_size``.

    Raises:
        InputError: if ``process_count`` does not divide ``batch_size``.
    """
    if batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} must be a multiple of the "
            f"{process_count} processes"
        )
    # One sequence less than would fit leaves room for the shift.
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
    # The tokens are in memory: threads would cost more than they save.
    options = grain.ReadOptions(num_threads=0)
    return iter(pipeline.to_iter_dataset(options))


def held_out_batches(tokens: np.ndarray, *, seq_len: int, batch_size: int):
    """Cuts held-out tokens into batches of equal shape.

    Yields:
        ``(tokens [B, seq_len + 1], weights [B, seq_len])``: each held-out
        token is a target once, with weight 1; padding has weight 0.
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
