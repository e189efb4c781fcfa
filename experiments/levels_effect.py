r"""What levels do, and the lowest frequency: a grid of continuum memories.

One to four levels (``class_memory.py``) times the period of the slowest, on the
stream of ``class_incremental.py``: classes come in groups, each group once, and
all are asked about in the end. The levels of a memory are a factor ``--ratio``
apart, down to the delta rule at every text; one level is the slowest alone. All
have equally many weights, of which each faster level has ``--share``.

Every level keeps the same share of its metric at each of its steps, so that its
period is its memory's length: half is gone after :math:`C \log 2 / (-\log\rho)`
texts.

Commands (two minutes of one core; the second needs the package named in
``minilm.py``, and minutes more for its features)::

    python -m experiments.levels_effect
    python -m experiments.levels_effect --features=minilm \
        --data=train.csv,test.csv --label_column=category

Measured on Banking77 (the second), accuracy on all tasks in the end for one to
four levels, percent, three seeds: 80.9, 77.3, 72.8, 65.6 with a slowest period
of 256 texts; 91.6, 90.7, 89.1, 86.6 with 1,024; 79.4, 87.3, 88.4, 87.1 with
4,096. A low frequency keeps what was learned; faster levels help where it is
too low for the task just learned, and else cost the slow level its weights.
``docs/continual_learning.md`` has all of both.

Results go to ``--out``: finished runs as lines of JSON, tables, a record, a
plot. Finished runs are not repeated.
"""

import itertools
import pathlib
import time

import numpy as np
from absl import flags

from experiments import class_inputs, cli, report
from experiments.class_data import class_tasks
from experiments.class_matrix import accuracy_matrix, measure
from experiments.class_memory import ContinuumMemory, LevelChoice
from experiments.class_report import cell, shares
from experiments.records import Records
from nl_jax.errors import InputError

READINGS = {
    "average_accuracy": "all tasks in the end",
    "new task": "the task just learned",
    "forgetting": "forgotten",
}
"""What is shown of a run."""


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    class_inputs.define(values, width=1024)
    for name, default, text in (
        ("levels", ["1", "2", "3", "4"], "How many."),
        ("slowest", ["256", "1024", "4096"], "Periods, in texts."),
        ("seeds", ["0", "1", "2"], "Of the order of classes and texts."),
    ):
        flags.DEFINE_list(name, default, text, flag_values=values)
    for name, number, least, text in (
        ("tasks", 7, 2, "Groups of classes."),
        ("ratio", 4, 2, "Between the periods of two levels."),
    ):
        flags.DEFINE_integer(name, number, text, least, flag_values=values)
    for name, number, most, text in (
        ("retention", 0.9, 1.0, "Share of a metric that a step keeps."),
        ("ridge", 0.1, 1e9, "Of the levels' metrics."),
        ("rate", 0.1, 1e9, "Of the delta rule."),
        ("share", 0.2, 1.0, "Of the weights, for each faster level."),
    ):
        flags.DEFINE_float(name, number, text, 1e-9, most, flag_values=values)
    flags.DEFINE_string("out", "runs/levels_effect", "Folder.", values)


def make_levels(width, count, slowest, ratio, retention, share):
    """Returns levels, the fastest first, that share ``width`` out.

    Example:
        >>> found = make_levels(64, 3, 16, 4, 0.9, 0.125)
        >>> [(level.width, level.period) for level in found]
        [(8, 1), (8, 4), (48, 16)]
    """
    periods = [slowest // ratio**i for i in range(count - 1)][::-1]
    periods = [1, *periods] if count > 1 else [slowest]
    part = max(1, int(width * share))
    widths = [part] * (count - 1) + [width - part * (count - 1)]
    return [
        LevelChoice(own, period, retention if period > 1 else 0.0)
        for own, period in zip(widths, periods, strict=True)
    ]


def main(values: flags.FlagValues) -> None:
    """Runs what has no record yet and reports everything."""
    counts = cli.integers("levels", values.levels, 1)
    periods = cli.integers("slowest", values.slowest, 2)
    seeds = cli.integers("seeds", values.seeds, 0)
    # The fastest level but for the delta rule must be slower than that.
    least = values.ratio ** max(max(counts) - 2, 0)
    for period in periods:
        if period % least or period == least:
            raise InputError(
                f"--slowest={period}: must be a multiple of {least}, and more, "
                f"for {max(counts)} levels that are --ratio={values.ratio} "
                "apart"
            )
    faster = (max(counts) - 1) * max(1, int(values.width * values.share))
    if faster >= values.width:
        raise InputError(
            f"--share={values.share:g}: nothing is left for the slowest of "
            f"{max(counts)} levels"
        )
    texts, settings = class_inputs.load(values)
    names = ("tasks", "ratio", "retention", "ridge", "rate", "share")
    settings |= {name: values[name].value for name in names}
    classes = len(texts.classes)
    class_tasks(classes, settings["tasks"], 0)
    out = pathlib.Path(values.out)
    records = Records(out / "levels_effect.jsonl", settings)
    features = None
    runs = list(itertools.product(seeds, periods, counts))
    for seed, period, count in runs:
        key = {"levels": count, "slowest": period, "seed": seed}
        if records.find(**key) is not None:
            continue
        if features is None:
            features = class_inputs.read_features(texts, settings)
        begun = time.process_time()
        levels = make_levels(
            values.width,
            count,
            period,
            values.ratio,
            values.retention,
            values.share,
        )
        memory = ContinuumMemory(levels, classes, values.ridge, values.rate)
        tasks = class_tasks(classes, values.tasks, seed)
        R = accuracy_matrix(memory, texts, features, tasks, seed)
        seconds = round(time.process_time() - begun, 1)
        found = measure(R)
        records.add(key | {"R": R, **found, "seconds": seconds})
        accuracy = found["average_accuracy"]["gem"]
        print(f"{key}: {accuracy:.1%}, {seconds} s", flush=True)
    cells = {
        (count, period): [
            records.find(levels=count, slowest=period, seed=seed)
            for seed in seeds
        ]
        for count, period in itertools.product(counts, periods)
    }
    summarize(out, settings, cells, len(texts.train))


def summarize(out, settings, cells, texts):
    """Writes a table of each reading, levels by periods, and the plot."""
    counts, periods = (list(dict.fromkeys(x)) for x in zip(*cells, strict=True))
    lines = []
    for key, title in READINGS.items():
        head = [f"{title}, %", *(f"slowest {period}" for period in periods)]
        body = [
            [
                f"{count} level{'s'[: count > 1]}",
                *(cell(cells[count, period], key) for period in periods),
            ]
            for count in counts
        ]
        lines += [*report.table(head, body), ""]
    lines.append(
        f"{texts} texts in {settings['tasks']} tasks, each once; periods in "
        "texts."
    )
    rows = list(itertools.chain.from_iterable(cells.values()))
    record = {"rows": rows, "settings": settings}
    report.write(out, "levels_effect", lines, record, plot(cells))


def plot(cells):
    """Returns the figure of every reading over the slowest period."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4))
    counts, periods = (list(dict.fromkeys(x)) for x in zip(*cells, strict=True))
    for axes, (key, title) in zip(
        figure.subplots(1, len(READINGS)), READINGS.items(), strict=True
    ):
        for count in counts:
            found = [shares(cells[count, period], key) for period in periods]
            axes.errorbar(
                periods,
                np.mean(found, 1),
                np.std(found, 1),
                capsize=2,
                label=f"{count} level{'s'[: count > 1]}",
            )
        axes.set_xscale("log", base=2)
        axes.set_xlabel("period of the slowest level, texts")
        axes.set_ylabel(f"{title}, %")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    cli.run(define, main)
