"""Tokenized text for training, and batches of it for evaluation."""

from typing import NamedTuple

import numpy as np

from nl_jax.data.sources import DocumentsInMemory, DocumentSource, tokenize
from nl_jax.data.text import Corpus, DataConfig, load_corpus
from nl_jax.data.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from nl_jax.errors import InputError


class Dataset(NamedTuple):
    """A tokenized corpus."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: tuple[DocumentSource, ...]
    """Training documents of each corpus."""
    separator: np.ndarray
    """What joins the documents in windows: a newline's tokens, int32."""
    held_out: np.ndarray
    """Held-out tokens, int32, after one training token as their context."""


def prepare(
    config: DataConfig, seq_len: int, tokenizer: Tokenizer | None = None
) -> Dataset:
    """Reads and tokenizes the text.

    Args:
        config: which text to read, and which tokenizer to use.
        seq_len: tokens per sequence; the text needs more than twice as many.
        tokenizer: BPE of a checkpoint, instead of training one.

    Raises:
        InputError: as for :func:`load_corpus`, or if the text is too short.
    """
    corpus = load_corpus(config)
    if config.tokenizer == "byte":
        tokenizer = ByteTokenizer()
    elif config.tokenizer != "bpe":
        tokenizer = BPETokenizer.from_file(config.tokenizer)
    elif tokenizer is None:
        tokenizer = BPETokenizer.train(corpus.train, config.bpe_vocab_size)
    train = DocumentsInMemory(
        tokenize(document, tokenizer) for document in corpus.train_documents
    )
    count = int(train.lengths.sum())
    if count <= 2 * seq_len:
        raise InputError(
            f"the training text has {count} tokens; seq_len={seq_len} "
            f"needs more than {2 * seq_len}: give more text in data.paths or "
            "a smaller seq_len"
        )
    held_out = tokenizer.encode(corpus.held_out)
    held_out = np.concatenate([train[len(train) - 1].tokens[-1:], held_out])
    separator = tokenizer.encode("\n")
    return Dataset(corpus, tokenizer, (train,), separator, held_out)


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
