"""Tables and the plot of learners of classes."""

import numpy as np

from experiments import report
from experiments.class_matrix import METRICS


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
            cell(group, key)
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
    report.write(out, "class_incremental", lines, record, _plot(groups))


def cell(group, key):
    """Returns mean and spread of a metric, in percent, for a table."""
    found = shares(group, key)
    if None in found:
        return "-"
    return f"{np.mean(found):.1f} +- {np.std(found):.1f}"


def shares(group, key):
    """Returns a metric of each run, in percent; ``None`` if it has none."""
    found = [row.get(key) for row in group]
    found = [x["gem"] if isinstance(x, dict) else x for x in found]
    return [None if x is None else 100 * x for x in found]


def _plot(groups):
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
