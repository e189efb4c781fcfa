"""Batches of tokens for training, from a Grain pipeline.

Training sequences come in an order that depends only on the text, their length
and the seed. The whole state is the number of those that were read: saved in a
checkpoint, it lets a run resume where it stopped, with batches of another size
and on another number of processes too.
"""

import logging
import random
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from nl_jax.checks import check_count
from nl_jax.data.text import Corpus, DataConfig, load_corpus
from nl_jax.data.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from nl_jax.errors import InputError

_LOG = logging.getLogger(__name__)


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
        tokenizer: BPE of a checkpoint, instead of training one.

    Raises:
        InputError: as for :func:`load_corpus`, or if the text is too short.
    """
    corpus = load_corpus(config)
    if config.tokenizer in ("auto", "byte"):
        tokenizer = ByteTokenizer()
    elif config.tokenizer != "bpe":
        tokenizer = BPETokenizer.from_file(config.tokenizer)
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


class SequenceIterator:
    """Endless iterator of batches of sequences, from :func:`make_iterator`.

    Args:
        sequences: all sequences of all epochs, in order.
        order: name of that order.
        batch_size: number of sequences over all processes.
        rows: those rows of each batch that this process reads.
    """

    def __init__(
        self,
        sequences: grain.MapDataset,
        order: str,
        batch_size: int,
        rows: range,
    ):
        self._sequences, self._order = sequences, order
        self._batch_size, self._rows = batch_size, rows
        self._position = 0

    def __iter__(self) -> "SequenceIterator":
        return self

    def __next__(self) -> np.ndarray:
        rows = [self._sequences[self._position + row] for row in self._rows]
        self._position += self._batch_size
        return np.stack(rows)

    def get_state(self) -> dict[str, Any]:
        """Returns the position, for :meth:`set_state`, as JSON values."""
        return {"sequences": self._position, "order": self._order}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on after the sequences that were read before.

        With another text, sequence length or seed, it begins with the first.

        Raises:
            InputError: if the state is that of another version.
        """
        if state.keys() != self.get_state().keys():
            raise InputError(
                "the checkpoint's position in the text is that of another "
                "version; begin in another --workdir"
            )
        same = state["order"] == self._order
        if not same:
            _LOG.warning(
                "the text, seq_len or seed is another: reading begins anew"
            )
        self._position = state["sequences"] if same else 0


def make_iterator(
    tokens: np.ndarray,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> SequenceIterator:
    """Returns an endless iterator of batches ``[B / processes, seq_len + 1]``.

    Each epoch reads every sequence once, in an order of its own. From the
    second on, boundaries between sequences are shifted at random. Each process
    reads its rows of the global batch, which are the same for any number of
    processes. The iterator's ``get_state`` and ``set_state`` save and restore
    its position.

    Args:
        tokens: training tokens, int32 ``[n]``.
        seq_len: number of targets per sequence.
        batch_size: number of sequences over all processes.
        seed: seed of the order and the shifts, at least 0.
        process_index: index of this process.
        process_count: number of processes; divides ``batch_size``.

    Raises:
        InputError: if ``process_count`` does not divide ``batch_size``, the
            seed is negative, or there are too few tokens.

    Example:
        >>> tokens = np.arange(9, dtype=np.int32)
        >>> batches = make_iterator(tokens, seq_len=2, batch_size=3, seed=0)
        >>> sorted(next(batches).tolist())
        [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
        >>> batches.get_state()["sequences"]
        3
    """
    if batch_size % process_count:
        raise InputError(
            f"batch_size={batch_size} must be a multiple of the "
            f"{process_count} processes"
        )
    check_count("seed", seed, 0, 2**32)
    # One sequence less than would fit leaves room for the shift.
    count = (len(tokens) - 1) // seq_len - 1
    if count < 1:
        raise InputError(
            f"{len(tokens)} tokens are too few for seq_len={seq_len}, which "
            f"needs more than {2 * seq_len}"
        )

    def read(index: int, start: int) -> np.ndarray:
        epoch = index // count
        shift = random.Random(f"{seed}/{epoch}").randrange(seq_len)
        start = start + (shift if epoch else 0)
        return tokens[start : start + seq_len + 1]

    sequences = (
        grain.MapDataset.source(_Windows(count, seq_len))
        .seed(seed)
        .shuffle()
        .repeat()
        .map_with_index(read)
    )
    text = zlib.crc32(np.ascontiguousarray(tokens).data)
    share = batch_size // process_count
    rows = range(process_index * share, (process_index + 1) * share)
    order = f"{text:08x}/{seq_len}/{seed}"
    return SequenceIterator(sequences, order, batch_size, rows)
