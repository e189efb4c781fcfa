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
level alone 87.2 and 3.5. On the standard library three levels reach 63.3, the
class mean 54.7, joint training 66.8.

Results go to ``--out``: finished runs as lines of JSON, tables, a record with
every ``R``, a plot. Finished runs are not repeated.
"""

import hashlib
import itertools
import pathlib
import time

import numpy as np
from absl import flags

from experiments import cli, report
from experiments.class_data import (
    Texts,
    class_tasks,
    read_texts,
    standard_library,
    validation,
)
from experiments.class_features import make_features
from experiments.class_learners import ClassMeans, Mahalanobis, Softmax
from experiments.class_memory import ContinuumMemory, Level, split_levels
from experiments.records import Records
from nl_jax.continual import metrics
from nl_jax.training import InputError

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
METRICS = (
    "average_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "remembering",
    "accuracy_a",
)

_COUNTS = {
    "tasks": (7, 2, "Groups of classes."),
    "width": (3072, 8, "Features."),
    "epochs": (10, 1, "Of the softmax heads, over each task."),
    "batch": (32, 2, "Examples per step of the softmax heads."),
    "buffer": (770, 1, "Examples that replay keeps."),
}
_NUMBERS = {
    "scale": (1.0, 1e-3, 1e3, "Of the kernel, see class_features.py."),
    "learning_rate": (0.01, 1e-9, 1e3, "Of the softmax heads."),
    "penalty": (1e5, 0.0, 1e12, "EWC's lambda."),
    "shrinkage": (0.2, 1e-9, 1.0, "Of the Mahalanobis distance."),
    "ridge": (0.1, 1e-9, 1e9, "Of the levels' metrics."),
    "rate": (0.1, 1e-9, 1e9, "Of the fastest level, the delta rule."),
}


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    for name, default, text in (
        ("data", [], "CSV or JSONL: one, or train and test."),
        ("learners", list(LEARNERS), f"Out of {', '.join(LEARNERS)}."),
        ("seeds", ["0", "1", "2"], "Of the order of classes and texts."),
        ("periods", ["1", "256", "512"], "Texts between a level's steps."),
        ("retentions", ["0.95", "1"], "Of the two slower levels' metrics."),
    ):
        flags.DEFINE_list(name, default, text, flag_values=values)
    for name, default in (("text", "text"), ("label", "label")):
        flags.DEFINE_string(
            f"{name}_column", default, f"Of the {name}.", flag_values=values
        )
    for name, (number, least, text) in _COUNTS.items():
        flags.DEFINE_integer(name, number, text, least, flag_values=values)
    for name, (number, least, most, text) in _NUMBERS.items():
        flags.DEFINE_float(name, number, text, least, most, flag_values=values)
    flags.DEFINE_bool(
        "validate",
        False,
        "Test on a fifth of what is to be learned, to choose flags by.",
        flag_values=values,
    )
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
        levels = [Level(width, periods[-1], retentions[-1])]
    else:
        levels = split_levels(width, int(name[0]), periods, retentions)
    return ContinuumMemory(levels, classes, settings["ridge"], settings["rate"])


def learn_all(name, texts, features, seed, settings):
    """Learns all tasks; returns ``R`` with ``None`` where it has no entry."""
    tasks = class_tasks(len(texts.classes), settings["tasks"], seed)
    rng = np.random.default_rng(seed)
    learner = make_learner(name, len(texts.classes), seed, settings)
    x, x_test = features
    order = [
        rng.permutation(np.flatnonzero(np.isin(texts.train_labels, task)))
        for task in tasks
    ]
    if name == "joint":
        order = [np.concatenate(order)]
    R = np.full((len(tasks), len(tasks)), np.nan)
    first = len(tasks) - len(order)
    for i, rows in enumerate(order, first):
        learner.learn(x[rows], texts.train_labels[rows])
        seen = np.concatenate(tasks[: i + 1])
        answers = seen[learner.scores(x_test)[:, seen].argmax(1)]
        right = answers == texts.test_labels
        R[i] = [right[np.isin(texts.test_labels, t)].mean() for t in tasks]
    return np.where(np.isnan(R), None, R).tolist()


def measure(R):
    """Returns all metrics in all conventions; ``None`` where ``R`` has none.

    A model that has learned nothing answers nothing, so that ``b`` is zero.
    """
    R = np.array(R, float)
    whole = bool(np.isfinite(R).all())
    found = {}
    for name in METRICS:
        if whole or name == "average_accuracy":
            metric = getattr(metrics, name)
            found[name] = {
                convention: round(metric(R, np.zeros(len(R)), convention), 6)
                for convention in ("gem", "continuum", "avalanche")
            }
    found["new task"] = float(np.diagonal(R).mean()) if whole else None
    return found


def main(values: flags.FlagValues) -> None:
    """Runs what has no record yet and reports everything."""
    cli.check_names("learners", values.learners, LEARNERS)
    seeds = cli.integers("seeds", values.seeds, 0)
    settings = {name: values[name].value for name in (*_COUNTS, *_NUMBERS)}
    settings |= _levels(values)
    if values.data:
        texts = read_texts(values.data, values.text_column, values.label_column)
    else:
        texts = standard_library()
    if values.validate:
        texts = validation(texts)
    class_tasks(len(texts.classes), settings["tasks"], 0)
    settings["sha256"] = _digest(texts)
    out = pathlib.Path(values.out)
    records = Records(out / "class_incremental.jsonl", settings)
    features = None
    for seed, name in itertools.product(seeds, values.learners):
        if records.find(learner=name, seed=seed) is not None:
            continue
        if features is None:
            print(f"features of {len(texts.train)} texts", flush=True)
            features = [
                make_features(part, settings["width"], settings["scale"])
                for part in (texts.train, texts.test)
            ]
        begun = time.perf_counter()
        R = learn_all(name, texts, features, seed, settings)
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


def summarize(out, settings, rows, texts):
    """Writes means and spreads over the seeds, and the matrices."""
    groups = {}
    for row in rows:
        groups.setdefault(row["learner"], []).append(row)
    head = ["learner", "accuracy, %", "incremental", "forgetting", "new task"]
    head += ["backward", "remembering", "accuracy A"]
    body = [
        [name]
        + [
            _cell(group, key)
            for key in (*METRICS[:3], "new task", *METRICS[3:4], *METRICS[5:])
        ]
        for name, group in groups.items()
    ]
    lines = report.table(head, body)
    majority = np.bincount(texts.test_labels).max() / len(texts.test_labels)
    lines += [
        "",
        f"{len(texts.train)} texts to learn and {len(texts.test)} to be tested "
        f"on, {len(texts.classes)} classes in {settings['tasks']} tasks; one "
        f"answer for all would be right {majority:.1%} of the time.",
    ]
    for name, group in groups.items():
        R = np.array([row["R"] for row in group], float).mean(0)
        lines += ["", f"R of {name}, %, mean over seeds:", ""]
        lines += report.table(
            ["after", *(f"task {j + 1}" for j in range(len(R)))],
            [
                [i + 1, *(f"{100 * value:.1f}" for value in line)]
                for i, line in enumerate(R)
                if np.isfinite(line).all()
            ],
        )
    record = {"rows": rows, "settings": settings, "classes": texts.classes}
    report.write(out, "class_incremental", lines, record, plot(groups))


def plot(groups):
    """Returns the figure of accuracy on what was seen, and of forgetting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    for name, group in groups.items():
        R = np.array([row["R"] for row in group], float).mean(0)
        tasks = np.arange(1, len(R) + 1)
        if np.isfinite(R).all():
            seen = [100 * R[i, : i + 1].mean() for i in range(len(R))]
            left.plot(tasks, seen, "o-", ms=3, label=name)
            first = 100 * R[:, 0]
            right.plot(tasks, first, "o-", ms=3, label=name)
        else:
            left.plot(tasks[-1:], 100 * R[-1].mean(), "k*", label=name)
    for axes, title in ((left, "all tasks so far"), (right, "the first task")):
        axes.set_xlabel("tasks learned")
        axes.set_ylabel(f"accuracy on {title}, %")
    left.legend(fontsize=6)
    return figure


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


def _digest(texts: Texts) -> str:
    """A hash of the data: the standard library differs between Pythons."""
    text = repr((texts.train, texts.test, texts.classes))
    labels = texts.train_labels.tobytes() + texts.test_labels.tobytes()
    return hashlib.sha256(text.encode() + labels).hexdigest()


def _cell(group, key):
    found = [row.get(key) for row in group]
    if None in found:
        return "-"
    found = [100 * (x["gem"] if isinstance(x, dict) else x) for x in found]
    return f"{np.mean(found):.1f} +- {np.std(found):.1f}"


if __name__ == "__main__":
    cli.run(define, main)
