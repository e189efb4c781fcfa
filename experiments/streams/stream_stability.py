"""A million tokens through a trained model: does anything grow?

``python -m experiments.stream_stability --workdir=runs/default`` repeats the
held-out text of the run up to ``--tokens``. Twenty times on the way it reports
the memory of the process and the norms of the fast state. The exit status is 1
if a loss or norm is not finite, if a norm is above ``--norm_limit`` times its
largest value in the first tenth, or if memory grows by more than
``--memory_limit`` MB after the first tenth. Results: ``stability.json`` and
``stability.md``.
"""

import itertools
import math
import sys
import time

from experiments.shared import flags, table
from experiments.shared.records import write
from nl_jax import continual, training
from nl_jax.continual import state_norms
from nl_jax.data import DataConfig, load_corpus

FLAGS = {
    "workdir": flags.string("runs/default", "Folder of a training run."),
    "tokens": flags.integer(1_000_000, "Tokens to stream."),
    "chunk": flags.integer(512, "Tokens per call."),
    "norm_limit": flags.number(4.0, "Allowed growth of a norm."),
    "memory_limit": flags.number(50.0, "Allowed growth in MB."),
    "out": flags.folder(None, "Folder for results; default workdir."),
}


def main(values: flags.FlagValues) -> None:
    """Reads the stream, checks the limits and writes results."""
    loaded = training.load_model(values.workdir)
    config = loaded.meta["config"]
    data = training.TrainConfig(data=DataConfig(**config["data"])).data
    tokens = itertools.repeat(
        loaded.tokenizer.encode(load_corpus(data).held_out)
    )
    total = -(-values.tokens // values.chunk)
    every = max(total // 20, 1)
    rows, nats, targets, began = [], 0.0, 0, time.monotonic()
    reads = continual.stream(
        loaded.model, loaded.variables, tokens, chunk=values.chunk
    )
    for count, read in enumerate(itertools.islice(reads, total), 1):
        nats += float(read.nats.sum())
        targets += read.targets.size
        if count % every == 0 or count == total:
            norms = state_norms(read.state)
            rows.append(
                {
                    "tokens": count * values.chunk,
                    "loss": nats / max(targets, 1),
                    "resident_bytes": training.resident_memory_bytes(),
                    "largest_norm": max(norms.values()),
                    "norms": norms,
                }
            )
            print(
                f"{rows[-1]['tokens']:>9} tokens  loss {rows[-1]['loss']:.3f}  "
                f"{rows[-1]['resident_bytes'] / 1e6:.0f} MB  largest norm "
                f"{rows[-1]['largest_norm']:.3g}",
                flush=True,
            )
    problems = _judge(rows, values)
    lines = table.markdown(
        ["tokens", "loss", "MB", "largest norm"],
        [
            [
                row["tokens"],
                f"{row['loss']:.3f}",
                f"{row['resident_bytes'] / 1e6:.0f}",
                f"{row['largest_norm']:.3g}",
            ]
            for row in rows
        ],
    )
    record = {
        "problems": problems,
        "rows": rows,
        "seconds": round(time.monotonic() - began, 1),
        "config": config,
        "seed": config["seed"],
    }
    write(values.out or values.workdir, "stability", lines, record)
    print("; ".join(problems) or "memory constant, norms bounded, no NaN")
    if problems:
        sys.exit(1)


def _judge(rows: list[dict], values: flags.FlagValues) -> list[str]:
    """Compares all rows with those of the first tenth."""
    problems = []
    first = rows[: max(len(rows) // 10, 1)]
    growth = rows[-1]["resident_bytes"] - first[-1]["resident_bytes"]
    if growth > values.memory_limit * 1e6:
        problems.append(f"memory grew by {growth / 1e6:.0f} MB")
    for name in rows[0]["norms"]:
        norms = [row["norms"][name] for row in rows]
        limit = values.norm_limit * max(row["norms"][name] for row in first)
        if not all(map(math.isfinite, norms)):
            problems.append(f"the norm of {name} is not finite")
        elif max(norms) > max(limit, 1e-3):
            problems.append(f"the norm of {name} grew to {max(norms):.3g}")
    if not all(math.isfinite(row["loss"]) for row in rows):
        problems.append("the loss is not finite")
    return problems
