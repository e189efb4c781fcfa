"""Tokenized text of a run, and its batches for training."""

from typing import Any, NamedTuple

import numpy as np

from nl_jax.data.corpora import Corpora, open_corpora
from nl_jax.data.iterator import PrefetchedBatches, make_iterator
from nl_jax.data.sources import (
    Document,
    DocumentsInMemory,
    DocumentSource,
)
from nl_jax.data.text import DataConfig
from nl_jax.data.tokenizers import Tokenizer
from nl_jax.data.windows import JoinedDocuments
from nl_jax.errors import InputError


class Dataset(NamedTuple):
    """Tokenized text of a run."""

    corpus: Corpora
    tokenizer: Tokenizer
    train: list[DocumentSource]
    """Training documents of each corpus."""
    separator: np.ndarray
    """What joins the documents in windows: a newline's tokens, int32."""
    held_out: Document
    """Held-out documents, joined."""

    def scored_text(self) -> bytes:
        """Returns the held-out text without its first token and prompts."""
        tokens, weights = self.held_out
        counts = slice(None) if weights is None else weights[1:] != 0
        return self.tokenizer.decode(tokens[1:][counts])


def prepare(
    config: DataConfig, seq_len: int, tokenizer: Tokenizer | None = None
) -> Dataset:
    """Opens or reads the text of a run, and tokenizes what is not prepared.

    Args:
        config: which text to read, and which tokenizer to use.
        seq_len: tokens per sequence; the text needs more than twice as many.
        tokenizer: BPE of a checkpoint, instead of training one.

    Raises:
        InputError: as for :func:`open_corpora`, or if the text is too short.
    """
    corpora = open_corpora(config, tokenizer, separate=bool(config.weights))
    tokenizer, train = corpora.tokenizer, corpora.train
    count = sum(int(c.lengths.sum(dtype=np.int64)) for c in train)
    if count <= 2 * seq_len:
        raise InputError(
            f"the training text has {count} tokens; seq_len={seq_len} "
            f"needs more than {2 * seq_len}: give more text in data.paths or "
            "a smaller seq_len"
        )
    separator = tokenizer.encode("\n")
    held_out = DocumentsInMemory(
        c[i] for c in corpora.held_out for i in range(len(c))
    )
    joined = JoinedDocuments(held_out, separator)[0]
    dataset = Dataset(corpora, tokenizer, train, separator, joined)
    for name, sources in (("training", train), ("held-out", [held_out])):
        for source in sources:
            if not _has_targets(source):
                raise InputError(
                    f"data.prompt_field: the {name} text is prompts only; give "
                    "documents with answers"
                )
    if not dataset.scored_text():
        raise InputError(
            "the held-out text has one token, before which nothing comes; "
            "hold out more"
        )
    return dataset


def _has_targets(source: DocumentSource) -> bool:
    """Returns whether a document has a target, reading no more than it must."""
    weights = (source[i].weights for i in range(len(source)))
    return not source.weighted or any(w is None or w.any() for w in weights)


def train_batches(
    dataset: Dataset, config: DataConfig, **options: Any
) -> PrefetchedBatches:
    """Returns the batches of a run from :func:`make_iterator`.

    Args:
        dataset: text from :func:`prepare`.
        config: says how to read it.
        **options: ``seq_len``, ``batch_size``, ``seed``, ``rows`` and ``put``.
    """
    return make_iterator(
        dataset.train,
        reading=config.reading,
        weights=config.weights,
        carry_windows=config.carry_windows,
        packed_share=config.packed_share,
        separator=dataset.separator,
        **options,
    )
