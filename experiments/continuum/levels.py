r"""The number of levels, and the lowest frequency (Fig. 7).

As many parameters are divided among one to four levels of a continuum memory.
The fastest level steps every 16 bytes, the slowest every ``--slowest``, and the
periods between them are powers of two at about equal ratios; with one level
there is only the slowest. A small Hope-Attention is trained as a static network
on the first nine tenths of two sources, English and Python code, as in
``adaptive_frequency.py``. Then it reads ``--rows`` streams of the rest, whose
source changes every ``--segment`` bytes, and its levels learn from them.
Reported is each cell's best inner rate.

Command (four minutes of a core)::

    python -m experiments.levels

Results: ``docs/levels.md``. They go to ``--out``: runs as JSON files, tables, a
record and a plot. Finished runs are not repeated.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.continuum.changing_text import (
    CHUNK,
    SETTINGS,
    at_best_rate,
    make_model,
    mean_nats,
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
from nl_jax.nested.level_table import count_parameters

_HIDDEN = 4.0  # Of all levels together, in widths.
FLAGS = {
    "levels": flags.integers([1, 2, 3, 4], "How many.", 1),
    "slowest": flags.integers(
        [128, 512, 2048], "Periods of the slowest level, in bytes.", CHUNK
    ),
    "rates": flags.numbers(
        [0.0001, 0.0003, 0.001, 0.003, 0.01],
        "Inner rates of all levels.",
        lambda rate: rate > 0,
        "needs a number above 0",
    ),
    "seeds": flags.seeds([0, 1, 2], "Of the model and the streams."),
    **SETTINGS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/levels", "Folder."),
}


def periods_of(levels: int, slowest: int) -> tuple[int, ...]:
    """Returns the periods of all levels, the fastest first.

    Raises:
        InputError: if there are not as many powers of two, or ``slowest`` is
            none.

    Example:
        >>> periods_of(3, 512), periods_of(1, 512)
        ((16, 64, 512), (512,))
    """
    ratio = math.log2(slowest / CHUNK)
    steps = [round(ratio * i / max(levels - 1, 1)) for i in range(levels)]
    if ratio % 1 or len({*steps}) < levels:
        raise InputError(
            f"--slowest={slowest}: must be {CHUNK} times a power of two, at "
            f"least {CHUNK * 2 ** (levels - 1)} for --levels={levels}"
        )
    return tuple(CHUNK * 2**n for n in steps) if levels > 1 else (slowest,)


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    for levels, slowest in itertools.product(values.levels, values.slowest):
        periods_of(levels, slowest)
    settings = flags.pick(values, SETTINGS)
    rows = sweep(
        Records(f"{values.out}/levels", settings),
        grid(
            seed=values.seeds,
            levels=values.levels,
            slowest=values.slowest,
            rate=values.rates,
        ),
        functools.partial(run_one, settings=settings),
        after="{levels} levels, slowest {slowest}, rate {rate}, seed {seed}: "
        "{nats:.4f} nats per byte, {gain:+.4f} by learning",
        jobs=values.jobs,
    )
    summarize(rows, settings, values.out)


def run_one(
    levels: int,
    slowest: int,
    rate: float,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Reads the streams; returns the loss, and what the static one loses."""
    variables, tokens, static = _trained(levels, seed, **settings)
    model = _model(levels, settings["width"], periods_of(levels, slowest))
    found = float(read(model, variables, tokens, rate)[0].mean())
    return {
        "nats": found if math.isfinite(found) else None,
        "gain": static - found if math.isfinite(found) else None,
        "static": static,
        "parameters": count_parameters(variables),
    }


@functools.lru_cache(1)
def _trained(levels, seed, steps, length, rows, segment, width):
    """Returns a trained static network, streams, and its loss on them."""
    texts, rest = zip(*map(split, sources()), strict=True)
    periods = periods_of(levels, CHUNK * 2 ** (levels - 1))
    static = _model(levels, width, periods, rate=0.0)
    variables = train(static, list(texts), steps, seed)
    tokens = jnp.asarray(streams(list(rest), rows, length, segment, seed))
    logits = jax.jit(static.apply)(variables, tokens)[0]
    return variables, tokens, float(nats(logits, tokens).mean())


def _model(levels, width, periods, **cms):
    hidden = _HIDDEN / levels
    return make_model(width, token_periods=periods, hidden=hidden, **cms)


def summarize(rows, settings, out):
    """Writes a table, levels by periods, each at its best inner rate."""
    best = {
        key: at_best_rate(group)
        for key, group in grouped(rows, "levels", "slowest").items()
    }
    counts, periods = (
        list(dict.fromkeys(axis)) for axis in zip(*best, strict=True)
    )
    names = {count: f"{count} level{'s'[: count > 1]}" for count in counts}
    lines = []
    for key, title in (("nats", "nats per byte"), ("gain", "gain by learning")):
        head = [title, "static", *(f"slowest {period}" for period in periods)]
        body = [
            [name, _shown(best[count, periods[0]], "static")]
            + [_shown(best[count, period], key) for period in periods]
            for count, name in names.items()
        ]
        lines += [*table.markdown(head, body), ""]
    lines.append(
        "Mean ± standard error over seeds, each at its best inner rate."
    )
    curves = {
        name: (periods, [mean_nats(best[count, p]) for p in periods])
        for count, name in names.items()
    }
    panel = plot.Panel(
        curves,
        "period of the slowest level, bytes",
        "nats per byte",
        scales=("log", "linear"),
        style="o-",
    )
    record = {"rows": rows, "settings": settings}
    write(out, "levels", lines, record, plot.curves(panel, size=(6, 4)))


def _shown(rows, name):
    found = [row[name] for row in rows]
    return "diverged" if None in found else table.mean_error(found, ".4f")


REPORT = Report(
    "Levels and the lowest frequency",
    ("levels", "slowest"),
    {
        "nats per byte": Column("nats", ".4f"),
        "gain by learning": Column("gain", ".4f"),
        "parameters": Column("parameters", ",.0f"),
    },
    [
        Plot(
            "nats",
            "nats per byte",
            "slowest",
            "period of the slowest level, bytes",
            ("levels",),
            ("log", "linear"),
        )
    ],
    best=("rate", "nats"),
    note="Smaller than the paper's Fig. 7 by far, and on another task.",
)
