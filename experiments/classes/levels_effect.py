r"""The effect of the number of levels and of the lowest frequency.

The grid varies the number of levels from one to four (``memory.py``) and the
period of the slowest. The stream is that of ``class_incremental.py``: classes
arrive in groups, each group once, and the test at the end covers all of them.
Periods of neighbouring levels differ by a factor of ``--ratio``; the fastest
level is the delta rule at every text. With one level, only the slowest exists.
All memories have the same number of weights, and each faster level has a
``--share`` of them.

Every level keeps the same share :math:`\rho` of its metric at each of its
steps, so its period :math:`C` determines the length of its memory: half is gone
after :math:`C \log 2 / (-\log\rho)` texts.

Commands (two minutes of one core; the second needs the package named in
``minilm.py``, and a few more minutes for its features)::

    python -m experiments.levels_effect
    python -m experiments.levels_effect --features=minilm \
        --data=train.csv,test.csv --label_column=category

Measured on Banking77 (the second command): final accuracy on all tasks for one
to four levels, percent, three seeds: 80.9, 77.3, 72.8, 65.6 with a slowest
period of 256 texts; 91.6, 90.7, 89.1, 86.6 with 1,024; 79.4, 87.3, 88.4, 87.1
with 4,096. A low frequency keeps what was learned. Faster levels help if it is
too low for the task just learned; otherwise they only take weights from the
slow level. ``docs/continual_learning.md`` has all results of both commands.

Results go to ``--out``: runs as JSON files, tables, a record and a
plot. Finished runs are not repeated.
"""

import functools
from typing import Any

import numpy as np

from experiments.classes import inputs
from experiments.classes.data import class_tasks
from experiments.classes.matrix import accuracy_matrix, measure
from experiments.classes.memory import LevelledMemory, split_levels
from experiments.classes.summary import cell, shares
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import grid, grouped, sweep
from nl_jax.errors import InputError

READINGS = {
    "average_accuracy": "all tasks in the end",
    "new task": "the task just learned",
    "forgetting": "forgotten",
}
"""Metrics in the tables, and their titles."""
_SETTINGS = {
    "tasks": flags.integer(7, "Groups of classes.", 2),
    "ratio": flags.integer(4, "Between the periods of two levels.", 2),
    "retention": flags.number(
        0.9, "Share of a metric that a step keeps.", 1e-9, 1.0
    ),
    "ridge": flags.number(0.1, "Of the levels' metrics.", 1e-9, 1e9),
    "rate": flags.number(0.1, "Of the delta rule.", 1e-9, 1e9),
    "share": flags.number(
        0.2, "Of the weights, for each faster level.", 1e-9, 1.0
    ),
}
FLAGS = {
    **inputs.INPUT_FLAGS,
    "width": flags.integer(1024, "Of the features.", 8),
    "levels": flags.integers([1, 2, 3, 4], "How many.", 1),
    "slowest": flags.integers([256, 1024, 4096], "Periods, in texts.", 2),
    "seeds": flags.seeds([0, 1, 2], "Of the order of classes and texts."),
    **_SETTINGS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/levels_effect", "Folder."),
}


def make_levels(width, count, slowest, ratio, retention, share):
    """Returns levels that divide ``width``, the fastest first.

    Example:
        >>> found = make_levels(64, 3, 16, 4, 0.9, 0.125)
        >>> [(level.width, level.period) for level in found]
        [(8, 1), (8, 4), (48, 16)]
    """
    periods = [slowest // ratio**i for i in range(count - 1)][::-1]
    periods = [1, *periods] if count > 1 else [slowest]
    return split_levels(width, share, periods, [retention] * count)


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    _check_levels(values)
    source = inputs.load(values)
    class_tasks(len(source.texts.classes), values.tasks, 0)
    settings = source.settings | flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/levels_effect", settings)
    sweep(
        records,
        grid(seed=values.seeds, slowest=values.slowest, levels=values.levels),
        functools.partial(run_one, source=source, settings=settings),
        after="levels {levels}, slowest {slowest}, seed {seed}: "
        "{average_accuracy[gem]:.1%}, {processor_seconds} s",
        prepare=source.prepare,
        jobs=values.jobs,
    )
    cells = grid(
        levels=values.levels, slowest=values.slowest, seed=values.seeds
    )
    rows = [row for own in cells if (row := records.find(**own))]
    summarize(values.out, settings, rows, len(source.texts.train))


def run_one(
    levels: int,
    slowest: int,
    seed: int,
    source: inputs.Source,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Learns one stream; returns the matrix ``R`` and its metrics."""
    chosen = (settings[name] for name in ("ratio", "retention", "share"))
    own = make_levels(settings["width"], levels, slowest, *chosen)
    classes = len(source.texts.classes)
    memory = LevelledMemory(own, classes, settings["ridge"], settings["rate"])
    tasks = class_tasks(classes, settings["tasks"], seed)
    R = accuracy_matrix(memory, source.examples(), tasks, seed)
    return {"R": R, **measure(R)}


def _check_levels(values):
    """Checks that the periods divide and that the slowest level has a share."""
    count = max(values.levels)
    # The fastest level except the delta rule must have a longer period.
    least = values.ratio ** max(count - 2, 0)
    for period in values.slowest:
        if period % least or period == least:
            raise InputError(
                f"--slowest={period}: must be a multiple of {least}, and more, "
                f"for {count} levels that are --ratio={values.ratio} apart"
            )
    faster = (count - 1) * max(1, int(values.width * values.share))
    if faster >= values.width:
        raise InputError(
            f"--share={values.share:g}: nothing is left for the slowest of "
            f"{count} levels"
        )


def summarize(out, settings, rows, texts):
    """Writes a table of each metric, levels by periods, and the plot."""
    groups = grouped(rows, "levels", "slowest")
    counts, periods = (
        list(dict.fromkeys(axis)) for axis in zip(*groups, strict=True)
    )
    names = {count: f"{count} level{'s'[: count > 1]}" for count in counts}
    lines, panels = [], []
    for key, title in READINGS.items():
        head = [f"{title}, %", *(f"slowest {period}" for period in periods)]
        body, curves = [], {}
        for count, name in names.items():
            own = [groups[count, period] for period in periods]
            body.append([name, *(cell(group, key) for group in own)])
            found = [shares(group, key) for group in own]
            curves[name] = periods, np.mean(found, 1), np.std(found, 1)
        lines += [*table.markdown(head, body), ""]
        panels.append(
            plot.Panel(
                curves,
                "period of the slowest level, texts",
                f"{title}, %",
                scales=("log", "linear"),
            )
        )
    lines.append(
        f"{texts} texts in {settings['tasks']} tasks, each once; periods in "
        "texts."
    )
    figure = plot.curves(*panels, size=(11, 4), legend=-1)
    record = {"rows": rows, "settings": settings}
    write(out, "levels_effect", lines, record, figure)


REPORT = Report(
    "Levels of a memory that learns classes",
    ("levels", "slowest"),
    {
        "accuracy, %": Column("average_accuracy.gem", ".1f", 100),
        "new task, %": Column("new task", ".1f", 100),
        "forgetting, %": Column("forgetting.gem", ".1f", 100),
    },
    [
        Plot(
            "average_accuracy.gem",
            "accuracy, %",
            "slowest",
            "period of the slowest level",
            ("levels",),
            ("log", "linear"),
            100,
        )
    ],
)
