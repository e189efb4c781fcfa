"""Tables and the plot of class-incremental learning."""

import numpy as np

from experiments.classes.matrix import METRICS
from experiments.shared import plot, table
from experiments.shared.records import write
from experiments.shared.sweep import grouped


def summarize(out, settings, rows, texts):
    """Writes means and spreads over the seeds, and the matrices."""
    groups = grouped(rows, "learner")
    head = ["learner", "accuracy, %", "incremental", "forgetting", "new task"]
    head += ["backward", "remembering", "accuracy A"]
    keys = (*METRICS[:3], "new task", *METRICS[3:4], *METRICS[5:])
    body = [
        [name, *(cell(group, key) for key in keys)]
        for name, group in groups.items()
    ]
    lines = table.markdown(head, body)
    majority = np.bincount(texts.test_labels).max() / len(texts.test_labels)
    lines += [
        "",
        f"{len(texts.train)} texts to learn and {len(texts.test)} to be tested "
        f"on, {len(texts.classes)} classes in {settings['tasks']} tasks; one "
        f"answer for all would be right {majority:.1%} of the time.",
    ]
    first, seen = {}, {}
    for name, group in groups.items():
        R = np.array([row["R"] for row in group], float).mean(0)
        lines += ["", f"R of {name}, %, mean over seeds:", ""]
        lines += table.markdown(
            ["after", *(f"task {j + 1}" for j in range(len(R)))],
            [
                [i + 1, *(f"{100 * value:.1f}" for value in line)]
                for i, line in enumerate(R)
                if np.isfinite(line).all()
            ],
        )
        tasks, last = np.arange(1, len(R) + 1), 100 * R[-1].mean()
        seen[name] = tasks[-1:], [last]
        if np.isfinite(R).all():
            seen[name] = tasks, [100 * R[i, : i + 1].mean() for i in tasks - 1]
            first[name] = tasks, 100 * R[:, 0]
    y = "accuracy on {}, %"
    figure = plot.curves(
        *(
            plot.Panel(drawn, "tasks learned", y.format(title), style="o-")
            for drawn, title in (
                (seen, "all tasks so far"),
                (first, "the first task"),
            )
        ),
        size=(9, 4),
    )
    record = {"rows": rows, "settings": settings, "classes": texts.classes}
    write(out, "class_incremental", lines, record, figure)


def summarize_stream(out, settings, rows, texts):
    """Writes the accuracy of answers before learning, and after the stream."""
    keys = {
        "online": "before learning, %",
        "returning": "after the first round",
        "final": "test in the end",
    }
    groups = grouped(rows, "learner")
    lines = table.markdown(
        ["learner", *keys.values()],
        [
            [
                name,
                *(
                    table.mean_error([100 * row[key] for row in group], ".1f")
                    for key in keys
                ),
            ]
            for name, group in groups.items()
        ],
    )
    lines += [
        "",
        f"{len(texts.train)} texts, each once, in {settings['tasks']} tasks "
        f"that come {settings['rounds']} times; mean ± standard error.",
    ]
    curves = {}
    for name, group in groups.items():
        visits = 100 * np.mean([row["visits"] for row in group], 0)
        rounds = visits.reshape(settings["rounds"], -1).mean(1)
        curves[name] = np.arange(1, len(rounds) + 1), rounds
    panel = plot.Panel(curves, "round", "right before learning, %", style="o-")
    record = {"rows": rows, "settings": settings, "classes": texts.classes}
    write(out, "class_incremental", lines, record, plot.curves(panel))


def cell(group, key):
    """Returns mean and spread of a metric, in percent, for a table."""
    found = shares(group, key)
    return "-" if None in found else table.spread(found)


def shares(group, key):
    """Returns a metric of each run, in percent; ``None`` if it is missing."""
    found = [row.get(key) for row in group]
    found = [x["gem"] if isinstance(x, dict) else x for x in found]
    return [None if x is None else 100 * x for x in found]
