"""Rows of Parquet files and of datasets that the package ``datasets`` saved.

Both packages are in the extra ``corpora``.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from nl_jax.data.text_files import optional_package
from nl_jax.errors import InputError

_ROWS = 64
"""Rows that are in memory as Python's objects at a time."""


def read_parquet(
    path: pathlib.Path, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields the fields ``names`` of each row of a Parquet file."""
    pyarrow = optional_package("pyarrow", path)
    parquet = optional_package("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            known = [n for n in names if n in file.schema_arrow.names]
            for rows in file.iter_batches(_ROWS, columns=known):
                yield from rows.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read {path} ({error})") from error


def read_dataset(
    path: pathlib.Path, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields the fields ``names`` of each row, one part after the other."""
    datasets = optional_package("datasets", path)
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read {path} ({error})") from error
    if isinstance(found, datasets.DatasetDict):
        parts = [found[name] for name in sorted(found)]
    else:
        parts = [found]
    for part in parts:
        known = [name for name in names if name in part.column_names]
        part = part.select_columns(known).with_format("arrow")
        for rows in part.iter(_ROWS):
            yield from rows.to_pylist()
