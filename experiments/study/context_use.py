r"""What is a longer context worth (Fig. 10)?

Models of the size of ``hope`` are trained on windows of ``--length`` bytes, and
read held-out documents in two ways: as one stream, for bits per byte by
position, and in windows of ``--contexts`` bytes, each from nothing, for bits
per byte against the context that a model is given. A model that cannot use more
than it was trained with gets no better, or worse, beyond ``--length``.

Command (two minutes of a free core a run; without ``--paths`` on the files of
Python's standard library)::

    python -m experiments.context_use --variants=hope,transformer,mamba

``long_context`` asks further what carrying the state in training adds, and
which parts learn. Results go to ``--out``: finished runs as JSON files, a
Markdown table, a record and a plot. Finished runs are not repeated.
"""

import functools
import itertools
import pathlib

import numpy as np

from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Paper, Plot, Report
from experiments.shared.sweep import grid, grouped, sweep
from experiments.study.freezing import by_position
from experiments.study.long_context import VARIANTS, model_of
from experiments.study.split_text import PATHS, or_modules, read_and_split
from experiments.study.train_on_text import train_on_text
from experiments.study.windows_alone import alone, edges_to
from nl_jax.errors import InputError
from nl_jax.nested.level_table import count_parameters

_SETTINGS = {
    "width": flags.integer(64, "Of the models."),
    "layers": flags.integer(2, "Blocks."),
    "heads": flags.integer(2, "Of the mixers."),
    "steps": flags.integer(300, "Steps."),
    "batch": flags.integer(4, "Sequences per step."),
    "length": flags.integer(256, "Bytes per sequence.", multiple_of=64),
    "held_out": flags.integer(65_536, "Bytes to evaluate on in windows."),
    "documents": flags.integer(4, "Held-out documents to read.", 2),
    "positions": flags.integer(4096, "Bytes of each that are read.", 512),
    "contexts": flags.integers(
        [64, 256, 1024, 4096], "Bytes of windows that are read alone.", 2
    ),
}
FLAGS = {
    "variants": flags.words(["hope", "transformer"], "Models.", VARIANTS),
    "rate": flags.number(1.6e-2, "Learning rate.", 1e-9, 1e3),
    "seeds": flags.seeds([0]),
    **_SETTINGS,
    "paths": PATHS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/context_use", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    flags.check_multiple(values, "positions", "length")
    flags.check_multiple(values, "width", "heads")
    for context in values.contexts:
        if values.positions % context:
            raise InputError(
                f"--contexts={context}: must divide --positions="
                f"{values.positions}"
            )
    split = read_and_split(or_modules(values.paths))
    documents = split.long_documents(values.documents, values.positions)
    settings = flags.pick(values, _SETTINGS) | {"text_sha256": split.sha256}
    out = pathlib.Path(values.out)
    rows = sweep(
        Records(out / "context_use", settings),
        grid(rate=[values.rate], seed=values.seeds, variant=values.variants),
        functools.partial(
            run_one,
            paths=split.save(out / f"text-{split.sha256[:8]}"),
            documents=documents,
            settings=settings,
        ),
        after="{variant}, seed {seed}: {by_context} bits per byte "
        "after {seconds} s",
        jobs=values.jobs,
    )
    summarize(rows, settings, values.out)


def run_one(variant, rate, seed, *, paths, documents, settings):
    """Trains once; returns bits per byte by position and by context."""
    model = model_of(variant, {"model": "hope", **settings})
    result = train_on_text(
        model, paths, rate=rate, seed=seed, settings=settings
    )
    if result is None:
        raise FloatingPointError("training diverged; try a lower --rate")
    end = documents.shape[1]
    read = result.model, result.variables, documents
    found = by_position(*read, edges_to(settings["length"], end))
    windows = [alone(*read, [0, end], each) for each in settings["contexts"]]
    return {
        "by_position": np.mean(found, 0).round(4).tolist(),
        "by_context": [round(float(np.mean(bits)), 4) for bits in windows],
        "parameters": count_parameters(result.variables),
    }


def summarize(rows, settings, out):
    """Writes both tables, the record and a plot of two panels."""
    edges = edges_to(settings["length"], settings["positions"])
    contexts = settings["contexts"]
    ends = {
        "by_position": [
            f"{a:,} to {b:,}" for a, b in itertools.pairwise(edges)
        ],
        "by_context": [f"{context:,}" for context in contexts],
    }
    places = {"by_position": edges[1:], "by_context": contexts}
    titles = {
        "by_position": "Bits per byte by position",
        "by_context": "Bits per byte in windows of so many bytes",
    }
    lines, panels = [], []
    for name, heads in ends.items():
        cells, curves = [], {}
        for variant, own in grouped(rows, "variant").items():
            found = np.array([row[name] for row in own])
            shown = [table.mean_error(list(column)) for column in found.T]
            cells.append([variant, f"{own[0]['parameters']:,}", *shown])
            curves[variant] = places[name], found.mean(0)
        heads = ["variant", "parameters", *heads]
        lines += [f"{titles[name]}:", "", *table.markdown(heads, cells), ""]
        panels.append(
            plot.Panel(
                curves,
                "bytes",
                "bits per byte",
                titles[name],
                ("log", "linear"),
                "o-",
            )
        )
    lines.append(
        f"Mean ± standard error over seeds; trained on windows of "
        f"{settings['length']:,} bytes."
    )
    figure = plot.curves(*panels, size=(10, 4))
    write(
        out, "context_use", lines, {"settings": settings, "rows": rows}, figure
    )


REPORT = Report(
    "What a longer context is worth",
    ("variant",),
    {
        "shortest, bits per byte": Column(lambda row: row["by_context"][0]),
        "longest, bits per byte": Column(lambda row: row["by_context"][-1]),
        "parameters": Column("parameters", ",.0f"),
    },
    [
        Plot(
            "by_context",
            "bits per byte",
            "contexts",
            "bytes of context",
            scales=("log", "linear"),
        ),
        Plot(
            "by_position",
            "bits per byte",
            lambda row: edges_to(row["length"], row["positions"])[1:],
            "position, bytes",
            scales=("log", "linear"),
        ),
    ],
    # Its models have 760 M parameters and more.
    Paper("the paper's Fig. 10", {"width": 1536}),
)
