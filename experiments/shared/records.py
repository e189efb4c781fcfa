"""Files that scripts write: finished runs as lines of JSON, and results.

A repeated command continues from the finished runs. The results are a Markdown
table, a record and a plot.
"""

import html
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nl_jax.training import (
    git_revision,
    open_folder,
    versions,
    write_figure,
    write_json,
)

Row = dict[str, Any]
_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; font-family: sans-serif; }}
svg {{ max-width: 100%; height: auto; }}
td, th {{ padding: 0.2em 0.8em; text-align: left; }}
@media (prefers-color-scheme: dark) {{
  svg {{ filter: invert(1) hue-rotate(180deg); }}
}}
</style>
{svg}
<table>
{body}</table>
"""


class Records:
    """The finished runs of one command, in a file that many commands share.

    Only rows that were made with the same settings count; other rows stay in
    the file. Each line is on disk before :meth:`add` returns. A line that was
    cut off by a kill is ignored, and its run is repeated.

    Args:
        path: the file; neither it nor its folder has to exist.
        settings: values that all rows of this command share and that change
            results, such as steps and sizes.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "runs.jsonl")
        >>> Records(path, {"steps": 5}).add({"seed": 0, "loss": 0.5})
        {'seed': 0, 'loss': 0.5}
        >>> Records(path, {"steps": 5}).find(seed=0)
        {'seed': 0, 'loss': 0.5}
        >>> Records(path, {"steps": 6}).rows
        []
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any]):
        self._path = pathlib.Path(path)
        self._settings = _as_read(settings)
        self.rows: list[Row] = []
        """Runs with these settings, in the order in which they finished."""
        text = self._path.read_text() if self._path.exists() else ""
        self._cut_off = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            found = _parsed(line)
            if found.get("settings") == self._settings:
                self.rows.append(found["row"])

    def find(self, **key: Any) -> Row | None:
        """Returns the first row with these values, or ``None``."""
        key = _as_read(key)
        for row in self.rows:
            if all(name in row and row[name] == key[name] for name in key):
                return row
        return None

    def add(self, row: Mapping[str, Any]) -> Row:
        """Appends a run, together with versions and the git revision."""
        line = {"row": row, "settings": self._settings, **provenance()}
        text = json.dumps(line) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write("\n" + text if self._cut_off else text)
        self._cut_off = False
        self.rows.append(json.loads(text)["row"])
        return self.rows[-1]


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


def write_page(
    path: pathlib.Path,
    figure: Any,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    """Writes a figure and a table as one HTML page, for light and dark screens.

    Args:
        path: of the page.
        figure: a matplotlib figure.
        head: heads of the table's columns.
        rows: cells of the table.
    """
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", transparent=True)
    _, tag, svg = drawing.getvalue().partition("<svg")

    def line(kind, cells):
        cells = "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in cells)
        return f"<tr>{cells}</tr>\n"

    body = line("th", head) + "".join(line("td", row) for row in rows)
    path.write_text(_PAGE.format(svg=tag + svg, body=body), encoding="utf-8")


def _as_read(value):
    """Returns a value as JSON restores it: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))


def _parsed(line):
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("row"), dict)
    return found if whole else {}
