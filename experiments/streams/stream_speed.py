"""Speed of a model that learns from a stream of ten million tokens.

Every level of a tiny Hope learns while it reads: the memories of its
self-modifying Titans, and two levels of its continuum memory by its own
next-token loss. The model starts from random parameters and has no other
training. The text is the default corpus, repeated as one stream. ``--rows``
reads several streams side by side, from different places of the text; token
counts are then those of all rows.

Command (minutes on one core; put ``taskset -c 0`` in front to stay on one)::

    python -m experiments.stream_speed

Expected: resident memory after the first twentieth is constant within 10 MB,
all norms are finite, and the median rate in each twentieth is within 10 % of
the median of all. Rates are tokens per second of processor time. Wall-clock
time is also recorded, but depends on other processes. Otherwise the exit status
is 1.

Results go to ``--out``: a record with every window, a Markdown table and a
plot.
"""

import itertools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared import flags, plot, table
from experiments.shared.records import write
from nl_jax import continual, training
from nl_jax.data import DataConfig, load_corpus
from nl_jax.errors import InputError
from nl_jax.models import build, to_json

WINDOWS = 20
FLAGS = {
    "tokens": flags.integer(
        10_000_000, "Tokens to stream, of all rows together."
    ),
    "rows": flags.integer(1, "Streams side by side."),
    "chunk": flags.integer(
        1024, "Tokens of each row per call; a multiple of 16 is fast."
    ),
    "seed": flags.seed("Of the parameters."),
    "memory_limit": flags.number(10.0, "Allowed growth in MB."),
    "rate_limit": flags.number(
        0.1, "Allowed distance of a window's median rate, as a share."
    ),
    "out": flags.folder("runs/stream_speed", "Folder of results."),
}


def make_model():
    """Returns a tiny Hope whose levels all learn in context."""
    return build(
        "hope",
        d_model=16,
        n_layers=1,
        n_heads=1,
        cms={"objective": "next_token", "hidden": 1.0},
    )


def pieces(text: bytes, rows: int, chunk: int):
    """Yields ``[rows, chunk]`` ids forever, each row from its own position."""
    ids = np.frombuffer(text, np.uint8)
    starts = np.arange(rows)[:, None] * (len(ids) // rows)
    for number in itertools.count():
        places = starts + np.arange(number * chunk, (number + 1) * chunk)
        yield ids[places % len(ids)]


def main(values: flags.FlagValues) -> None:
    """Reads the stream, checks the expectations and writes results."""
    per_call = values.rows * values.chunk
    calls = -(-values.tokens // per_call)
    if calls < 2 * WINDOWS:
        raise InputError(
            f"--tokens={values.tokens}: needs at least "
            f"{2 * WINDOWS * per_call}, {2 * WINDOWS} calls of "
            f"--rows={values.rows} times --chunk={values.chunk}"
        )
    model = make_model()
    corpus = load_corpus(DataConfig())
    first = jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(values.seed), first)
    source = itertools.islice(
        pieces(corpus.train, values.rows, values.chunk), calls + 1
    )
    reads = continual.stream(model, variables, source, chunk=values.chunk)
    next(reads)  # Compiles; not counted.
    rows = windows(model, variables, reads, calls, per_call)
    problems = judge(rows, values.memory_limit, values.rate_limit)
    head = ["tokens", "tokens/s", "tokens/s of clock", "nats", "MB", "norm"]
    lines = table.markdown(
        [*head, "moved 1", "moved 2"],
        [
            [
                f"{row['tokens']:,}",
                f"{row['rate']:,.0f}",
                f"{row['clock_rate']:,.0f}",
                f"{row['nats']:.3f}",
                f"{row['resident_bytes'] / 1e6:.1f}",
                f"{row['largest_norm']:.3g}",
                *(f"{moved:.3g}" for moved in row["moved"]),
            ]
            for row in rows
        ],
    )
    verdict = "memory constant, rate steady, no NaN"
    lines += ["", "; ".join(problems) or verdict]
    record = {
        "problems": problems,
        "windows": rows,
        **flags.pick(values, ("rows", "chunk", "seed")),
        "peak_bytes": training.peak_memory_bytes(),
        "config": to_json(model.config),
    }
    write(values.out, "stream_speed", lines, record, draw(rows))
    if problems:
        sys.exit(1)


def windows(model, variables, reads, calls, per_call):
    """Reads ``calls`` chunks; returns a row for each twentieth of them."""
    edges = np.linspace(0, calls, WINDOWS + 1).round().astype(int)[1:].tolist()
    rows, rates, clock_rates, nats = [], [], [], []
    used, clock = time.process_time(), time.monotonic()
    for number, read in enumerate(reads, 1):
        now, clock_now = time.process_time(), time.monotonic()
        rates.append(per_call / (now - used))
        clock_rates.append(per_call / (clock_now - clock))
        nats.append(float(read.nats.mean()))
        if number in edges:
            found = continual.inspect(model, variables, read.state)
            rows.append(
                {
                    "tokens": number * per_call,
                    "rate": statistics.median(rates),
                    "clock_rate": statistics.median(clock_rates),
                    "nats": statistics.fmean(nats),
                    "resident_bytes": training.resident_memory_bytes(),
                    "peak_bytes": training.peak_memory_bytes(),
                    "finite": found.finite and bool(np.isfinite(nats).all()),
                    "largest_norm": max(
                        float(norms.max()) for norms in found.mixers.values()
                    ),
                    "moved": [
                        float(level.distance.max()) for level in found.levels
                    ],
                }
            )
            rates, clock_rates, nats = [], [], []
            print(
                f"{rows[-1]['tokens']:>12,} tokens  {rows[-1]['rate']:,.0f} "
                f"tokens/s  {rows[-1]['resident_bytes'] / 1e6:.1f} MB",
                flush=True,
            )
        used, clock = time.process_time(), time.monotonic()
    return rows


def judge(rows, memory_limit, rate_limit):
    """Returns a sentence for each expectation that is not met.

    Example:
        >>> row = {"finite": True, "rate": 10.0, "resident_bytes": 0}
        >>> judge([row] * 3 + [row | {"rate": 8.0}], 1.0, 0.1)
        ['the rate of a window is 20 % from the median']
    """
    problems = []
    growth = max(row["resident_bytes"] for row in rows[1:])
    growth -= rows[0]["resident_bytes"]
    if growth > memory_limit * 1e6:
        problems.append(f"memory grew by {growth / 1e6:.1f} MB")
    if not all(row["finite"] for row in rows):
        problems.append("a loss or norm is not finite")
    middle = statistics.median(row["rate"] for row in rows)
    worst = max(abs(row["rate"] / middle - 1) for row in rows)
    if worst > rate_limit:
        problems.append(
            f"the rate of a window is {100 * worst:.0f} % from the median"
        )
    return problems


def draw(rows):
    """Returns a figure of rate, memory and loss over tokens."""
    panels = (
        ("rate", 1, "tokens/s of processor"),
        ("resident_bytes", 1e-6, "resident MB"),
        ("nats", 1, "nats per token"),
    )
    tokens = [row["tokens"] for row in rows]
    figure = plot.curves(
        *(
            plot.Panel(
                {label: (tokens, [row[key] * scale for row in rows])},
                "tokens read",
                label,
                style="o-",
            )
            for key, scale, label in panels
        ),
        size=(12, 4),
    )
    for axes in figure.axes[:2]:
        axes.set_ylim(bottom=0)
    return figure
