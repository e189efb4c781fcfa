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

Documents are text files, the lines of JSONL files, or what a prepared corpus
holds out. The first token of each has nothing before it, so it is not counted;
with ``stream`` the first of all.
"""

import pathlib
import re
import time
from collections.abc import Iterable

from experiments.language.held_out import each, held_out
from experiments.language.steps import LIST_STEPS, print_steps
from experiments.shared import flags, table
from experiments.shared.records import write
from nl_jax import training
from nl_jax.data import (
    CONTEXTS,
    Document,
    is_prepared,
    open_prepared,
    read_blocks,
    tokenize,
)
from nl_jax.data.array_records import MANIFEST
from nl_jax.data.documents import TextFields, read_documents
from nl_jax.errors import InputError

_DOCUMENTS = re.compile(r"\.(jsonl|ndjson|jsonlines|parquet)(\.gz|\.zst)?$")
"""Ends of the names of files that hold several documents."""
FLAGS = {
    "workdir": flags.string("runs/default", "Folder of a training run."),
    "step": flags.integer(None, "Which checkpoint; default newest."),
    "list_steps": LIST_STEPS,
    "file": flags.string(
        None,
        "Text or JSONL file, folder or prepared corpus; default the held-out "
        "text.",
    ),
    "text_field": flags.string("text", "Field of JSONL files with the text."),
    "prompt_field": flags.string(
        "", "Field of JSONL files with a prompt, which is not counted."
    ),
    "context": flags.choice(
        "stream", CONTEXTS, "What is read before each token."
    ),
    "chunk": flags.integer(512, "Tokens per call, except in windows."),
    "out": flags.folder(None, "Folder for results; default workdir."),
}


def main(values: flags.FlagValues) -> None:
    """Evaluates, prints a table and writes results."""
    if values.list_steps:
        print_steps(values.workdir)
        return
    loaded = training.load_model(values.workdir, values.step)
    config = loaded.meta["config"]
    window = values.context == "window"
    file = pathlib.Path(values.file or "")
    several = (
        file.is_dir()
        or file.name == MANIFEST
        or _DOCUMENTS.search(file.name.lower())
    )
    streamed = not (window or several)
    if not values.file:
        documents = held_out(loaded, joined=window)
    elif streamed:
        documents = _blocks(file, loaded.tokenizer)
    else:
        documents = _documents(values, loaded.tokenizer)
    began = time.monotonic()
    positions = training.evaluate(
        loaded.model,
        loaded.variables,
        documents,
        loaded.tokenizer.byte_lengths,
        # The only document of a text file is the stream.
        context="stream" if streamed and values.file else values.context,
        length=config["seq_len"] if window else values.chunk,
        rows=config["batch_size"],
    )
    seconds = time.monotonic() - began
    source = values.file or "the held-out text"
    if not positions.tokens:
        raise InputError(
            f"{source} has no document of 2 tokens, or prompts only; give a "
            "longer text"
        )
    lines = table.markdown(
        ["from byte", "bytes", "bits per byte"],
        [
            [row["start"], row["bytes"], f"{row['bits_per_byte']:.3f}"]
            for row in positions.rows()
        ],
    )
    record = {
        "file": values.file,
        "context": values.context,
        "bits_per_byte": positions.total(),
        "tokens": positions.tokens,
        "seconds": round(seconds, 2),
        "by_position": positions.rows(),
        "peak_memory_bytes": training.peak_memory_bytes(),
        "step": loaded.meta["step"],
        "config": config,
        "seed": config["seed"],
    }
    out = training.open_folder(values.out or values.workdir, "--out")
    write(out, "evaluation", lines, record)
    training.plot_positions(out / "evaluation.png", positions.rows())
    print(
        f"{source}, context {values.context}: {positions.total():.3f} bits per "
        f"byte, {positions.tokens} tokens, "
        f"{positions.tokens / seconds:,.0f} tokens/s"
    )


def _blocks(file, tokenizer) -> Iterable[Document]:
    """Yields a text file, which may be larger than memory, in pieces."""
    for block in read_blocks(file):
        yield Document(tokenizer.encode(block))


def _documents(values, tokenizer) -> Iterable[Document]:
    """Returns documents; of a prepared corpus, those that it holds out."""
    if is_prepared(values.file, "--file"):
        corpus = open_prepared(values.file, field="--file")
        if corpus.tokenizer.to_json()["hash"] != tokenizer.to_json()["hash"]:
            raise InputError(
                f"--file={values.file} was prepared with another tokenizer "
                "than the run's; prepare it with that one"
            )
        return each([corpus.held_out])
    fields = TextFields(values.text_field, values.prompt_field, "--")
    found = read_documents("--file", [values.file], fields)
    return (tokenize(document, tokenizer) for document in found)
