r"""Should a level step at a signal, or at a fixed period?

The paper leaves open how frequencies are chosen. Here the slower of two levels
chooses its own (``cms.adaptive``): it steps once the gradients of its chunks
agree (``coherence``) or once a chunk is surprising (``surprise``), within
bounds. The text changes its source every ``--segment`` bytes, from the English
of ``pydoc_data.topics`` to Python code of the standard library and back. The
comparison is the fixed period with the nearest number of updates; both numbers
are reported. A small model is trained as a static network on the first nine
tenths of both sources. Then it reads ``--rows`` streams of the rest and learns
from them. All variants have the same parameters and text. Each reports its best
inner rate; the record has all rates.

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

So learning in context helps, but these signals do not. At equal numbers of
updates, coherence is worse than a fixed period. Surprise is better by less than
a thousandth, with three more updates, in all seeds. An earlier run with
``--least=2`` and thresholds 0.5 and 1.1 gave the same result: 1.7971 against
1.7967, and 1.7989 against 1.7990. More updates are better.

Results go to ``--out``: a JSON file per run, a record, a
Markdown table and a plot.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from experiments.continuum.changing_text import (
    CHUNK,
    SETTINGS,
    at_best_rate,
    make_model,
    nats,
    read,
    sources,
    split,
    streams,
    train,
)
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import grid, grouped, sweep
from nl_jax.errors import InputError

_SIGNALS = ("coherence", "surprise")
_SETTINGS = {
    "least": flags.integer(4, "Chunks of 16 bytes between steps, at least."),
    "most": flags.integer(32, "The same, at most.", 2),
    **SETTINGS,
}
FLAGS = {
    "arms": flags.words(
        ["coherence:0.6", "surprise:1.1"], "Signals and their thresholds."
    ),
    "seeds": flags.seeds([0, 1, 2], "Seeds."),
    "rates": flags.numbers(
        [0.0003, 0.001, 0.003],
        "Inner rates of both levels.",
        lambda rate: rate > 0,
        "needs a number above 0",
    ),
    **_SETTINGS,
    "out": flags.folder("runs/adaptive_frequency", "Folder of results."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and writes the results."""
    arms = [_arm(word, values.least) for word in values.arms]
    if values.least > values.most:
        raise InputError(
            f"--least={values.least}: must be at most --most={values.most}"
        )
    settings = flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/adaptive_frequency", settings)
    parts = [split(text) for text in sources()]
    static = make_model(values.width, rate=0.0)

    @functools.cache
    def variables(seed):
        return train(static, [first for first, _ in parts], values.steps, seed)

    def run(arm, model):
        """Returns rows of the record, one for each seed and rate."""
        rates = [0.0] if arm == "static" else values.rates
        return sweep(
            records,
            grid(arm=[arm], seed=values.seeds, rate=rates),
            lambda arm, seed, rate: _measure(
                model, variables(seed), parts, values, rate, seed
            ),
            after="{arm} {seed} {rate} {nats:.4f}",
        )

    rows = {"static": run("static", static)}
    pairs = {}
    for arm, signal, threshold in arms:
        rows[arm] = run(
            arm,
            make_model(
                values.width,
                token_periods=(CHUNK, CHUNK * values.most),
                adaptive=signal,
                least=values.least,
                threshold=threshold,
            ),
        )
        period = nearest_period(
            values.length // CHUNK,
            statistics.mean(row["updates"] for row in at_best_rate(rows[arm])),
            values.most,
        )
        fixed = f"fixed {period}"
        pairs[arm] = f"{fixed}, against {arm}"
        rows[pairs[arm]] = run(
            fixed,
            make_model(values.width, token_periods=(CHUNK, CHUNK * period)),
        )
    summarize(values.out, settings, rows, pairs)


def nearest_period(chunks: int, updates: float, most: int) -> int:
    """Returns the period in chunks with the nearest number of updates.

    Example:
        >>> nearest_period(512, 100.0, 32)
        5
    """
    return min(
        range(1, most + 1), key=lambda period: abs(chunks // period - updates)
    )


def _arm(word, least):
    """Returns the name of a variant, its signal and its threshold."""
    signal, _, threshold = word.partition(":")
    if signal not in _SIGNALS:
        raise InputError(f"--arms={word}: allowed are {', '.join(_SIGNALS)}")
    try:
        number = float(threshold)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise InputError(f"--arms={word}: needs a number above 0")
    if signal == "coherence" and least < 2:
        raise InputError(
            f"--least={least}: must be at least 2 with coherence; one chunk "
            "always agrees with itself"
        )
    return word, signal, number


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


def summarize(out, settings, rows, pairs):
    """Writes every variant at its best rate, and what the signals cost."""
    body, means, differences = [], {}, {}
    best = {name: at_best_rate(group) for name, group in rows.items()}
    for name, group in best.items():
        losses = [row["nats"] for row in group]
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        means[name] = mean = {
            key: statistics.mean(row[key] for row in group)
            for key in ("updates", "rate", "nats", "nats_after_change")
        }
        body.append(
            [
                name,
                f"{mean['updates']:.1f}",
                f"{mean['rate']:g}",
                f"{mean['nats']:.4f}",
                f"{spread:.4f}",
                f"{mean['nats_after_change']:.4f}",
            ]
        )
    head = ["slower level", "updates", "rate", "nats", "deviation"]
    lines = [*table.markdown([*head, "after a change"], body), ""]
    for arm, fixed in pairs.items():
        # Nats by which the signal is worse than its fixed period, by seed.
        differences[arm] = [
            a["nats"] - b["nats"]
            for a, b in zip(best[arm], best[fixed], strict=True)
        ]
        shown = ", ".join(f"{nats:+.4f}" for nats in differences[arm])
        period = fixed.split(",")[0]
        lines.append(f"{arm} less {period}, by seed: {shown} nats")
    record = {
        "settings": settings,
        "best": means,
        "differences": differences,
        "runs": rows,
    }
    write(out, "adaptive_frequency", lines, record, draw(rows))


def draw(rows):
    """Returns a figure of the loss of every variant over the inner rate."""
    curves, flat = {}, {}
    for name, group in rows.items():
        means = {
            rate: statistics.mean(row["nats"] for row in own)
            for rate, own in sorted(grouped(group, "rate").items())
        }
        if list(means) == [0.0]:
            flat[name] = means[0.0]
        else:
            curves[name] = list(means), list(means.values())
    panel = plot.Panel(
        curves, "inner rate", "nats per byte", "", ("log", "linear"), "o-"
    )
    figure = plot.curves(panel)
    for name, nats_per_byte in flat.items():
        figure.axes[0].axhline(nats_per_byte, color="gray", label=name)
    figure.axes[0].legend(fontsize=7)
    return figure


REPORT = Report(
    "Levels that step when they must",
    ("arm",),
    {
        "nats per byte": Column("nats", ".4f"),
        "steps of the level": Column("updates", ",.1f"),
    },
    [Plot("nats", "nats per byte")],
    best=("rate", "nats"),
)
