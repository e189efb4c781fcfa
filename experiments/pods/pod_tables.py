"""Compiles every row of the tables of docs/pods.md, and prints the tables.

Each row is a run of ``compile_pod``, which needs the compiler of ``pip install
'nl-jax[tpu]'`` and, for the models of 1.3b, up to 20 minutes of one core::

    python -m experiments.pod_tables --out=runs/pods

Figures are kept in ``--out``: the same command goes on where it was
interrupted. ``--rows=hope`` compiles only rows that have this word.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

from experiments.shared import flags
from experiments.shared.table import markdown
from nl_jax.errors import InputError

_NEXT = {"model.cms.objective": "next_token"}
_LARGE = {
    "model.preset": "1.3b",
    "model.vocab_size": 32000,
    "seq_len": 2048,
    "mesh.data": 1,
}
_SMALL = {
    "model.vocab_size": 8192,
    "model.d_model": 512,
    "model.n_heads": 4,
    "model.n_layers": 4,
    "batch_size": 16,
    "seq_len": 512,
}


def _model(name, **more):
    return {"model.name": name} | more


def _large(model, label, topology, **mesh):
    rows = mesh["fsdp"]  # One for each of these devices.
    axes = {f"mesh.{axis}": size for axis, size in mesh.items()}
    where = ", ".join(f"{axis} {size}" for axis, size in mesh.items())
    return (
        (label, topology, where),
        {"topology": topology},
        _LARGE | model | axes | {"batch_size": rows},
    )


def _pair(model, label, **more):
    for axis in ("data", "fsdp"):
        own = {"mesh.data": 8 if axis == "data" else 1}
        if axis == "fsdp":
            own["mesh.fsdp"] = 8
        yield (
            (label, "v5e:2x4", f"{axis} 8"),
            {"topology": "v5e:2x4"},
            _SMALL | model | own | more,
        )


_HOPE, _TRANSFORMER = _model("hope"), _model("transformer")
Row = tuple[tuple[str, str, str], dict[str, str], dict[str, Any]]
TABLES: dict[str, list[Row]] = {
    "large": [
        _large(_TRANSFORMER, "transformer", "v5e:16x16", fsdp=256),
        _large(_HOPE, "hope", "v5e:16x16", fsdp=256),
        _large(_HOPE | _NEXT, "hope, next_token", "v5e:16x16", fsdp=256),
        _large(
            _HOPE | _NEXT, "hope, next_token", "v5e:16x16", fsdp=32, tensor=8
        ),
        _large(_TRANSFORMER, "transformer", "v5p:4x4x4", fsdp=64),
        _large(_HOPE, "hope", "v5p:4x4x4", fsdp=64),
    ],
    "pairs": [
        row
        for model, label in (
            (_TRANSFORMER, "transformer"),
            (_model("deltanet"), "deltanet"),
            (_model("titans"), "titans"),
            (_HOPE, "hope"),
            (_HOPE | _NEXT, "hope, next_token"),
        )
        for row in _pair(model, label)
    ],
}
FLAGS = {
    "tables": flags.words(list(TABLES), "Which to compile.", TABLES),
    "rows": flags.string("", "Only rows with this text in their first cells."),
    "out": flags.folder("runs/pods", "Folder for the figures."),
}


def main(values: flags.FlagValues) -> None:
    """Compiles what is missing, and prints the tables."""
    chosen = {
        name: [row for row in TABLES[name] if values.rows in " ".join(row[0])]
        for name in values.tables
    }
    if not any(chosen.values()):
        raise InputError(f"--rows={values.rows}: no row has this text")
    folder = pathlib.Path(values.out)
    for rows in chosen.values():
        found = [(row[0], figures(folder, *row)) for row in rows]
        print("\n".join([*table(found), ""]), flush=True)


def figures(
    folder: pathlib.Path,
    cells: tuple[str, ...],
    own: dict[str, str],
    config: dict[str, Any],
) -> dict[str, Any]:
    """Returns the figures of a row, which are compiled once.

    Raises:
        InputError: if ``compile_pod`` ends with an error.
    """
    words = "-".join(cells).replace(", ", "-").replace(" ", "-")
    file = folder / f"{words.replace(':', '-')}.json"
    if not file.exists():
        given = own | {f"config.{key}": value for key, value in config.items()}
        done = subprocess.run(
            [
                *(sys.executable, "-m", "experiments.compile_pod"),
                *(f"--{key}={value}" for key, value in given.items()),
                f"--out={file}",
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it was killed"]
            raise InputError(f"{', '.join(cells)}: {lines[-1]}")
    return json.loads(file.read_text())


def table(found: list[tuple[tuple[str, ...], dict[str, Any]]]) -> list[str]:
    """Returns the lines of a table of rows' cells and figures."""
    head = ["model", "topology", "mesh", "parameters, optimizer", "temporaries"]
    head += ["in all", "arrays of the whole batch"]
    rows = []
    for cells, row in found:
        size = row["bytes"]
        held = size["parameters"] + size["optimizer"]
        rest = size.get("temporaries")
        rows.append(
            [
                *cells,
                _gib(held),
                _gib(row["needs"] - held if rest is None else rest),
                _gib(row["needs"]) + ("" if row["fits"] else ": too much"),
                row.get("whole_batch_arrays", ""),
            ]
        )
    return markdown(head, rows)


def _gib(size) -> str:
    return f"{size / 2**30:.3f} GiB"
