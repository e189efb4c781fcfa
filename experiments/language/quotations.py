"""Tells how much of the held-out text is a quotation of the training text.

``python -m experiments.quotations --config.data.paths=my.txt`` prints the share
of windows of 40 bytes in the held-out text that occur anywhere in the training
text, and the longest quotations. A model is rewarded for learning those by
heart; ``--config.data.unique_paragraphs=True`` leaves most of them out. The
training text is held in memory, that of prepared corpora too.
"""

from collections.abc import Iterable

import numpy as np

from experiments.language import train_lm
from experiments.shared import flags
from nl_jax import training
from nl_jax.data import (
    DocumentSource,
    Tokenizer,
    is_prepared,
    load_corpus,
    open_corpora,
    quoted,
)
from nl_jax.errors import InputError

FLAGS = {
    "config": train_lm.FLAGS["config"],
    "length": flags.integer(40, "Bytes in a window."),
    "show": flags.integer(5, "Number of quotations to print.", 0),
}


def main(values: flags.FlagValues) -> None:
    """Counts and prints."""
    data, length = training.freeze(values.config).data, values.length
    if any(map(is_prepared, data.paths)):
        corpora = open_corpora(data)
        train, held_out = (
            _joined(part, corpora.tokenizer)
            for part in (corpora.train, corpora.held_out)
        )
    else:
        corpus = load_corpus(data)
        train, held_out = corpus.train, corpus.held_out
    found = quoted(train, held_out, length)
    if not found.size:
        raise InputError(
            f"the held-out text has {len(held_out)} bytes, fewer than "
            f"--length={length}; give more text"
        )
    print(
        f"{found.mean():.1%} of the held-out windows of {length} bytes occur "
        f"in the training text ({len(held_out):,} and {len(train):,} bytes)"
    )
    # Windows that follow one another are one quotation.
    edges = np.flatnonzero(np.diff(found, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    longest = np.argsort(starts - ends, kind="stable")[: values.show]
    for start, end in zip(starts[longest], ends[longest], strict=True):
        text = held_out[start : end + length - 1]
        print(f"{len(text):,} bytes: {_shortened(text)}")


def _joined(sources: Iterable[DocumentSource], tokenizer: Tokenizer) -> bytes:
    """Returns the text of tokenized documents, joined with newlines."""
    return b"\n".join(
        tokenizer.decode(source[i].tokens)
        for source in sources
        for i in range(len(source))
    )


def _shortened(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", "replace").split())
    return words if len(words) <= 60 else f"{words[:60]} …"
