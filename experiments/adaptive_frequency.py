r"""Should a level step when its signal says so, or at a fixed period?

The paper leaves open how frequencies are to be set. Here the slower of two
levels sets its own (``cms.adaptive``): it steps once the gradients of its
chunks agree (``coherence``) or once a chunk is surprising (``surprise``),
within bounds. What it reads changes its source every ``--segment`` bytes, from
the English of ``pydoc_data.topics`` to Python code of the standard library and
back. Against it stands the fixed period with the nearest number of updates;
both numbers are reported. A small model is trained as a static network on the
first nine tenths of both sources; then it reads ``--rows`` streams of the rest,
learning. Every arm has the same parameters and text; each reports its best
inner rate, and all are in the record.

Command (resumable; minutes on one core)::

    python -m experiments.adaptive_frequency

Measured, three seeds of model and streams, mean nats per byte at the best inner
rate (0.003 for all; 0.01 and 0.03 were worse in an earlier run):

=======================  =======  =======  =================================
slower level             updates  nats     less its fixed period, by seed
=======================  =======  =======  =================================
static network                 0   1.8762
``coherence``, 0.6          18.4   1.8219  +0.0068, +0.0059, +0.0051
fixed, 27 chunks            18.0   1.8159
``surprise``, 1.1           88.0   1.8006  -0.0001, -0.0006, -0.0007
fixed, 6 chunks             85.0   1.8011
=======================  =======  =======  =================================

So learning in context helps, and choosing when by these signals does not: at
equal numbers of updates coherence is worse than a fixed period; surprise is
better by less than a thousandth, with three more updates, in all seeds. An
earlier run with ``--least=2``, thresholds 0.5 and 1.1, said the same: 1.7971
against 1.7967, and 1.7989 against 1.7990. More updates are better.

Results go to ``--out``: one line per run in ``runs.jsonl``, a record, a
Markdown table and a plot.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, records, report
from experiments.changing_text import (
    CHUNK,
    make_model,
    nats,
    read,
    sources,
    split,
    streams,
    train,
)
from nl_jax.errors import InputError


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list(
        "arms",
        ["coherence:0.6", "surprise:1.1"],
        "Signals and their thresholds.",
        flag_values=values,
    )
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.", flag_values=values)
    flags.DEFINE_list(
        "rates",
        ["0.0003", "0.001", "0.003"],
        "Inner rates of both levels.",
        flag_values=values,
    )
    for name, default, least, text in (
        ("least", 4, 1, "Chunks of 16 bytes between steps, at least."),
        ("most", 32, 2, "The same, at most."),
        ("steps", 400, 1, "Training steps of the static network."),
        ("length", 8192, 64, "Bytes of a stream; a multiple of 16."),
        ("rows", 4, 1, "Streams of each seed."),
        ("segment", 1024, 16, "Bytes between changes of the source."),
        ("width", 32, 8, "Of the model, a multiple of 8."),
    ):
        flags.DEFINE_integer(name, default, text, least, flag_values=values)
    flags.DEFINE_string(
        "out",
        "runs/adaptive_frequency",
        "Folder of results.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    """Runs what is not on record and writes the results."""
    arms, rates, seeds = _checked(values)
    settings = {
        name: values[name].value
        for name in ("least", "most", "steps", "length", "rows", "segment")
    } | {"width": values.width}
    found = records.Records(f"{values.out}/runs.jsonl", settings)
    parts = [split(text) for text in sources()]

    @functools.cache
    def variables(seed):
        return train(
            values.width, [first for first, _ in parts], values.steps, seed
        )

    def run(arm, model):
        """Rows of the record, one for each seed and rate."""
        rows = []
        for seed in seeds:
            for rate in rates if arm != "static" else [0.0]:
                key = {"arm": arm, "seed": seed, "rate": rate}
                row = found.find(**key)
                if row is None:
                    row = key | _measure(
                        model, variables(seed), parts, values, rate, seed
                    )
                    found.add(row)
                    print(arm, seed, rate, f"{row['nats']:.4f}", flush=True)
                rows.append(row)
        return rows

    table = {"static": run("static", make_model(values.width, rate=0.0))}
    pairs = {}
    for arm, signal, threshold in arms:
        table[arm] = run(
            arm,
            make_model(
                values.width,
                periods=(CHUNK, CHUNK * values.most),
                adaptive=signal,
                least=values.least,
                threshold=threshold,
            ),
        )
        best = _best(table[arm])
        period = nearest_period(
            values.length // CHUNK,
            statistics.mean(row["updates"] for row in best),
            values.most,
        )
        fixed = f"fixed {period}"
        name = f"{fixed}, against {arm}"
        table[name] = run(
            fixed, make_model(values.width, periods=(CHUNK, CHUNK * period))
        )
        pairs[arm] = name
    _write(values, settings, table, pairs)


def nearest_period(chunks: int, updates: float, most: int) -> int:
    """Returns the period in chunks that makes the nearest number of updates.

    Example:
        >>> nearest_period(512, 100.0, 32)
        5
    """
    return min(
        range(1, most + 1), key=lambda period: abs(chunks // period - updates)
    )


def _checked(values):
    cli_seeds = cli.integers("seeds", values.seeds, 0)
    arms = []
    for arm in values.arms:
        signal, _, threshold = arm.partition(":")
        cli.check_names("arms", [signal], ["coherence", "surprise"])
        arms.append((arm, signal, _number("arms", arm, threshold)))
    rates = [_number("rates", rate, rate) for rate in values.rates]
    if values.length % CHUNK:
        raise InputError(
            f"--length={values.length}: must be a multiple of {CHUNK}"
        )
    if values.width % 8:
        raise InputError(f"--width={values.width}: must be a multiple of 8")
    if any(signal == "coherence" for _, signal, _ in arms) and values.least < 2:
        raise InputError(
            f"--least={values.least}: must be at least 2 with coherence; one "
            "chunk always agrees with itself"
        )
    if values.least > values.most:
        raise InputError(
            f"--least={values.least}: must be at most --most={values.most}"
        )
    return arms, rates, cli_seeds


def _number(flag, given, word):
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise InputError(f"--{flag}={given}: needs a number above 0")
    return number


def _measure(model, variables, parts, values, rate, seed):
    tokens = streams(
        [rest for _, rest in parts],
        values.rows,
        values.length,
        values.segment,
        seed,
    )
    if model.learns_in_context:
        losses, updates = read(model, variables, jnp.asarray(tokens), rate)
    else:
        logits = jax.jit(model.apply)(variables, tokens)[0]
        losses, updates = nats(logits, tokens), np.zeros(1)
    losses = np.asarray(losses)
    place = np.arange(1, tokens.shape[1]) % values.segment
    early = place < max(values.segment // 4, 1)
    return {
        "nats": float(losses.mean()),
        "nats_after_change": float(losses[:, early].mean()),
        "updates": float(np.mean(updates)),
    }


def _best(rows):
    """The rows of the rate with the least mean loss."""
    by_rate = {}
    for row in rows:
        by_rate.setdefault(row["rate"], []).append(row)

    def mean(rows):
        loss = statistics.mean(row["nats"] for row in rows)
        return loss if np.isfinite(loss) else float("inf")

    return min(by_rate.values(), key=mean)


def _differences(table, pairs):
    """Nats that each signal costs over its fixed period, seed by seed."""
    return {
        arm: [
            a["nats"] - b["nats"]
            for a, b in zip(_best(table[arm]), _best(table[fixed]), strict=True)
        ]
        for arm, fixed in pairs.items()
    }


def _write(values, settings, table, pairs):
    head = ["slower level", "updates", "rate", "nats", "deviation"]
    lines, means = [], {}
    for name, rows in table.items():
        best = _best(rows)
        losses = [row["nats"] for row in best]
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        means[name] = {
            key: statistics.mean(row[key] for row in best)
            for key in ("updates", "rate", "nats", "nats_after_change")
        }
        mean = means[name]
        lines.append(
            [
                name,
                f"{mean['updates']:.1f}",
                f"{mean['rate']:g}",
                f"{mean['nats']:.4f}",
                f"{spread:.4f}",
                f"{mean['nats_after_change']:.4f}",
            ]
        )
    lines = report.table([*head, "after a change"], lines)
    lines.append("")
    differences = _differences(table, pairs)
    for arm, each in differences.items():
        shown = ", ".join(f"{difference:+.4f}" for difference in each)
        fixed = pairs[arm].split(",")[0]
        lines.append(f"{arm} less {fixed}, by seed: {shown} nats")
    record = {
        "settings": settings,
        "best": means,
        "differences": differences,
        "runs": table,
    }
    report.write(values.out, "adaptive_frequency", lines, record, plot(table))


def plot(table):
    """Returns a figure of every arm's loss over the inner rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name, rows in table.items():
        rates = sorted({row["rate"] for row in rows})
        means = [
            statistics.mean(r["nats"] for r in rows if r["rate"] == rate)
            for rate in rates
        ]
        if rates == [0.0]:
            axes.axhline(means[0], color="gray", label=name)
        else:
            axes.semilogx(rates, means, marker="o", label=name)
    axes.set_xlabel("inner rate")
    axes.set_ylabel("nats per byte")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    cli.run(define, main)
