"""Inputs of the scripts about classes: texts and their features."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, get_args

from experiments.classes import minilm
from experiments.classes.data import (
    Texts,
    class_tasks,
    read_texts,
    standard_library,
    validation,
)
from experiments.classes.features import Kind, make_features
from experiments.classes.matrix import accuracy_matrix, measure
from experiments.shared import flags


def input_flags(width: int) -> dict[str, flags.Flag]:
    """Returns the flags for texts and features.

    Args:
        width: default of ``--width``.
    """
    return {
        "data": flags.words([], "CSV or JSONL: one, or train and test."),
        "text_column": flags.string("text", "Of the text."),
        "label_column": flags.string("label", "Of the label."),
        "validate": flags.switch(
            "Test on a fifth of what is to be learned, to choose flags by."
        ),
        "features": flags.choice(
            "ngrams", get_args(Kind), "What is read of a text, see features.py."
        ),
        "width": flags.integer(width, "Of the features.", 8),
        "scale": flags.number(
            1.0, "Of the kernel, see features.py.", 1e-3, 1e3
        ),
    }


def load(values: flags.FlagValues) -> tuple[Texts, dict[str, Any]]:
    """Returns the texts, and the settings that identify their records.

    Raises:
        InputError: for files that cannot be read, and if a package that the
            features need is not installed.
    """
    if values.data:
        texts = read_texts(values.data, values.text_column, values.label_column)
    else:
        texts = standard_library()
    if values.validate:
        texts = validation(texts)
    if values.features == "minilm":
        minilm.model_folder()
    settings = flags.pick(values, ("features", "width", "scale"))
    return texts, settings | {"sha256": _digest(texts)}


def make_run(
    texts: Texts, settings: dict[str, Any]
) -> tuple[Callable[[], Any], Callable[..., dict[str, Any]]]:
    """Returns two functions that all runs of a command share.

    The first computes the features of all texts, once. The second takes a
    learner, a seed and whether all tasks are learned ``at_once``, and returns
    the matrix ``R`` and its metrics.

    Raises:
        InputError: if there are fewer classes than tasks.
    """
    classes, count = len(texts.classes), settings["tasks"]
    class_tasks(classes, count, 0)

    @functools.cache
    def features():
        print(f"features of {len(texts.train)} texts", flush=True)
        chosen = settings["width"], settings["scale"], settings["features"]
        return (
            make_features(texts.train, *chosen),
            make_features(texts.test, *chosen),
        )

    def run(learner, seed, at_once=False):
        tasks = class_tasks(classes, count, seed)
        R = accuracy_matrix(learner, texts, features(), tasks, seed, at_once)
        return {"R": R, **measure(R)}

    return features, run


def _digest(texts):
    """Hashes the data, because the standard library differs by version."""
    text = repr((texts.train, texts.test, texts.classes))
    labels = texts.train_labels.tobytes() + texts.test_labels.tobytes()
    return hashlib.sha256(text.encode() + labels).hexdigest()
