"""Tokenizes batches of documents, in parallel processes."""

import collections
import concurrent.futures
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

import numpy as np

from nl_jax.data import BPETokenizer, ByteTokenizer, Tokenizer, tokenize
from nl_jax.data.array_records import id_dtype
from nl_jax.data.documents import (
    RawBatch,
    TextFields,
    is_held_out,
    parse,
    text_digest,
)
from nl_jax.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

ROW = np.dtype(
    [
        ("digest", "V16"),
        ("length", "<u4"),
        ("prompt", "<u4"),
        ("bytes", "<u8"),
    ]
)
"""What is known of a document: digest of the text, numbers of its tokens, of
those of a prompt, and of its bytes."""


class Choices(NamedTuple):
    """What decides how documents become tokens, and where they go."""

    tokenizer: str
    """Path of a ``tokenizer.json``, or ``""`` for bytes."""
    fields: TextFields
    held_out: float
    """Share of the documents that are held out."""
    shards: int
    """Number of shards of the training part."""


class Bucket(NamedTuple):
    """Documents that go to one shard, in the order in which they were read."""

    ids: bytes
    rows: bytes
    """Rows of type ``ROW``."""


class TokenizedBatch(NamedTuple):
    """The documents of a batch."""

    buckets: dict[int, Bucket]
    """By number of the shard; the last one is held out."""
    read: int
    """Number of documents that were read."""
    empty: int
    """Number of those that have no text."""


def bucket_of(digest: bytes, choices: Choices) -> int:
    """Returns the shard of a document, which its text alone decides.

    Example:
        >>> choices = Choices("", TextFields(), held_out=0.1, shards=4)
        >>> first, last = bytes(15) + b"7", b"x" + bytes(14) + b"7"
        >>> bucket_of(first, choices), bucket_of(last, choices)
        (4, 3)
    """
    if is_held_out(digest, choices.held_out):
        return choices.shards
    return int.from_bytes(digest[8:], "big") % choices.shards


def tokenize_batch(choices: Choices, batch: RawBatch) -> TokenizedBatch:
    """Tokenizes the documents of a batch.

    Raises:
        InputError: if a document cannot be read or tokenized.
    """
    tokenizer = load_tokenizer(choices.tokenizer)
    dtype = id_dtype(tokenizer.vocab_size)
    found: dict[int, tuple[list[bytes], list[tuple]]] = {}
    read = empty = 0
    for document in parse(batch, choices.fields):
        read += 1
        if not document.text.strip():
            empty += 1
            continue
        try:
            tokens, weights = tokenize(document, tokenizer)
        except InputError as error:
            raise InputError(f"{batch.place}: {error}") from error
        digest = text_digest(document.text)
        prompt = 0 if weights is None else int((weights == 0).sum())
        row = (digest, len(tokens), prompt, len(document.text))
        ids, rows = found.setdefault(bucket_of(digest, choices), ([], []))
        ids.append(tokens.astype(dtype).tobytes())
        rows.append(row)
    buckets = {
        number: Bucket(b"".join(ids), np.array(rows, ROW).tobytes())
        for number, (ids, rows) in found.items()
    }
    return TokenizedBatch(buckets, read, empty)


@functools.lru_cache(1)
def load_tokenizer(path: str) -> Tokenizer:
    """Returns the tokenizer of a file, or that of bytes."""
    return BPETokenizer.from_file(path) if path else ByteTokenizer()


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], processes: int
) -> Iterator[tuple[T, R]]:
    """Yields each item with its result, in order, computed in parallel.

    Few items are in memory at a time.

    Raises:
        InputError: if a process was killed.
    """
    if processes == 1:
        for item in items:
            yield item, function(item)
        return
    context = multiprocessing.get_context("forkserver")
    # Processes then begin with all that they import.
    context.set_forkserver_preload([__name__, "experiments.shared.cli"])
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, context, initializer=_end_with_parent
    )
    pending: collections.deque = collections.deque()
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > 2 * processes:
                item, future = pending.popleft()
                yield item, future.result()
        while pending:
            item, future = pending.popleft()
            yield item, future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a process that tokenizes was killed, perhaps for want of memory; "
            "repeat the command, which goes on, with fewer --processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch():
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
