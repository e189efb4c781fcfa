"""The matrix ``R`` of accuracies on every task after each, and its metrics."""

from typing import Any, Protocol

import numpy as np

from experiments.classes.inputs import Examples
from nl_jax.continual import metrics

METRICS = (
    "average_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "remembering",
    "accuracy_a",
)


class Learner(Protocol):
    """Learns tasks one after another and scores classes."""

    def learn(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Learns a task: features ``[N, width]`` and labels ``[N]``."""

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Returns how likely each class is, ``[N, classes]``."""


def accuracy_matrix(
    learner: Learner,
    examples: Examples,
    tasks: list[np.ndarray],
    seed: int,
    at_once: bool = False,
) -> list[list[float | None]]:
    """Learns all tasks; returns ``R``, with ``None`` where it has no entry.

    Args:
        learner: untrained.
        examples: to learn and to be tested on.
        tasks: the classes of each task.
        seed: of the order of texts within a task.
        at_once: whether all tasks are learned as one; only the last row of
            ``R`` has entries then.
    """
    rng = np.random.default_rng(seed)
    x, labels, x_test, test_labels = examples
    order = [
        rng.permutation(np.flatnonzero(np.isin(labels, task))) for task in tasks
    ]
    if at_once:
        order = [np.concatenate(order)]
    R = np.full((len(tasks), len(tasks)), np.nan)
    first = len(tasks) - len(order)
    for i, rows in enumerate(order, first):
        learner.learn(x[rows], labels[rows])
        seen = np.concatenate(tasks[: i + 1])
        answers = seen[learner.scores(x_test)[:, seen].argmax(1)]
        right = answers == test_labels
        R[i] = [right[np.isin(test_labels, t)].mean() for t in tasks]
    return np.where(np.isnan(R), None, R).tolist()


def measure(R: list[list[float | None]]) -> dict[str, Any]:
    """Returns all metrics that ``R`` has entries for, in all conventions.

    An untrained learner answers nothing, so ``b`` is zero.
    """
    found = np.array(R, float)
    whole = bool(np.isfinite(found).all())
    out: dict[str, Any] = {}
    for name in METRICS:
        if whole or name == "average_accuracy":
            metric = getattr(metrics, name)
            out[name] = {
                convention: round(
                    metric(found, np.zeros(len(found)), convention), 6
                )
                for convention in ("gem", "continuum", "avalanche")
            }
    out["new task"] = float(np.diagonal(found).mean()) if whole else None
    return out
