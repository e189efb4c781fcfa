"""A million tokens through a trained model: does anything grow?

``python -m experiments.stream_stability --workdir=runs/default`` repeats the
run's own held-out text up to ``--tokens`` and reports, twenty times on the way,
the memory of the process and the norms of the fast state. It fails (exit 1) on
a loss or norm that is not finite, on a norm above ``--norm_limit`` times its
largest in the first tenth, and on memory growth above ``--memory_limit`` MB
after the first tenth. Results: ``stability.json`` and ``stability.md``.
"""

import itertools
import math
import pathlib
import sys
import time

from absl import flags

from experiments import cli
from nl_jax import continual, training
from nl_jax.continual import state_norms
from nl_jax.data import DataConfig, load_corpus


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "workdir",
        "runs/default",
        "Folder of a training run.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tokens", 1_000_000, "Tokens to stream.", 1, flag_values=values
    )
    flags.DEFINE_integer(
        "chunk", 512, "Tokens per call.", 1, flag_values=values
    )
    flags.DEFINE_float(
        "norm_limit", 4.0, "Allowed growth of a norm.", flag_values=values
    )
    flags.DEFINE_float(
        "memory_limit", 50.0, "Allowed growth in MB.", flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "Folder for results; default workdir.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Streams, judges and writes results."""
    loaded = training.load_model(values.workdir)
    data = training.TrainConfig(
        data=DataConfig(**loaded.meta["config"]["data"])
    ).data
    text = load_corpus(data).held_out
    tokens = itertools.repeat(loaded.tokenizer.encode(text))
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
    out = pathlib.Path(values.out or values.workdir)
    out.mkdir(parents=True, exist_ok=True)
    lines = ["| tokens | loss | MB | largest norm |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {row['tokens']} | {row['loss']:.3f} | "
        f"{row['resident_bytes'] / 1e6:.0f} | {row['largest_norm']:.3g} |"
        for row in rows
    ]
    (out / "stability.md").write_text("\n".join(lines) + "\n")
    training.write_json(
        out / "stability.json",
        {
            "problems": problems,
            "rows": rows,
            "seconds": round(time.monotonic() - began, 1),
            "config": loaded.meta["config"],
            "seed": loaded.meta["config"]["seed"],
            "versions": training.versions(),
            "git_revision": training.git_revision(),
        },
    )
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


if __name__ == "__main__":
    cli.run(define, main)
