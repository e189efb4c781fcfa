"""Reads all inputs into buckets, and goes on after a kill where it stopped.

A journal says how far the inputs were read and how long the buckets were then.
What a killed process wrote after that is cut off and written again.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from experiments.corpora.shards import bucket_paths, write_atomically
from experiments.corpora.tokenizing import (
    Choices,
    TokenizedBatch,
    map_in_order,
    tokenize_batch,
)
from nl_jax.data.documents import (
    RawBatch,
    TextFields,
    is_text,
    read_batches,
)
from nl_jax.data.prepared import UNFINISHED
from nl_jax.data.text_files import read_blocks
from nl_jax.errors import InputError

JOURNAL = "journal.json"
SAVE_SECONDS = 2.0
"""Time between two entries of the journal, unless they take long to write."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The files to read, and how their documents are found."""

    files: Sequence[pathlib.Path]
    fields: TextFields
    document_bytes: int
    separator: bytes

    def batches(self, index: int) -> Iterator[RawBatch]:
        """Yields the batches of a file, the same ones every time."""
        return read_batches(
            "--input",
            self.files[index],
            self.fields,
            document_bytes=self.document_bytes,
            separator=self.separator,
        )

    def have_separator(self) -> bool:
        """Returns whether a text file has the separator, as most do soon.

        One that cannot be read counts too; reading it says why.
        """
        for file in self.files:
            if not is_text(file) or not file.stat().st_size:
                continue
            end = b""
            try:
                for block in read_blocks(file, 1 << 20):
                    if self.separator in end + block:
                        return True
                    end = (end + block)[-len(self.separator) :]
            except InputError:
                return True
        return False


@dataclasses.dataclass
class Journal:
    """How far the inputs have been read."""

    file: int = 0
    """Number of files that have been read whole."""
    batches: int = 0
    """Number of batches of the next file that have been read."""
    read: int = 0
    """Number of documents that were read."""
    empty: int = 0
    """Number of those that have no text."""
    size: int = 0
    """Bytes of the batches that were read."""
    finished: bool = False
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Bytes of each file of the buckets."""


class _Place(NamedTuple):
    """A batch and where it is."""

    file: int
    batch: int
    raw: RawBatch


def read_inputs(
    folder: pathlib.Path,
    names: Sequence[str],
    inputs: Inputs,
    choices: Choices,
    processes: int,
    advance: Callable[[int], object],
) -> Journal:
    """Tokenizes all documents and appends each to its bucket.

    Args:
        folder: of the corpus.
        names: of the buckets, by number.
        inputs: what to read.
        choices: how to tokenize it.
        processes: number of processes that tokenize.
        advance: is called with the numbers of bytes that have been read.

    Raises:
        InputError: if a file cannot be read.
        OSError: if a bucket cannot be written.
    """
    place = folder / UNFINISHED / JOURNAL
    journal = Journal()
    if place.exists():
        journal = Journal(**json.loads(place.read_text()))
    if journal.finished:
        return journal
    with contextlib.ExitStack() as stack:
        buckets = [
            [stack.enter_context(path.open("ab")) for path in paths]
            for paths in (bucket_paths(str(folder), name) for name in names)
        ]

        def save() -> None:
            for bucket in buckets:
                for file in bucket:
                    file.flush()
                    os.fsync(file.fileno())
                    name = pathlib.Path(file.name).name
                    journal.sizes[name] = file.tell()
            write_atomically(place, dataclasses.asdict(journal))

        for bucket in buckets:
            for file in bucket:
                _cut(file, journal.sizes.get(pathlib.Path(file.name).name, 0))
        due = time.monotonic() + SAVE_SECONDS
        for at, found in map_in_order(
            functools.partial(_tokenize, choices),
            _unread(inputs, journal, advance),
            processes,
        ):
            if at.file != journal.file:
                journal.file, journal.batches = at.file, 0
            for number, bucket_of_batch in found.buckets.items():
                for file, data in zip(
                    buckets[number], bucket_of_batch, strict=True
                ):
                    file.write(data)
            journal.read += found.read
            journal.empty += found.empty
            journal.size += at.raw.size
            journal.batches = at.batch + 1
            advance(at.raw.size)
            now = time.monotonic()
            if now >= due:
                save()
                took = time.monotonic() - now
                due = now + took + max(SAVE_SECONDS, 9 * took)
        journal.finished = True
        save()
    return journal


def _tokenize(choices: Choices, place: _Place) -> TokenizedBatch:
    return tokenize_batch(choices, place.raw)


def _unread(inputs, journal, advance) -> Iterator[_Place]:
    """Yields the batches that the journal does not have."""
    first, skipped = journal.file, journal.batches
    for index in range(first, len(inputs.files)):
        for number, raw in enumerate(inputs.batches(index)):
            if index == first and number < skipped:
                advance(raw.size)
            else:
                yield _Place(index, number, raw)


def _cut(file, size: int) -> None:
    """Cuts off what was written after the last entry of the journal."""
    found = os.fstat(file.fileno()).st_size
    if found < size:
        raise InputError(
            f"{file.name} has {found} bytes; the journal beside it says "
            f"{size}: remove the folder, and prepare the text again"
        )
    file.truncate(size)
    file.seek(size)
