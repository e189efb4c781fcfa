"""Text that occurs more than once: left out, or counted across a split."""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from nl_jax.data.documents import TextDocument, text_digest

LENGTH = 40
"""Bytes in a row that count as a quotation."""
_BLANK_LINES = re.compile(rb"(\n\s*\n)")


def without_repeats(
    documents: Iterable[TextDocument],
    seen: set[bytes],
    *,
    paragraphs: bool = False,
) -> Iterator[TextDocument]:
    r"""Yields documents, without those that have occurred before.

    Args:
        documents: documents, in order.
        seen: hashes of what has occurred; those of ``documents`` are added.
        paragraphs: whether to leave out paragraphs that have occurred before,
            too. Blank lines separate paragraphs, other white space makes no
            difference, and paragraphs below 40 bytes stay, as do documents with
            a prompt.

    Example:
        >>> long = b"This sentence has more than forty bytes in it."
        >>> one, two = b"One.\n\n" + long, b"Two.\n\n  " + long + b"\n\nThree."
        >>> both = [TextDocument(one), TextDocument(two)]
        >>> [d.text for d in without_repeats(both, set(), paragraphs=True)][1]
        b'Two.\n\nThree.'
    """
    for document in documents:
        if not _new(text_digest(document.text), seen):
            continue
        if paragraphs and not document.prompt_bytes:
            parts = [*_BLANK_LINES.split(document.text), b""]
            text = b"".join(
                part + blank
                for part, blank in zip(parts[::2], parts[1::2], strict=True)
                if _stays(part, seen)
            )
            document = TextDocument(text)
        if document.text.strip():
            yield document


def _stays(paragraph: bytes, seen: set[bytes]) -> bool:
    words = b" ".join(paragraph.split())
    # A document of one paragraph has another hash than that paragraph.
    return len(words) < LENGTH or _new(text_digest(b"\0" + words), seen)


def _new(digest: bytes, seen: set[bytes]) -> bool:
    """Returns whether a hash has not occurred, and notes that it has."""
    if digest in seen:
        return False
    seen.add(digest)
    return True


def quoted(train: bytes, held_out: bytes, length: int = LENGTH) -> np.ndarray:
    """Returns which windows of held-out text occur in the training text.

    Args:
        train: training text.
        held_out: held-out text of ``n`` bytes.
        length: bytes in a window.

    Returns:
        Bool ``[max(n - length + 1, 0)]``; its mean is the share of windows that
        a model may have learned by heart.

    Example:
        >>> quoted(b"abcdef", b"xbcdy", length=3).tolist()
        [False, True, False]
    """
    windows = list(_windows(held_out, length))
    wanted = set(windows)
    found = {window for window in _windows(train, length) if window in wanted}
    return np.array([window in found for window in windows], bool)


def _windows(text: bytes, length: int) -> Iterator[bytes]:
    for start in range(len(text) - length + 1):
        yield text[start : start + length]
