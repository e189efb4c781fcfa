r"""Novel languages one after another, learned by reading (Fig. 6).

A model reads pairs of a sentence and its translation into an invented language
(``invented.py``), then such pairs of a second language, and a third, as one
stream. After each it is asked to translate held-out sentences into every
language, each question from a copy of its state: row ``i`` of the matrix ``R``.
Attention sees as many tokens as one language has; what is older can only be in
the levels of the continuum memory, which learn from what is read.

================ ===============================================================
hope-1, 2, 3     Hope-Attention; the levels learn every pair, every fourth, and
                 once per language
in context       the same blocks, no level learns: attention is all there is
whole context    the same, and attention sees the whole stream
================ ===============================================================

All have equally many weights, shared out among the levels, but for a norm and a
rate of each level; all are trained on streams of other languages, to be good at
what is asked here: translations in the stream, and of some held-out sentences
of all its languages at its end. Only translations count.

Command (some eight minutes of one core)::

    python -m experiments.novel_languages

Measured with the defaults, three seeds, syllables right in the end, of the
language just read, and forgotten, percent: hope-1 46.1, 67.6, 32.2; hope-2
42.9, 66.5, 35.5; hope-3 41.2, 66.1, 37.2; in context 11.3, 18.6, 11.0;
whole context 12.4, 17.6, 7.8. Whole sentences: 4 at best. Levels remember what
attention no longer sees, but at equal weights more of them do not remember
more, other than in the paper; ``docs/continual_learning.md`` says what else is
weak.

Results go to ``--out``: finished runs as lines of JSON, tables, a record with
every ``R``, a plot. Finished runs are not repeated.
"""

import itertools
import pathlib
import time

import jax
import numpy as np
from absl import flags

from experiments import cli, report
from experiments.invented import SENTENCES, TAGS
from experiments.language_stream import LEVELS, make_model, test, train
from experiments.records import Records
from nl_jax.continual import metrics
from nl_jax.errors import InputError

_COUNTS = {
    "steps": (250, 1, "Steps of training."),
    "batch": (8, 1, "Streams per step."),
    "width": (32, 8, "Of the model; a multiple of 8."),
    "layers": (1, 1, "Blocks."),
    "pairs": (12, 4, "Of each language; a multiple of 4."),
    "trained_languages": (2, 1, "In a stream of training."),
    "languages": (3, 2, "In a stream of the test."),
    "streams": (64, 1, "Of the test."),
    "questions": (8, 1, "Per language, stream and time."),
}
_NUMBERS = {
    "learning_rate": (0.02, "Of training."),
    "rate": (0.25, "First rate of the fastest level."),
}


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    for name, default, text in (
        ("runs", list(LEVELS), f"Out of {', '.join(LEVELS)}."),
        ("seeds", ["0", "1", "2"], "Of languages and parameters."),
    ):
        flags.DEFINE_list(name, default, text, flag_values=values)
    for name, (number, least, text) in _COUNTS.items():
        flags.DEFINE_integer(name, number, text, least, flag_values=values)
    for name, (value, text) in _NUMBERS.items():
        flags.DEFINE_float(name, value, text, 1e-9, 1e3, flag_values=values)
    flags.DEFINE_string(
        "out", "runs/novel_languages", "Folder.", flag_values=values
    )


def run_one(run, seed, settings):
    """Returns the record of a run."""
    begun = time.process_time()
    model = make_model(run, settings)
    variables, losses = train(model, seed, settings)
    found = test(model, variables, seed, settings)
    row = {
        "parameters": sum(a.size for a in jax.tree.leaves(variables)),
        "losses": losses,
    }
    if LEVELS[run]:
        _, rates = model.fast_parameters(variables["params"])
        row["rates"] = [np.round(rate, 4).tolist() for rate in rates]
    for name, shares in zip(("sentences", "syllables"), found, strict=True):
        b, R = shares[0], shares[1:]
        row[name] = {"R": R.round(5).tolist(), "b": b.round(5).tolist()}
        row[name]["new language"] = float(np.diagonal(R).mean())
        for metric in ("average_accuracy", "forgetting", "backward_transfer"):
            row[name][metric] = getattr(metrics, metric)(R)
    return row | {"seconds": round(time.process_time() - begun, 1)}


def main(values: flags.FlagValues) -> None:
    """Runs what has no record yet and reports everything."""
    cli.check_names("runs", values.runs, LEVELS)
    seeds = cli.integers("seeds", values.seeds, 0)
    names = (*_COUNTS, *_NUMBERS)
    settings = {name: values[name].value for name in names}
    for name, factor in (("width", 8), ("pairs", 4)):
        if settings[name] % factor:
            raise InputError(
                f"--{name}={settings[name]}: must be a multiple of {factor}"
            )
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
    out = pathlib.Path(values.out)
    records = Records(out / "novel_languages.jsonl", settings)
    for seed, run in itertools.product(seeds, values.runs):
        key = {"run": run, "seed": seed}
        if records.find(**key) is None:
            print(f"seed {seed}, {run}", flush=True)
            records.add(key | run_one(run, seed, settings))
    rows = [
        records.find(run=run, seed=seed)
        for run, seed in itertools.product(values.runs, seeds)
    ]
    summarize(out, settings, rows)


def summarize(out, settings, rows):
    """Writes means and spreads over the seeds, and the matrices."""
    groups = {}
    for row in rows:
        groups.setdefault(row["run"], []).append(row)
    lines = []
    for unit in ("syllables", "sentences"):
        head = [f"{unit} right, %", "at the end", "new language", "forgetting"]
        body = [
            [
                run,
                *(
                    _cell(group, unit, key)
                    for key in ("average_accuracy", "new language")
                ),
                _cell(group, unit, "forgetting"),
                group[0]["parameters"],
            ]
            for run, group in groups.items()
        ]
        lines += [*report.table([*head, "parameters"], body), ""]
    lines.append(f"Mean and deviation over {len(rows) // len(groups)} seeds.")
    for run, group in groups.items():
        found = [row["syllables"] for row in group]
        R = np.mean([[x["b"], *x["R"]] for x in found], 0)
        lines += ["", f"Syllables right of {run}, %:", ""]
        lines += report.table(
            ["after", *(f"language {j + 1}" for j in range(R.shape[1]))],
            [
                [i or "nothing", *(f"{100 * share:.1f}" for share in line)]
                for i, line in enumerate(R)
            ],
        )
    record = {"rows": rows, "settings": settings}
    report.write(out, "novel_languages", lines, record, plot(groups))


def plot(groups):
    """Returns the figure of the first language, and of all, over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    panels = figure.subplots(1, 2, sharey=True)
    for run, group in groups.items():
        R = 100 * np.mean([row["syllables"]["R"] for row in group], 0)
        after = np.arange(1, len(R) + 1)
        seen = [R[i, : i + 1].mean() for i in range(len(R))]
        for axes, shares in zip(panels, (R[:, 0], seen), strict=True):
            axes.plot(after, shares, "o-", ms=3, label=run)
    titles = ("the first language", "all languages so far")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel("languages read")
    panels[0].set_ylabel("syllables right, %")
    panels[0].legend(fontsize=7)
    return figure


def _cell(group, unit, key):
    found = [100 * row[unit][key] for row in group]
    return f"{np.mean(found):.1f} +- {np.std(found):.1f}"


if __name__ == "__main__":
    cli.run(define, main)
