"""Streams a file of any length through a checkpoint.

``python -m experiments.evaluate --workdir=runs/default --file=book.txt``
prints bits per byte by position in the stream, in buckets that double in size,
and writes ``evaluation.json``, ``evaluation.md`` and ``evaluation.png`` into
``--out``. The file is read in pieces and the model keeps only its fast state,
so that memory does not grow with the file.
"""

import pathlib
import time

from absl import flags

from experiments import cli
from nl_jax import continual, training
from nl_jax.continual import PositionTable
from nl_jax.data import read_blocks
from nl_jax.errors import InputError


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "workdir",
        "runs/default",
        "Folder of a training run.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "step", None, "Which checkpoint; default newest.", flag_values=values
    )
    flags.DEFINE_string("file", None, "UTF-8 text to read.", flag_values=values)
    flags.DEFINE_integer(
        "chunk", 512, "Tokens per call.", 1, flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "Folder for results; default workdir.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Streams, prints a table and writes results."""
    if values.file is None:
        raise InputError("--file is missing; give a text file")
    loaded = training.load_model(values.workdir, values.step)
    tokenizer = loaded.tokenizer
    table = PositionTable()
    count, began = 0, time.monotonic()
    tokens = map(tokenizer.encode, read_blocks(values.file))
    for read in continual.stream(
        loaded.model, loaded.variables, tokens, chunk=values.chunk
    ):
        table.add(read.nats[0], tokenizer.byte_lengths[read.targets[0]])
        count += read.targets.size
    if not count:
        raise InputError(
            f"{values.file} has fewer than 2 tokens; give a longer text"
        )
    seconds = time.monotonic() - began
    lines = ["| from byte | bytes | bits per byte |", "|---:|---:|---:|"]
    for row in table.rows():
        lines.append(
            f"| {row['start']} | {row['bytes']} | {row['bits_per_byte']:.3f} |"
        )
    markdown = "\n".join(lines)
    print(markdown)
    print(
        f"all: {table.total():.3f} bits per byte, {count} tokens, "
        f"{count / seconds:,.0f} tokens/s"
    )
    out = pathlib.Path(values.out or values.workdir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.md").write_text(markdown + "\n")
    training.plot_positions(out / "evaluation.png", table.rows())
    training.write_json(
        out / "evaluation.json",
        {
            "file": str(values.file),
            "bits_per_byte": table.total(),
            "tokens": count,
            "seconds": round(seconds, 2),
            "by_position": table.rows(),
            "peak_memory_bytes": training.peak_memory_bytes(),
            "step": loaded.meta["step"],
            "config": loaded.meta["config"],
            "seed": loaded.meta["config"]["seed"],
            "versions": training.versions(),
            "git_revision": training.git_revision(),
        },
    )


if __name__ == "__main__":
    cli.run(define, main)
