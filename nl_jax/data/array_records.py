"""Documents in ArrayRecord files, which are read when asked for."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from nl_jax.data.sources import Document, Span, masked
from nl_jax.errors import InputError

MANIFEST = "manifest.json"
SHARD = ".array_record"
"""Ending of the names of shards."""


def id_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest type that holds the ids.

    Example:
        >>> id_dtype(256).str, id_dtype(4096).str
        ('|u1', '<u2')
    """
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


def record_counts(lengths: np.ndarray, record_tokens: int) -> np.ndarray:
    """Returns the number of records of each document."""
    return -(-lengths.astype(np.int64) // record_tokens)


class _WholeFile(NamedTuple):
    """An ArrayRecord file as Grain knows it without opening it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class PreparedDocuments:
    """Source of one part of a prepared corpus; tokens are read when asked for.

    Args:
        folder: of the corpus.
        manifest: of the corpus, whose files have been checked.
        part: ``"train"`` or ``"held_out"``.
        field: name of the setting with the path, for error messages.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        manifest: Any,
        part: str,
        field: str = "data.paths",
    ):
        self._field = field
        self._dtype = id_dtype(manifest["tokenizer"]["vocab_size"])
        self._record_tokens = manifest["record_tokens"]
        shards = manifest["parts"][part]["shards"]
        index = [np.load(folder / s["index"]["file"]) for s in shards]
        for shard, rows in zip(shards, index, strict=True):
            self._check_counts(
                f"{folder / MANIFEST}, parts.{part}", shard, rows
            )
        self.lengths = np.concatenate([found[:, 0] for found in index])
        self.weighted = manifest["prompts"]
        self._prompts = None
        if self.weighted:
            self._prompts = np.concatenate([found[:, 1] for found in index])
        counts = record_counts(self.lengths, self._record_tokens)
        self._first = np.cumsum(counts) - counts
        self._files = []
        for shard in shards:
            path = str(folder / shard["records"]["file"])
            count = shard["records"]["count"]
            self._files.append(_WholeFile(path, 0, count, count))
        self._records = grain.sources.ArrayRecordDataSource(self._files)

    def _check_counts(self, place: str, shard: Any, rows: np.ndarray) -> None:
        counts = record_counts(rows[:, 0], self._record_tokens)
        records = shard["records"]
        for name, listed, found in (
            ("documents", shard["documents"], len(rows)),
            ("tokens", shard["tokens"], rows[:, 0].sum(dtype=np.int64)),
            ("records.count", records["count"], counts.sum()),
        ):
            if listed != found:
                raise InputError(
                    f"{self._field}: {place} has {name}={listed!r} of "
                    f"{records['file']}, but {shard['index']['file']} has "
                    f"{found}; copy or prepare the corpus again"
                )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        return self.read([Span(index, 0, int(self.lengths[index]))])[0]

    def read(self, slices: Iterable[Span]) -> list[Document]:
        """Returns parts of documents.

        Raises:
            InputError: if a shard is damaged.
        """
        slices, size = list(slices), self._record_tokens
        spans = []
        for index, start, stop in slices:
            first = int(self._first[index])
            spans.append(range(first + start // size, first - (-stop // size)))
        keys = list(dict.fromkeys(key for span in spans for key in span))
        found = dict(zip(keys, self._fetch(keys), strict=True))
        out = []
        for (index, start, stop), span in zip(slices, spans, strict=True):
            parts = [np.frombuffer(found[key], self._dtype) for key in span]
            at = start % size
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            tokens = whole[at : at + stop - start].astype(np.int32)
            if self._prompts is None:
                out.append(Document(tokens))
            else:
                prompt = int(self._prompts[index]) - start
                out.append(masked(tokens, max(prompt, 0)))
        return out

    def _fetch(self, keys: list[int]) -> Sequence[bytes]:
        """Reads records; an error names the file of one that is damaged."""
        key = 0
        try:
            try:
                return self._records.__getitems__(keys)
            except (RuntimeError, ValueError, OSError):
                for key in keys:
                    self._records[key]
                raise
        except (RuntimeError, ValueError, OSError) as error:
            ends = np.cumsum([file.take for file in self._files])
            name = self._files[int(np.searchsorted(ends, key, "right"))][0]
            raise InputError(
                f"{self._field}: {name} is damaged, or was changed since "
                f"it was opened ({error})"
            ) from error
