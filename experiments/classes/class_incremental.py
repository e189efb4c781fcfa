r"""Class-incremental learning: how much of the first task is left at the end?

A learner reads the classes in groups, each group once. It is then tested on all
classes that it has seen, without being told the group of a text. Row ``i`` of
the matrix ``R`` is the accuracy on every task after task ``i``.

==================== =======================================================
naive, ewc, replay   a linear softmax head trained with Adam
                     (``learners.py``)
class mean           nearest mean of the same features
klda                 the same under one shrunk covariance, on random cosines of
                     its own number and kernel width (arXiv 2412.15571)
klda ensemble        mean probabilities of ``--members`` of them
joint                the softmax head on all tasks at once; ``R`` has only its
                     last row
1, 2, 3 levels       a continuum memory with that many levels and the same
                     number of weights (``memory.py``); no replay
slow level alone     its slowest level with all the weights
==================== =======================================================

All learners read the same texts, whose vectors are fixed before any text is
seen (``features.py``). No learner answers with a class that it has not seen, so
``R`` is zero above its diagonal and forward transfer is zero, by construction.

With ``--rounds=4`` each task comes four times, with a quarter of its texts, and
``--changing`` swaps labels in between (``returning.py``). Texts are then
answered ``--block`` at a time before they are learned.

Where a flag has several values, each learner that depends on it tries all of
them once, in the order of ``--tuning_seed``, and is tested at the best with
every seed. It tries them on a fifth of the texts to learn, which it does not
learn then, or, if tasks return, on what it is asked in a stream.

Commands (a few minutes on two cores)::

    python -m experiments.class_incremental
    python -m experiments.class_incremental --rounds=4 --changing=0.2 \
        --rate=1,3 --share=0.125,0.25

The default data is the standard library. ``--data=train.csv,test.csv`` with
``--text_column`` and ``--label_column`` reads other texts. On shared cores,
``OPENBLAS_NUM_THREADS=1`` makes the levels several times faster.

Results: ``docs/continual_learning.md``. They go to ``--out``: runs as JSON
files, vectors of the texts, tables, a record with every ``R``, and a plot.
Finished runs are not repeated.
"""

import functools
import itertools
from typing import Any

import numpy as np

from experiments.classes import inputs
from experiments.classes.data import class_tasks
from experiments.classes.features import Cosines
from experiments.classes.learners import (
    KLDA,
    ClassMeans,
    KLDAEnsemble,
    Softmax,
)
from experiments.classes.matrix import accuracy_matrix, measure
from experiments.classes.memory import LevelledMemory, split_levels
from experiments.classes.returning import measure_stream
from experiments.classes.summary import summarize, summarize_stream
from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import grid, sweep
from nl_jax.errors import InputError

LEARNERS = {
    "naive": ("learning_rate", "epochs"),
    "ewc": ("learning_rate", "epochs", "penalty"),
    "replay": ("learning_rate", "epochs"),
    "class mean": ("decay",),
    "klda": ("klda_scale", "klda_width", "shrinkage", "decay"),
    "klda ensemble": ("klda_scale", "klda_width", "shrinkage", "decay"),
    "joint": ("learning_rate", "epochs"),
    "1 level": ("rate",),
    "2 levels": ("rate", "share", "slowest", "retention"),
    "3 levels": (
        *("rate", "share", "slowest", "retention"),
        *("middle", "middle_retention"),
    ),
    "slow level alone": ("slowest", "retention"),
}
"""Each with the flags that it depends on, of which several values are tried."""


def _positive(default, text, most=1e9):
    return flags.numbers(
        default,
        text,
        lambda value: 0 < value <= most,
        f"needs numbers above 0 and at most {most:g}",
    )


def _share(default, text):
    return flags.numbers(
        default, text, lambda value: 0 <= value <= 1, "needs shares in [0, 1]"
    )


_TRIED = {
    "learning_rate": _positive([0.01], "Of the softmax heads."),
    "epochs": flags.integers(
        [10], "Of the softmax heads, over what is learned at a time.", 1
    ),
    "penalty": _positive([1e5], "EWC's lambda.", 1e12),
    "decay": _share([1.0], "Share of the statistics kept at each learning."),
    "klda_scale": _positive([1.0], "Inverse width of KLDA's kernel."),
    "klda_width": flags.integers([1024], "Random cosines of KLDA.", 1),
    "shrinkage": _positive([0.2], "Of KLDA's covariance.", 1),
    "rate": _positive([0.1], "Of the fastest level, the delta rule."),
    "share": _positive([0.0625], "Of the weights, for a faster level.", 1),
    "slowest": flags.integers([512], "Period of the slowest level, texts.", 2),
    "retention": _share([1.0], "Of the slowest level's metric."),
    "middle": flags.integers([256], "Period of the second of three levels.", 2),
    "middle_retention": _share([0.95], "Of the second level's metric."),
}
_SETTINGS = {
    "tasks": flags.integer(7, "Groups of classes.", 2),
    "rounds": flags.integer(
        1, "How often each task comes; more than once, answered before learned."
    ),
    "changing": flags.number(
        0.0, "Share of classes whose labels are swapped each round.", 0.0, 1.0
    ),
    "block": flags.integer(32, "Texts learned at a time, if tasks return."),
    "batch": flags.integer(32, "Examples per step of the softmax heads.", 2),
    "buffer": flags.integer(770, "Examples that replay keeps."),
    "members": flags.integer(5, "Of the ensemble of KLDA."),
    "ridge": flags.number(0.1, "Of the levels' metrics.", 1e-9, 1e9),
}
FLAGS = {
    **inputs.INPUT_FLAGS,
    "width": flags.integer(3072, "Of the features.", 8),
    "learners": flags.words(list(LEARNERS), known=LEARNERS),
    "seeds": flags.seeds([0, 1, 2], "Of the order of classes and texts."),
    "tuning_seed": flags.integer(
        100, "Of the order in which values are tried.", 0
    ),
    **_SETTINGS,
    **_TRIED,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/class_incremental", "Folder."),
}


def make_learner(
    name: str, inputs: int, classes: int, seed: int, settings: dict[str, Any]
) -> Any:
    """Returns an untrained learner of features, or of vectors for KLDA."""
    if "learning_rate" in LEARNERS[name]:
        return Softmax(
            inputs,
            classes,
            seed,
            epochs=settings["epochs"],
            batch=settings["batch"],
            rate=settings["learning_rate"],
            penalty=settings["penalty"] if name == "ewc" else 0.0,
            buffer=settings["buffer"] if name == "replay" else 0,
            renew=settings["rounds"] == 1,
        )
    if name == "class mean":
        return ClassMeans(inputs, classes, settings["decay"])
    if "klda" in name:
        kernel = inputs, settings["klda_width"], settings["klda_scale"]
        rest = classes, settings["shrinkage"], settings["decay"]
        if name == "klda":
            return KLDA(Cosines(*kernel), *rest)
        count = settings["members"]
        return KLDAEnsemble(
            [KLDA(Cosines(*kernel, seed), *rest) for seed in range(count)]
        )
    if name == "slow level alone":
        periods, kept = [settings["slowest"]], [settings["retention"]]
    else:
        count = int(name[0])
        periods, kept = [1], [0.0]
        if count == 3:
            periods.append(settings["middle"])
            kept.append(settings["middle_retention"])
        if count > 1:
            periods.append(settings["slowest"])
            kept.append(settings["retention"])
    levels = split_levels(inputs, settings.get("share", 1), periods, kept)
    rate = settings.get("rate", 1)
    return LevelledMemory(levels, classes, settings["ridge"], rate)


def main(values: flags.FlagValues) -> None:
    """Tries all values, and runs the best of them with every seed."""
    choices = {
        name: grid(**{key: values[key].value for key in LEARNERS[name]})
        for name in values.learners
        if name != "joint" or values.rounds == 1
    }
    if not choices:
        raise InputError("--learners=joint: learns no tasks that return")
    for name, each in choices.items():
        for choice in each:
            _check_levels(name, choice)
    source = inputs.load(values)
    class_tasks(len(source.texts.classes), values.tasks, 0)
    _check_rounds(source.texts, values.rounds)
    settings = source.settings | flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/class_incremental", settings)
    run = functools.partial(run_one, source=source, settings=settings)
    options: dict[str, Any] = {
        "after": "{part}, seed {seed}, {learner}: {score:.1%}, {seconds} s",
        "prepare": source.prepare,
        "jobs": values.jobs,
    }

    def cells(part, seeds, chosen):
        return [
            {"part": part, "seed": seed, "learner": name, **choice}
            for seed in seeds
            for name, each in chosen.items()
            for choice in each
        ]

    several = {name: each for name, each in choices.items() if len(each) > 1}
    tried = cells("tuning", [values.tuning_seed], several)
    later = cells("test", values.seeds, {n: c[:1] for n, c in choices.items()})
    if tried:
        sweep(records, tried, run, later=later, **options)
    for name, each in several.items():
        choices[name] = _best(records, values.tuning_seed, name, each)
    rows = sweep(records, cells("test", values.seeds, choices), run, **options)
    rows = sorted(rows, key=lambda row: list(choices).index(row["learner"]))
    report = summarize if values.rounds == 1 else summarize_stream
    report(values.out, settings, rows, source.texts)


def run_one(
    part: str,
    seed: int,
    learner: str,
    source: inputs.Source,
    settings: dict[str, Any],
    **choice: Any,
) -> dict[str, Any]:
    """Runs one learner; its ``score`` is what values are chosen by."""
    # What is answered before it is learned needs no texts held out.
    again = settings["rounds"] > 1
    examples = source.examples(
        validate=part == "tuning" and not again, vectors="klda" in learner
    )
    classes = len(source.texts.classes)
    values = ", ".join(f"{name} {value:g}" for name, value in choice.items())
    own = make_learner(
        learner, examples.x.shape[1], classes, seed, settings | choice
    )
    if again:
        names = ("tasks", "rounds", "changing", "block")
        found = measure_stream(
            own, examples, seed, **{name: settings[name] for name in names}
        )
        return {"score": found["online"], "values": values, **found}
    tasks = class_tasks(classes, settings["tasks"], seed)
    R = accuracy_matrix(own, examples, tasks, seed, learner == "joint")
    found = measure(R)
    score = found["average_accuracy"]["gem"]
    return {"score": score, "values": values, "R": R, **found}


def _best(records, seed, name, choices):
    """Returns the choice with the best score, in a list; none if all failed."""
    key = {"part": "tuning", "seed": seed, "learner": name}
    rows = [records.find(**key, **choice) for choice in choices]
    scores = [(row["score"], -n) for n, row in enumerate(rows) if row]
    return [choices[-max(scores)[1]]] if scores else []


def _check_rounds(texts, rounds):
    counts = np.bincount(texts.train_labels)
    if counts.min() < rounds:
        raise InputError(
            f"--rounds={rounds}: of {texts.classes[counts.argmin()]!r} there "
            f"are only {counts.min()} texts to learn"
        )


def _check_levels(name, choice):
    """Checks that periods divide and that the slowest level has a share."""
    periods = [choice[key] for key in ("middle", "slowest") if key in choice]
    if any(slow % fast for fast, slow in itertools.pairwise(periods)):
        raise InputError(
            f"--slowest={choice['slowest']}: must be a multiple of "
            f"--middle={choice['middle']}"
        )
    if len(periods) * choice.get("share", 0) >= 1:
        raise InputError(
            f"--share={choice['share']:g}: nothing is left for the slowest of "
            f"{name}"
        )


REPORT = (
    Report(
        "Class-incremental learning",
        ("learner", "values"),
        {
            "accuracy, %": Column("average_accuracy.gem", ".1f", 100),
            "forgetting, %": Column("forgetting.gem", ".1f", 100),
            "backward transfer, %": Column("backward_transfer.gem", ".1f", 100),
        },
        [
            Plot(
                "average_accuracy.gem",
                "accuracy, %",
                series=("learner",),
                scale=100,
            )
        ],
        only=lambda row: row["rounds"] == 1 and row["part"] == "test",
    ),
    Report(
        "Tasks that return",
        ("learner", "values"),
        {
            "before learning, %": Column("online", ".1f", 100),
            "after the first round, %": Column("returning", ".1f", 100),
            "test in the end, %": Column("final", ".1f", 100),
        },
        [
            Plot(
                "returning",
                "right before learning, after the first round, %",
                series=("learner",),
                scale=100,
            )
        ],
        only=lambda row: row["rounds"] > 1 and row["part"] == "test",
    ),
)
