"""What scripts about classes are asked for: texts and how they are read."""

import hashlib
from typing import Any, get_args

import numpy as np
from absl import flags

from experiments import minilm
from experiments.class_data import (
    Texts,
    read_texts,
    standard_library,
    validation,
)
from experiments.class_features import Kind, make_features


def define(values: flags.FlagValues, width: int) -> None:
    """Defines the flags, with a default of the width."""
    flags.DEFINE_list(
        "data",
        [],
        "CSV or JSONL: one, or train and test.",
        flag_values=values,
    )
    for name in ("text", "label"):
        flags.DEFINE_string(
            f"{name}_column", name, f"Of the {name}.", flag_values=values
        )
    flags.DEFINE_bool(
        "validate",
        False,
        "Test on a fifth of what is to be learned, to choose flags by.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "features",
        "ngrams",
        get_args(Kind),
        "What is read of a text, see class_features.py.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "width", width, "Of the features.", 8, flag_values=values
    )
    flags.DEFINE_float(
        "scale",
        1.0,
        "Of the kernel, see class_features.py.",
        1e-3,
        1e3,
        flag_values=values,
    )


def load(values: flags.FlagValues) -> tuple[Texts, dict[str, Any]]:
    """Returns the texts, and what makes a record one of them.

    Raises:
        InputError: for files that cannot be read, and if what the features
            need is not installed.
    """
    if values.data:
        texts = read_texts(values.data, values.text_column, values.label_column)
    else:
        texts = standard_library()
    if values.validate:
        texts = validation(texts)
    if values.features == "minilm":
        minilm.model_folder()
    names = ("features", "width", "scale")
    settings = {name: values[name].value for name in names}
    return texts, settings | {"sha256": _digest(texts)}


def read_features(
    texts: Texts, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features of the texts to learn and of those to be tested on."""
    print(f"features of {len(texts.train)} texts", flush=True)
    chosen = settings["width"], settings["scale"], settings["features"]
    return (
        make_features(texts.train, *chosen),
        make_features(texts.test, *chosen),
    )


def _digest(texts):
    """A hash of the data: the standard library differs between Pythons."""
    text = repr((texts.train, texts.test, texts.classes))
    labels = texts.train_labels.tobytes() + texts.test_labels.tobytes()
    return hashlib.sha256(text.encode() + labels).hexdigest()
