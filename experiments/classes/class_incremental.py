r"""Class-incremental learning: how much of the first task is left at the end?

A learner reads the classes in groups, each group once. It is then tested on all
classes that it has seen, without being told the group of a text. Row ``i`` of
the matrix ``R`` is the accuracy on every task after task ``i``.

==================== =======================================================
naive, ewc, replay   a linear softmax head trained with Adam
                     (``learners.py``)
class mean           nearest mean of the same features
mahalanobis          the same under one shrunk covariance
joint                the softmax head on all tasks at once; ``R`` has only its
                     last row
1, 2, 3 levels       a continuum memory with that many levels and the same
                     number of weights (``memory.py``); no replay
slow level alone     its slowest level with all the weights
==================== =======================================================

All learners read the same features, which are fixed before any text is seen
(``features.py``). No learner answers with a class that it has not seen, so
``R`` is zero above its diagonal and forward transfer is zero, by construction.

Command (a few minutes on two cores)::

    python -m experiments.class_incremental

The default data is the standard library. ``--data=train.csv,test.csv`` with
``--text_column`` and ``--label_column`` reads other texts. On shared cores,
``OPENBLAS_NUM_THREADS=1`` makes the levels several times faster.

Measured on Banking77 (``docs/continual_learning.md``): mean final accuracy
and forgetting, percent, three seeds: naive 15.2 and 94.9, ewc 28.6 and 78.9,
replay 69.4 and 30.1, class mean 78.0 and 6.9, mahalanobis 87.9 and 4.5, joint
89.5, 1 level 38.2 and 63.0, 2 levels 84.9 and 9.8, 3 levels 87.1 and 4.2, slow
level alone 87.2 and 3.5. On embeddings (``--features=minilm --width=1024``; see
``minilm.py`` for the package) 3 levels reach 91.8 and 3.1, the class mean 85.1,
mahalanobis 91.4, joint 92.6. On the standard library three levels reach 63.3,
the class mean 54.7, joint training 66.8.

Results go to ``--out``: runs as JSON files, tables, a record with
every ``R``, and a plot. Finished runs are not repeated.
"""

import itertools

from experiments.classes import inputs
from experiments.classes.learners import ClassMeans, Mahalanobis, Softmax
from experiments.classes.memory import (
    LevelChoice,
    LevelledMemory,
    split_levels,
)
from experiments.classes.summary import summarize
from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import grid, sweep
from nl_jax.errors import InputError

LEARNERS = (
    "naive",
    "ewc",
    "replay",
    "class mean",
    "mahalanobis",
    "joint",
    "1 level",
    "2 levels",
    "3 levels",
    "slow level alone",
)
_SETTINGS = {
    "tasks": flags.integer(7, "Groups of classes.", 2),
    "epochs": flags.integer(10, "Of the softmax heads, over each task."),
    "batch": flags.integer(32, "Examples per step of the softmax heads.", 2),
    "buffer": flags.integer(770, "Examples that replay keeps."),
    "learning_rate": flags.number(0.01, "Of the softmax heads.", 1e-9, 1e3),
    "penalty": flags.number(1e5, "EWC's lambda.", 0.0, 1e12),
    "shrinkage": flags.number(0.2, "Of the Mahalanobis distance.", 1e-9, 1.0),
    "ridge": flags.number(0.1, "Of the levels' metrics.", 1e-9, 1e9),
    "rate": flags.number(
        0.1, "Of the fastest level, the delta rule.", 1e-9, 1e9
    ),
    "periods": flags.integers(
        [1, 256, 512], "Texts between a level's steps.", 1
    ),
    "retentions": flags.numbers(
        [0.95, 1.0],
        "Of the two slower levels' metrics.",
        lambda share: 0 <= share <= 1,
        "needs two in [0, 1]",
    ),
}
FLAGS = {
    **inputs.input_flags(width=3072),
    "learners": flags.words(list(LEARNERS), known=LEARNERS),
    "seeds": flags.seeds([0, 1, 2], "Of the order of classes and texts."),
    **_SETTINGS,
    "out": flags.folder("runs/class_incremental", "Folder."),
}


def make_learner(name, classes, seed, settings):
    """Returns an untrained learner."""
    width = settings["width"]
    if name in ("naive", "ewc", "replay", "joint"):
        return Softmax(
            width,
            classes,
            seed,
            epochs=settings["epochs"],
            batch=settings["batch"],
            rate=settings["learning_rate"],
            penalty=settings["penalty"] if name == "ewc" else 0.0,
            buffer=settings["buffer"] if name == "replay" else 0,
        )
    if name == "class mean":
        return ClassMeans(width, classes)
    if name == "mahalanobis":
        return Mahalanobis(width, classes, settings["shrinkage"])
    periods, retentions = settings["periods"], settings["retentions"]
    if name == "slow level alone":
        levels = [LevelChoice(width, periods[-1], retentions[-1])]
    else:
        levels = split_levels(width, int(name[0]), periods, retentions)
    return LevelledMemory(levels, classes, settings["ridge"], settings["rate"])


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    _check_levels(values.periods, values.retentions)
    texts, settings = inputs.load(values)
    settings |= flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/class_incremental", settings)
    features, learn = inputs.make_run(texts, settings)

    def run(learner, seed):
        own = make_learner(learner, len(texts.classes), seed, settings)
        return learn(own, seed, at_once=learner == "joint")

    sweep(
        records,
        grid(seed=values.seeds, learner=values.learners),
        run,
        after="seed {seed}, {learner}: {average_accuracy[gem]:.1%}, "
        "{seconds} s",
        prepare=features,
    )
    cells = grid(learner=values.learners, seed=values.seeds)
    rows = [row for cell in cells if (row := records.find(**cell))]
    summarize(values.out, settings, rows, texts)


def _check_levels(periods, retentions):
    flag = f"--periods={','.join(map(str, periods))}"
    if len(periods) != 3 or periods[0] != 1 or periods[1] < 2:
        raise InputError(
            f"{flag}: needs three, the first 1 and the others more"
        )
    if any(slow % fast for fast, slow in itertools.pairwise(periods)):
        raise InputError(f"{flag}: each must be a multiple of the one before")
    if len(retentions) != 2:
        given = ",".join(f"{share:g}" for share in retentions)
        raise InputError(f"--retentions={given}: needs two in [0, 1]")


REPORT = Report(
    "Class-incremental learning",
    ("learner",),
    {
        "accuracy, %": Column("average_accuracy.gem", ".1f", 100),
        "forgetting, %": Column("forgetting.gem", ".1f", 100),
        "backward transfer, %": Column("backward_transfer.gem", ".1f", 100),
    },
    [Plot("average_accuracy.gem", "accuracy, %", scale=100)],
)
