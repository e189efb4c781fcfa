"""Files that scripts write: a JSON file for each cell, and results.

A repeated command continues from the finished cells. The results are a Markdown
table, a record and a plot; ``python -m experiments.report`` reads the cells.
"""

import datetime
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nl_jax.errors import InputError
from nl_jax.training import (
    git_revision,
    open_folder,
    versions,
    write_figure,
    write_json,
)

Row = dict[str, Any]
_NOTHING = type(None)
_FIELDS = {
    "cell": dict,
    "settings": dict,
    "result": dict,
    "experiment": str,
    "error": (str, _NOTHING),
    "finished": str,
    "seconds": (int, float, _NOTHING),
    "processor_seconds": (int, float, _NOTHING),
}
"""Of a cell's file, with the types of their values."""


class Records:
    """The cells of one experiment, each a JSON file in a folder.

    A file holds the cell, the settings, what was measured or why it failed,
    the time it took by the clock and by the processor, versions and the git
    revision. It is written whole or not at all, so a kill costs only the cell
    that was running, and several commands can share the folder. Only cells
    with the same settings count; those of other settings stay.

    Args:
        folder: need not exist.
        settings: values that all cells of this command share and that change
            results, such as steps and sizes.

    Example:
        >>> import tempfile
        >>> folder = os.path.join(tempfile.mkdtemp(), "loss")
        >>> Records(folder, {"steps": 5}).add({"loss": 0.5}, {"seed": 0})
        {'seed': 0, 'loss': 0.5}
        >>> Records(folder, {"steps": 5}).find(seed=0)
        {'seed': 0, 'loss': 0.5}
        >>> Records(folder, {"steps": 6}).rows
        []
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any]):
        self.folder = pathlib.Path(folder)
        """Of the cells; its name is that of the experiment."""
        self._settings = _as_read(settings)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{folder} is a file; results go into a folder")
        self.rows: list[Row] = []
        """Cells with these settings and their results, as they finished."""
        for found in read_cells(self.folder):
            if found["settings"] == self._settings and not found["error"]:
                self.rows.append(row_of(found))

    def find(self, **key: Any) -> Row | None:
        """Returns the first row with these values, or ``None``."""
        key = _as_read(key)
        for row in self.rows:
            if all(name in row and row[name] == key[name] for name in key):
                return row
        return None

    def add(
        self, result: Mapping[str, Any], cell: Mapping[str, Any], **times: float
    ) -> Row:
        """Stores what was measured in a cell, and returns the row.

        Args:
            result: of the cell.
            cell: the keys by which the row is found.
            **times: ``seconds`` and ``processor_seconds``.
        """
        self.rows.append(row_of(self._store(cell, result, None, times)))
        return self.rows[-1]

    def add_failure(
        self, error: str, cell: Mapping[str, Any], **times: Any
    ) -> None:
        """Stores why a cell has no result; it is no row, and is tried again."""
        self._store(cell, {}, error, times)

    def _store(self, cell, result, error, times):
        key = _as_read({"cell": cell, "settings": self._settings})
        found = _as_read(
            {
                "experiment": self.folder.stem,
                **key,
                "result": result,
                "error": error,
                "seconds": None,
                "processor_seconds": None,
                **times,
                "finished": datetime.datetime.now(datetime.UTC).isoformat(),
                **provenance(),
            }
        )
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode())
        words = "-".join(str(value) for value in cell.values())
        words = re.sub(r"[^\w.+]+", "-", words)[:60].strip("-.")
        path = self.folder / f"{words}-{digest.hexdigest()[:10]}.json"
        lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()]
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        fresh.replace(path)
        return found


def read_cells(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns all cells in a folder and those in it, as they finished.

    Other files, and files that are damaged, are left out.
    """
    found = [_parsed(path) for path in pathlib.Path(folder).rglob("*.json")]
    return sorted(filter(None, found), key=lambda cell: cell["finished"])


def distinct(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns each cell once, as folders may overlap or hold copies.

    Of several with the same settings the latest counts, or the latest that did
    not fail.

    Example:
        >>> cell = {"experiment": "loss", "cell": {"seed": 0}, "settings": {}}
        >>> old, new = ({**cell, "finished": day} for day in "12")
        >>> found = distinct([new | {"error": None}, old | {"error": None}])
        >>> [each["finished"] for each in found]
        ['2']
    """
    found = {}
    for each in sorted(cells, key=lambda c: (not c["error"], c["finished"])):
        key = [each[name] for name in ("experiment", "cell", "settings")]
        found[json.dumps(key, sort_keys=True)] = each
    return sorted(found.values(), key=lambda cell: cell["finished"])


def row_of(stored: Mapping[str, Any]) -> Row:
    """Returns a stored cell as a row: its keys, times and results."""
    times = ("seconds", "processor_seconds")
    known = {k: stored[k] for k in times if stored[k] is not None}
    return {**stored["cell"], **known, **stored["result"]}


def provenance() -> dict[str, Any]:
    """Returns versions and git revision, which can affect results."""
    return {"versions": versions(), "git_revision": git_revision()}


def write(
    out: str | os.PathLike,
    name: str,
    lines: Sequence[str],
    record: Mapping[str, Any],
    figure: Any = None,
) -> None:
    """Prints lines, and writes them, a record and a figure into a folder.

    Args:
        out: the folder, which is created if necessary.
        name: of the files ``.md``, ``.json`` and ``.png``.
        lines: of Markdown.
        record: for JSON; versions and git revision are added.
        figure: a matplotlib figure, or ``None``.
    """
    print("\n".join(lines), flush=True)
    folder = open_folder(out, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    write_json(folder / f"{name}.json", {**record, **provenance()})
    if figure is not None:
        figure.tight_layout()
        write_figure(folder / f"{name}.png", figure)


def _as_read(value):
    """Returns a value as JSON restores it: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))


def _parsed(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    right = all(
        name in found and isinstance(found[name], kinds)
        for name, kinds in _FIELDS.items()
    )
    return found if right else None
