"""Streams in which tasks return and labels change, answered before learned.

Each task comes once in every round, with its share of its texts, and the order
of the tasks is new in each round. In every second round the labels of some
pairs of classes are swapped. A learner answers a few texts at a time and learns
them then, so it is measured on what it is asked while it learns.
"""

from typing import Any, NamedTuple

import numpy as np

from experiments.classes.data import class_tasks
from experiments.classes.inputs import Examples
from experiments.classes.matrix import Learner


class Visit(NamedTuple):
    """A part of a task that is learned at one time."""

    rows: np.ndarray
    """Of the examples."""
    labels: np.ndarray
    """Their labels at that time, int32."""


def arrange_visits(
    labels: np.ndarray, tasks: int, rounds: int, changing: float, seed: int
) -> tuple[list[Visit], np.ndarray]:
    """Returns the visits, and the label of each class in the last round.

    Args:
        labels: classes of the examples.
        tasks: groups of classes.
        rounds: how often each task comes.
        changing: share of the classes whose labels are swapped in pairs.
        seed: of the tasks, the pairs and all orders.
    """
    rng = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    groups = class_tasks(classes, tasks, seed)
    parts = [
        np.array_split(rng.permutation(np.flatnonzero(labels == k)), rounds)
        for k in range(classes)
    ]
    pairs = rng.permutation(classes)[: int(changing * classes / 2) * 2]
    plain = np.arange(classes, dtype=labels.dtype)
    swapped = plain.copy()
    swapped[pairs] = pairs.reshape(-1, 2)[:, ::-1].ravel()
    visits = []
    for number in range(rounds):
        meaning = swapped if number % 2 else plain
        for group in rng.permutation(tasks):
            own = [parts[k][number] for k in groups[group]]
            rows = rng.permutation(np.concatenate(own))
            visits.append(Visit(rows, meaning[labels[rows]]))
    return visits, meaning


def online_accuracy(
    learner: Learner, examples: Examples, visits: list[Visit], block: int
) -> list[float]:
    """Returns the accuracy in each visit, of answers before learning.

    Args:
        learner: untrained.
        examples: to be answered and learned.
        visits: in turn.
        block: texts that are answered before they are learned together.
    """
    seen = np.zeros(examples.labels.max() + 1, bool)
    found = []
    for visit in visits:
        right = 0
        for start in range(0, len(visit.rows), block):
            x = examples.x[visit.rows[start : start + block]]
            labels = visit.labels[start : start + block]
            if seen.any():
                scores = np.where(seen, learner.scores(x), -np.inf)
                right += int((scores.argmax(1) == labels).sum())
            learner.learn(x, labels)
            seen[labels] = True
        found.append(right / len(visit.rows))
    return found


def measure_stream(
    learner: Learner,
    examples: Examples,
    seed: int,
    *,
    tasks: int,
    rounds: int,
    changing: float,
    block: int,
) -> dict[str, Any]:
    """Returns the accuracy in the stream, and after it on the test."""
    visits, meaning = arrange_visits(
        examples.labels, tasks, rounds, changing, seed
    )
    each = online_accuracy(learner, examples, visits, block)
    sizes = [len(visit.rows) for visit in visits]
    answers = learner.scores(examples.x_test).argmax(1)
    return {
        "visits": each,
        "online": float(np.average(each, weights=sizes)),
        "returning": float(np.average(each[tasks:], weights=sizes[tasks:])),
        "final": float((answers == meaning[examples.test_labels]).mean()),
    }
