"""Writes the shards of a corpus from buckets of tokenized documents.

A bucket is two files, of ids and of rows about the documents. Documents of
equal text are in one bucket, so each is looked through alone.
"""

import io
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.corpora.tokenizing import ROW
from nl_jax.data.array_records import SHARD, record_counts
from nl_jax.data.prepared import UNFINISHED, edges_sha256, file_sha256
from nl_jax.errors import InputError


class ShardJob(NamedTuple):
    """A shard to be written."""

    folder: str
    """Folder of the corpus."""
    name: str
    """Name of the shard and its bucket, such as ``train-00000-of-00008``."""
    id_bytes: int
    """Bytes of an id."""
    record_tokens: int
    """Most ids in a record."""


def bucket_paths(folder: str, name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the files of a bucket: ids and rows."""
    work = pathlib.Path(folder, UNFINISHED)
    return work / f"{name}.ids", work / f"{name}.rows"


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Writes a shard, unless that was done before, and removes its bucket.

    Returns:
        Its entry in the manifest, and how many documents were left out.
    """
    folder = pathlib.Path(job.folder)
    done = folder / UNFINISHED / f"{job.name}.json"
    ids, rows_path = bucket_paths(job.folder, job.name)
    if not done.exists():
        rows = np.fromfile(rows_path, ROW)
        keep = first_of_each(rows["digest"])
        kept = rows[keep]
        records = folder / f"{job.name}{SHARD}"
        index = folder / f"{job.name}.index.npy"
        count = int(record_counts(kept["length"], job.record_tokens).sum())
        _write_records(job, records, rows, keep, count)
        fresh = folder / UNFINISHED / index.name
        array = io.BytesIO()  # NumPy does not say why it cannot write a file.
        columns = [kept["length"], kept["prompt"]]
        np.save(array, np.stack(columns, 1).astype("<i4"))
        fresh.write_bytes(array.getbuffer())
        publish(fresh, index)
        shard = {
            "documents": len(kept),
            "tokens": int(kept["length"].sum(dtype=np.int64)),
            "text_bytes": int(kept["bytes"].sum()),
            "records": {**_file_entry(records), "count": count},
            "index": _file_entry(index),
        }
        duplicates = len(rows) - len(kept)
        write_atomically(done, {"shard": shard, "duplicates": duplicates})
    for path in (ids, rows_path):
        path.unlink(missing_ok=True)
    return json.loads(done.read_text())


def first_of_each(digests: np.ndarray) -> np.ndarray:
    """Returns which items are not equal to an earlier one.

    Example:
        >>> items = [b"a" * 16, b"b" * 16, b"a" * 16]
        >>> first_of_each(np.array(items, "V16")).tolist()
        [True, True, False]
    """
    halves = np.ascontiguousarray(digests).view("<u8").reshape(-1, 2).T
    order = np.lexsort(halves)  # Stable.
    ordered = halves[:, order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(0)
    keep = np.zeros(len(order), bool)
    keep[order[new]] = True
    return keep


def _write_records(job, path, rows, keep, count) -> None:
    # Grain reads records at random if each is a group.
    from array_record.python import array_record_module as array_record

    fresh = pathlib.Path(job.folder, UNFINISHED, path.name)
    step = job.record_tokens * job.id_bytes
    try:
        writer = array_record.ArrayRecordWriter(
            str(fresh), "group_size:1,uncompressed"
        )
        with bucket_paths(job.folder, job.name)[0].open("rb") as file:
            for length, kept in zip(rows["length"].tolist(), keep, strict=True):
                size = length * job.id_bytes
                if not kept:
                    file.seek(size, os.SEEK_CUR)
                    continue
                data = file.read(size)
                for start in range(0, size, step):
                    writer.write(data[start : start + step])
        writer.close()
        reader = array_record.ArrayRecordReader(str(fresh))
        written = reader.num_records()
        reader.close()
    except RuntimeError as error:  # A full disk is one too.
        why = str(error).partition(";")[0]
        raise InputError(
            f"--output: cannot write {fresh} ({why}); make room and repeat the "
            "command, which goes on"
        ) from error
    if written != count:
        raise InputError(
            f"cannot write {fresh} ({written} of {count} records are in it)"
        )
    publish(fresh, path)


def _file_entry(path: pathlib.Path) -> dict[str, Any]:
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "edges_sha256": edges_sha256(path),
    }


def publish(fresh: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a file that is on disk its name."""
    with fresh.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(fresh, path)


def write_atomically(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is whole or not there, whatever happens."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=2) + "\n")
    publish(fresh, path)
