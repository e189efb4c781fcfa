"""Sources of tokenized documents with random access.

A source is a sequence of :class:`Document` whose lengths are known without
reading it. Batches are planned from the lengths alone.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from nl_jax.data.documents import TextDocument
from nl_jax.data.tokenizers import Tokenizer


class Document(NamedTuple):
    """A tokenized document."""

    tokens: np.ndarray
    """Ids, int32 ``[length]``."""
    weights: np.ndarray | None = None
    """Weight of each token as a target, float32 ``[length]``: 0 in a prompt.
    ``None`` for 1 everywhere."""


class Span(NamedTuple):
    """Which tokens of which document of a source."""

    document: int
    """Index of the document."""
    start: int
    """Position of the first token."""
    stop: int
    """Position after the last one."""


class DocumentSource(Protocol):
    """A sequence of tokenized documents, none of which is empty."""

    lengths: np.ndarray
    """Tokens of each document, int32 ``[documents]``."""
    weighted: bool
    """Whether documents have weights."""

    def __len__(self) -> int:
        """Returns the number of documents."""

    def __getitem__(self, index: int) -> Document:
        """Returns a document, which may be read from a file."""

    def read(self, slices: Iterable[Span]) -> list[Document]:
        """Returns parts of documents.

        Of long documents in files, only these are read. Many are read much
        faster at once than one after another.
        """


class DocumentsInMemory:
    """Source of documents that are held in memory; empty ones are left out.

    Example:
        >>> source = DocumentsInMemory([Document(np.arange(3, dtype=np.int32))])
        >>> len(source), source.lengths.tolist(), source[0].tokens.tolist()
        (1, [3], [0, 1, 2])
    """

    def __init__(self, documents: Iterable[Document]):
        self._documents: Sequence[Document] = [
            document for document in documents if len(document.tokens)
        ]
        lengths = [len(document.tokens) for document in self._documents]
        self.lengths = np.asarray(lengths, np.int32)
        self.weighted = any(d.weights is not None for d in self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return self._documents[index]

    def read(self, slices: Iterable[Span]) -> list[Document]:
        """Returns parts of documents."""
        out = []
        for index, start, stop in slices:
            tokens, weights = self._documents[index]
            if weights is not None:
                weights = weights[start:stop]
            out.append(Document(tokens[start:stop], weights))
        return out


def tokenize(document: TextDocument, tokenizer: Tokenizer) -> Document:
    """Tokenizes a document; prompt and answer share no token.

    Example:
        >>> from nl_jax.data import ByteTokenizer
        >>> tokens, weights = tokenize(TextDocument(b"abc", 2), ByteTokenizer())
        >>> tokens.tolist(), weights.tolist()
        ([97, 98, 99], [0.0, 0.0, 1.0])
    """
    text, prompt_bytes = document
    if not prompt_bytes:
        return Document(tokenizer.encode(text))
    prompt = tokenizer.encode(text[:prompt_bytes])
    answer = tokenizer.encode(text[prompt_bytes:])
    tokens = np.concatenate([prompt, answer])
    return masked(tokens, len(prompt))


def masked(tokens: np.ndarray, prompt_tokens: int) -> Document:
    """Returns a document whose first tokens are a prompt, and no targets."""
    weights = np.ones(len(tokens), np.float32)
    weights[:prompt_tokens] = 0
    return Document(tokens, weights)
