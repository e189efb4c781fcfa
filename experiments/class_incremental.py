r"""Classes that come task after task: what is left of the first at the end?

A learner is given the classes in groups, each group once, and is then asked
about all that it has seen, without being told of which group a text is. Row
``i`` of the matrix ``R`` is the accuracy on every task after task ``i``.

==================== =======================================================
naive, ewc, replay   a linear softmax head by Adam (``class_learners.py``)
class mean           nearest mean of the same features
mahalanobis          the same under one shrunk covariance
joint                the softmax head on everything at once; has a last row
1, 2, 3 levels       a continuum memory, so many of its levels, with equally
                     many weights (``class_memory.py``); no replay
slow level alone     its slowest level with all the weights
==================== =======================================================

All read the same features, which are fixed before any text is seen
(``class_features.py``). Classes not seen yet are never answered: ``R`` is zero
above its diagonal, and so is forward transfer, by construction.

Command (a few minutes on two cores)::

    python -m experiments.class_incremental

The default is the standard library; ``--data=train.csv,test.csv`` with
``--text_column`` and ``--label_column`` takes any texts. Where others share the
cores, ``OPENBLAS_NUM_THREADS=1`` makes the levels several times faster.

Measured on Banking77 (``docs/continual_learning.md``), mean accuracy in the end
and forgetting, percent, three seeds: naive 15.2 and 94.9, ewc 28.6 and 78.9,
replay 69.4 and 30.1, class mean 78.0 and 6.9, mahalanobis 87.9 and 4.5, joint
89.5, 1 level 38.2 and 63.0, 2 levels 84.9 and 9.8, 3 levels 87.1 and 4.2, slow
level alone 87.2 and 3.5. On embeddings (``--features=minilm --width=1024``; see
``minilm.py`` for the package) 3 levels reach 91.8 and 3.1, the class mean 85.1,
mahalanobis 91.4, joint 92.6. On the standard library three levels reach 63.3,
the class mean 54.7, joint training 66.8.

Results go to ``--out``: finished runs as lines of JSON, tables, a record with
every ``R``, a plot. Finished runs are not repeated.
"""

import itertools
import pathlib
import time

from absl import flags

from experiments import class_inputs, cli
from experiments.class_data import class_tasks
from experiments.class_learners import ClassMeans, Mahalanobis, Softmax
from experiments.class_matrix import accuracy_matrix, measure
from experiments.class_memory import ContinuumMemory, LevelChoice, split_levels
from experiments.class_report import summarize
from experiments.records import Records
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
_COUNTS = {
    "tasks": (7, 2, "Groups of classes."),
    "epochs": (10, 1, "Of the softmax heads, over each task."),
    "batch": (32, 2, "Examples per step of the softmax heads."),
    "buffer": (770, 1, "Examples that replay keeps."),
}
_NUMBERS = {
    "learning_rate": (0.01, 1e-9, 1e3, "Of the softmax heads."),
    "penalty": (1e5, 0.0, 1e12, "EWC's lambda."),
    "shrinkage": (0.2, 1e-9, 1.0, "Of the Mahalanobis distance."),
    "ridge": (0.1, 1e-9, 1e9, "Of the levels' metrics."),
    "rate": (0.1, 1e-9, 1e9, "Of the fastest level, the delta rule."),
}


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    class_inputs.define(values, width=3072)
    for name, default, text in (
        ("learners", list(LEARNERS), f"Out of {', '.join(LEARNERS)}."),
        ("seeds", ["0", "1", "2"], "Of the order of classes and texts."),
        ("periods", ["1", "256", "512"], "Texts between a level's steps."),
        ("retentions", ["0.95", "1"], "Of the two slower levels' metrics."),
    ):
        flags.DEFINE_list(name, default, text, flag_values=values)
    for name, (number, least, text) in _COUNTS.items():
        flags.DEFINE_integer(name, number, text, least, flag_values=values)
    for name, (number, least, most, text) in _NUMBERS.items():
        flags.DEFINE_float(name, number, text, least, most, flag_values=values)
    flags.DEFINE_string(
        "out", "runs/class_incremental", "Folder.", flag_values=values
    )


def make_learner(name, classes, seed, settings):
    """Returns a learner that has learned nothing."""
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
    return ContinuumMemory(levels, classes, settings["ridge"], settings["rate"])


def main(values: flags.FlagValues) -> None:
    """Runs what has no record yet and reports everything."""
    cli.check_names("learners", values.learners, LEARNERS)
    seeds = cli.integers("seeds", values.seeds, 0)
    settings = {name: values[name].value for name in (*_COUNTS, *_NUMBERS)}
    settings |= _levels(values)
    texts, inputs = class_inputs.load(values)
    settings |= inputs
    class_tasks(len(texts.classes), settings["tasks"], 0)
    out = pathlib.Path(values.out)
    records = Records(out / "class_incremental.jsonl", settings)
    features = None
    for seed, name in itertools.product(seeds, values.learners):
        if records.find(learner=name, seed=seed) is not None:
            continue
        if features is None:
            features = class_inputs.read_features(texts, settings)
        begun = time.perf_counter()
        classes = len(texts.classes)
        R = accuracy_matrix(
            make_learner(name, classes, seed, settings),
            texts,
            features,
            class_tasks(classes, settings["tasks"], seed),
            seed,
            at_once=name == "joint",
        )
        seconds = round(time.perf_counter() - begun, 1)
        records.add(
            {"learner": name, "seed": seed, "R": R, **measure(R)}
            | {"seconds": seconds}
        )
        accuracy = records.rows[-1]["average_accuracy"]["gem"]
        print(f"seed {seed}, {name}: {accuracy:.1%}, {seconds} s", flush=True)
    rows = [
        records.find(learner=name, seed=seed)
        for name, seed in itertools.product(values.learners, seeds)
    ]
    summarize(out, settings, rows, texts)


def _levels(values):
    periods = cli.integers("periods", values.periods, 1)
    text = ",".join(values.retentions)
    try:
        retentions = [float(word) for word in values.retentions]
    except ValueError as error:
        raise InputError(f"--retentions={text}: {error}") from error
    if len(periods) != 3 or periods[0] != 1 or periods[1] < 2:
        raise InputError(
            f"--periods={','.join(values.periods)}: needs three, the first 1 "
            "and the others more"
        )
    if any(slow % fast for fast, slow in itertools.pairwise(periods)):
        raise InputError(
            f"--periods={','.join(values.periods)}: each must be a multiple of "
            "the one before"
        )
    if len(retentions) != 2 or not all(0 <= x <= 1 for x in retentions):
        raise InputError(f"--retentions={text}: needs two in [0, 1]")
    return {"periods": periods, "retentions": retentions}


if __name__ == "__main__":
    cli.run(define, main)
