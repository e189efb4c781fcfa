"""Streams a file of any length through a checkpoint.

``python -m experiments.evaluate --workdir=runs/default --file=book.txt``
prints bits per byte by position in the stream, in buckets that double in size,
and writes ``evaluation.json``, ``evaluation.md`` and ``evaluation.png`` into
``--out``. The file is read in pieces and the model keeps only its fast state,
so memory does not grow with the file.
"""

import pathlib
import time

from experiments.language.steps import LIST_STEPS, print_steps
from experiments.shared import flags, table
from experiments.shared.records import write
from nl_jax import continual, training
from nl_jax.continual import PositionTable
from nl_jax.data import read_blocks
from nl_jax.errors import InputError

FLAGS = {
    "workdir": flags.string("runs/default", "Folder of a training run."),
    "step": flags.integer(None, "Which checkpoint; default newest."),
    "list_steps": LIST_STEPS,
    "file": flags.string(None, "UTF-8 text to read."),
    "chunk": flags.integer(512, "Tokens per call."),
    "out": flags.folder(None, "Folder for results; default workdir."),
}


def main(values: flags.FlagValues) -> None:
    """Streams, prints a table and writes results."""
    if values.list_steps:
        print_steps(values.workdir)
        return
    if values.file is None:
        raise InputError("--file is missing; give a text file")
    loaded = training.load_model(values.workdir, values.step)
    tokenizer = loaded.tokenizer
    positions = PositionTable()
    count, began = 0, time.monotonic()
    tokens = map(tokenizer.encode, read_blocks(values.file))
    for read in continual.stream(
        loaded.model, loaded.variables, tokens, chunk=values.chunk
    ):
        positions.add(read.nats[0], tokenizer.byte_lengths[read.targets[0]])
        count += read.targets.size
    if not count:
        raise InputError(
            f"{values.file} has fewer than 2 tokens; give a longer text"
        )
    seconds = time.monotonic() - began
    lines = table.markdown(
        ["from byte", "bytes", "bits per byte"],
        [
            [row["start"], row["bytes"], f"{row['bits_per_byte']:.3f}"]
            for row in positions.rows()
        ],
    )
    record = {
        "file": str(values.file),
        "bits_per_byte": positions.total(),
        "tokens": count,
        "seconds": round(seconds, 2),
        "by_position": positions.rows(),
        "peak_memory_bytes": training.peak_memory_bytes(),
        "step": loaded.meta["step"],
        "config": loaded.meta["config"],
        "seed": loaded.meta["config"]["seed"],
    }
    out = pathlib.Path(values.out or values.workdir)
    write(out, "evaluation", lines, record)
    training.plot_positions(out / "evaluation.png", positions.rows())
    print(
        f"all: {positions.total():.3f} bits per byte, {count} tokens, "
        f"{count / seconds:,.0f} tokens/s"
    )
