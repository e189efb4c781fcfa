"""What every script leaves in its folder: a table, a record and a plot."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nl_jax.training import git_revision, versions, write_json


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Returns the lines of a Markdown table, numbers to the right.

    Example:
        >>> table(["run", "steps"], [["hope", 3]])
        ['| run | steps |', '|---|---:|', '| hope | 3 |']
    """
    body = [[str(cell) for cell in row] for row in rows]
    rules = ["---"] + ["---:"] * (len(head) - 1)
    return [
        _line(head),
        "|" + "|".join(rules) + "|",
        *map(_line, body),
    ]


def write(
    out: str | os.PathLike,
    name: str,
    lines: Sequence[str],
    record: Mapping[str, Any],
    figure: Any = None,
) -> None:
    """Prints lines; writes them, the record and the figure into a folder.

    Args:
        out: the folder; made if it is not there.
        name: of the files ``.md``, ``.json`` and ``.png``.
        lines: of Markdown.
        record: for JSON; versions and git revision are added.
        figure: a matplotlib figure, or ``None``.
    """
    print("\n".join(lines), flush=True)
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    write_json(
        folder / f"{name}.json",
        {**record, "versions": versions(), "git_revision": git_revision()},
    )
    if figure is not None:
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=120)


def _line(cells):
    return "| " + " | ".join(cells) + " |"
