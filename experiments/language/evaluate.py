"""Measures bits per byte of a text that a checkpoint was not trained on.

``python -m experiments.evaluate --workdir=runs/default --file=book.txt``
prints bits per byte by position, in buckets that double in size, and writes
``evaluation.json``, ``evaluation.md`` and ``evaluation.png`` into ``--out``.
``--context`` is what the model has read before each token:

- ``stream``: the whole text, or all documents, so far. A text file is read in
  pieces and the model keeps only its fast state, so memory does not grow.
- ``document``: its document so far. Each document starts from nothing.
- ``window``: at most ``seq_len`` tokens, in windows that start from nothing, as
  in training. Without ``--file`` this repeats training's held-out figure.

Documents are text files or the lines of JSONL files. The first token of each
has nothing before it, so it is not counted; with ``stream`` the first of all.
"""

import itertools
import pathlib
import time

from experiments.language.steps import LIST_STEPS, print_steps
from experiments.shared import flags, table
from experiments.shared.records import write
from nl_jax import training
from nl_jax.data import CONTEXTS
from nl_jax.errors import InputError

FLAGS = {
    "workdir": flags.string("runs/default", "Folder of a training run."),
    "step": flags.integer(None, "Which checkpoint; default newest."),
    "list_steps": LIST_STEPS,
    "file": flags.string(
        None, "Text or JSONL file, or folder; default the held-out text."
    ),
    "text_field": flags.string("text", "Field of JSONL files with the text."),
    "context": flags.choice(
        "stream", CONTEXTS, "What is read before each token."
    ),
    "chunk": flags.integer(512, "Tokens per call, except in windows."),
    "out": flags.folder(None, "Folder for results; default workdir."),
}
