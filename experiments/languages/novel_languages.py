r"""Novel languages one after another, learned by reading (Fig. 6).

A model reads pairs of a sentence and its translation into an invented language
(``invented.py``), then such pairs of a second and of a third language, as one
stream. After each language it translates held-out sentences into every
language, starting each question from a copy of its state; this gives row ``i``
of the matrix ``R``. Attention sees as many tokens as one language has. Anything
older can only be in the levels of the continuum memory, which learn from the
stream.

================ ===============================================================
hope-1, 2, 3     Hope-Attention; the levels learn after every pair, after every
                 fourth pair, and once per language
in context       the same blocks without a level that learns: attention alone
whole context    the same, with attention to the whole stream
================ ===============================================================

All models have equally many weights, divided among the levels, except for a
norm and a rate of each level. All are trained for this task on streams of other
languages: on the translations in the stream, and on some held-out sentences of
all its languages at its end. The loss counts only translations.

Command (about eight minutes of one core)::

    python -m experiments.novel_languages

Measured with the defaults, three seeds, percent of syllables right at the end,
of the language just read, and forgotten: hope-1 46.1, 67.6, 32.2; hope-2
42.9, 66.5, 35.5; hope-3 41.2, 66.1, 37.2; in context 11.3, 18.6, 11.0;
whole context 12.4, 17.6, 7.8. Whole sentences: 4 at best. Levels remember what
attention no longer sees. With equally many weights, however, more levels do not
remember more, unlike in the paper; ``docs/continual_learning.md`` lists other
weaknesses.

Results go to ``--out``: runs as JSON files, tables, a record with
every ``R``, and a plot. Finished runs are not repeated.
"""

import functools

import numpy as np

from experiments.languages.invented import SENTENCES, TAGS
from experiments.languages.stream import LEVELS, make_model, test, train
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import grid, grouped, sweep
from nl_jax.continual import metrics
from nl_jax.errors import InputError
from nl_jax.nested.level_table import count_parameters

_SETTINGS = {
    "steps": flags.integer(250, "Steps of training."),
    "batch": flags.integer(8, "Streams per step."),
    "width": flags.integer(32, "Of the model; a multiple of 8.", multiple_of=8),
    "layers": flags.integer(1, "Blocks."),
    "pairs": flags.integer(
        12, "Of each language; a multiple of 4.", multiple_of=4
    ),
    "trained_languages": flags.integer(2, "In a stream of training."),
    "languages": flags.integer(3, "In a stream of the test.", 2),
    "streams": flags.integer(64, "Of the test."),
    "questions": flags.integer(8, "Per language, stream and time."),
    "learning_rate": flags.number(0.02, "Of training.", 1e-9, 1e3),
    "rate": flags.number(0.25, "First rate of the fastest level.", 1e-9, 1e3),
}
FLAGS = {
    "runs": flags.words(list(LEVELS), known=LEVELS),
    "seeds": flags.seeds([0, 1, 2], "Of languages and parameters."),
    **_SETTINGS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/novel_languages", "Folder."),
}


def run_one(run, seed, settings):
    """Returns the record of a run."""
    model = make_model(run, settings)
    variables, losses = train(model, seed, settings)
    found = test(model, variables, seed, settings)
    row = {"parameters": count_parameters(variables), "losses": losses}
    if LEVELS[run]:
        _, rates = model.fast_parameters(variables["params"])
        row["rates"] = [np.round(rate, 4).tolist() for rate in rates]
    for name, shares in zip(("sentences", "syllables"), found, strict=True):
        b, R = shares[0], shares[1:]
        row[name] = {"R": R.round(5).tolist(), "b": b.round(5).tolist()}
        row[name]["new language"] = float(np.diagonal(R).mean())
        for metric in ("average_accuracy", "forgetting", "backward_transfer"):
            row[name][metric] = getattr(metrics, metric)(R)
    return row


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    settings = flags.pick(values, _SETTINGS)
    for name in ("languages", "trained_languages"):
        if settings[name] > TAGS:
            raise InputError(
                f"--{name}={settings[name]}: there are {TAGS} tags"
            )
    left = SENTENCES - settings["pairs"]
    if settings["questions"] > left:
        raise InputError(
            f"--questions={settings['questions']}: of the {SENTENCES} "
            f"sentences of a language {left} are not learned"
        )
    records = Records(f"{values.out}/novel_languages", settings)
    sweep(
        records,
        grid(seed=values.seeds, run=values.runs),
        functools.partial(run_one, settings=settings),
        jobs=values.jobs,
        before="seed {seed}, {run}",
    )
    cells = grid(run=values.runs, seed=values.seeds)
    rows = [row for cell in cells if (row := records.find(**cell))]
    summarize(values.out, settings, rows)


def summarize(out, settings, rows):
    """Writes means and spreads over the seeds, and the matrices."""
    groups = grouped(rows, "run")
    lines = []
    keys = ("average_accuracy", "new language", "forgetting")
    for unit in ("syllables", "sentences"):
        head = [f"{unit} right, %", "at the end", *keys[1:], "parameters"]
        body = [
            [
                run,
                *(
                    table.spread([100 * row[unit][key] for row in group])
                    for key in keys
                ),
                group[0]["parameters"],
            ]
            for run, group in groups.items()
        ]
        lines += [*table.markdown(head, body), ""]
    lines.append(f"Mean and deviation over {len(rows) // len(groups)} seeds.")
    for run, group in groups.items():
        found = [row["syllables"] for row in group]
        R = np.mean([[x["b"], *x["R"]] for x in found], 0)
        lines += ["", f"Syllables right of {run}, %:", ""]
        lines += table.markdown(
            ["after", *(f"language {j + 1}" for j in range(R.shape[1]))],
            [
                [i or "nothing", *(f"{100 * share:.1f}" for share in line)]
                for i, line in enumerate(R)
            ],
        )
    record = {"rows": rows, "settings": settings}
    write(out, "novel_languages", lines, record, draw(groups))


def draw(groups):
    """Returns the figure of the first language, and of all, over time."""
    first, seen = {}, {}
    for run, group in groups.items():
        R = 100 * np.mean([row["syllables"]["R"] for row in group], 0)
        after = np.arange(1, len(R) + 1)
        first[run] = after, R[:, 0]
        seen[run] = after, [R[i, : i + 1].mean() for i in range(len(R))]
    x, y = "languages read", "syllables right, %"
    return plot.curves(
        plot.Panel(first, x, y, "the first language", style="o-"),
        plot.Panel(seen, x, "", "all languages so far", style="o-"),
        size=(9, 4),
        sharey=True,
    )


REPORT = Report(
    "Languages learned one after another",
    ("run",),
    {
        "syllables right, %": Column("syllables.average_accuracy", ".1f", 100),
        "sentences right, %": Column("sentences.average_accuracy", ".1f", 100),
        "syllables forgotten, %": Column("syllables.forgetting", ".1f", 100),
        "parameters": Column("parameters", ",.0f"),
    },
    [Plot("syllables.average_accuracy", "syllables right, %", scale=100)],
)
