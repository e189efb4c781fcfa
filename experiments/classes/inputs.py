"""Inputs of the scripts about classes: texts and their vectors."""

import functools
import hashlib
import os
import pathlib
from typing import Any, NamedTuple, get_args

import numpy as np

from experiments.classes import minilm
from experiments.classes.data import (
    Texts,
    read_texts,
    standard_library,
    validation_rows,
)
from experiments.classes.features import Cosines, Kind, encode
from experiments.shared import flags

INPUT_FLAGS = {
    "data": flags.words([], "CSV or JSONL: one, or train and test."),
    "text_column": flags.string("text", "Of the text."),
    "label_column": flags.string("label", "Of the label."),
    "features": flags.choice(
        "ngrams", get_args(Kind), "What is read of a text, see features.py."
    ),
    "scale": flags.number(1.0, "Inverse width of the kernel.", 1e-3, 1e3),
}
"""Flags for texts and features; ``width`` is the script's own."""


class Examples(NamedTuple):
    """What is read of texts, and their classes."""

    x: np.ndarray
    """Of the texts to learn, ``[N, width]`` float32."""
    labels: np.ndarray
    """Of the texts to learn, ``[N]`` int32."""
    x_test: np.ndarray
    test_labels: np.ndarray


class Source(NamedTuple):
    """Texts, and the file that keeps their vectors."""

    texts: Texts
    settings: dict[str, Any]
    """What identifies records of these texts and features."""
    file: pathlib.Path

    def prepare(self) -> None:
        """Writes the vectors of all texts, unless they are there."""
        if self.file.exists():
            return
        texts = [*self.texts.train, *self.texts.test]
        print(f"features of {len(texts)} texts", flush=True)
        x = encode(texts, self.settings["width"], self.settings["features"])
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(f".{os.getpid()}.npy")
        np.save(fresh, x)
        fresh.replace(self.file)

    def examples(
        self, validate: bool = False, vectors: bool = False
    ) -> Examples:
        """Returns what a learner reads.

        Args:
            validate: whether a fifth of the training texts is the test.
            vectors: whether texts are vectors, not cosines of them.
        """
        width = None if vectors else self.settings["width"]
        x = _read(self.file, width, self.settings["scale"])
        labels = self.texts.train_labels
        if validate:
            learn, test = validation_rows(self.texts)
            return Examples(x[learn], labels[learn], x[test], labels[test])
        count = len(labels)
        return Examples(x[:count], labels, x[count:], self.texts.test_labels)


def load(values: flags.FlagValues) -> Source:
    """Returns the texts that the flags of a script name.

    Raises:
        InputError: for files that cannot be read, and if a package that the
            features need is not installed.
    """
    if values.data:
        texts = read_texts(values.data, values.text_column, values.label_column)
    else:
        texts = standard_library()
    if values.features == "minilm":
        minilm.model_folder()
    settings = flags.pick(values, ("features", "width", "scale"))
    settings["sha256"] = _digest(texts)
    # The width is that of projected n-grams; embeddings have their own.
    kind = "minilm" if values.features == "minilm" else f"{values.width}-ngrams"
    name = f"{kind}-{settings['sha256'][:12]}.npy"
    return Source(texts, settings, pathlib.Path(values.out, "features", name))


@functools.lru_cache(2)
def _read(file, width, scale):
    x = np.load(file)
    return Cosines(x.shape[1], width, scale)(x) if width else x


def _digest(texts):
    """Hashes the data, because the standard library differs by version."""
    text = repr((texts.train, texts.test, texts.classes))
    labels = texts.train_labels.tobytes() + texts.test_labels.tobytes()
    return hashlib.sha256(text.encode() + labels).hexdigest()
