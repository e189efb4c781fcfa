r"""The same small language model under many optimizers.

A model of 0.46 M parameters learns the text that ships with every CPython. All
optimizers have the same initial parameters, data order, steps, schedule and
number of learning rates, each half a decade from the next around the
optimizer's own middle. The table shows bits per byte of the held-out text at
the best rate. There is no weight decay: it is in units of the learning rate and
would be stronger for optimizers with large rates.

Command (half an hour on two cores; a run takes one to two minutes)::

    python -m experiments.optimizer_lm

Expected: Muon, then M3, then AdamW, all below gzip; momenta far above it
(``docs/optimizers.md``). ``--model=hope`` takes another model of the same size.
Runs are stored in ``--out`` as JSON files, and the same command continues
where it stopped. At the end come a Markdown table, a record and a plot.
"""

import functools
import statistics

from experiments.optimizers.rates import best_rates, list_tried, tried_rates
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import half_decades, sweep
from experiments.shared.workers import StoppedError
from nl_jax import training
from nl_jax.errors import DivergedError
from nl_jax.nested.level_table import count_parameters

OPTIMIZERS = {
    "adamw": 6e-3,
    "muon": 0.02,
    "m3": 0.01,
    "momentum": 0.1,
    "delta_momentum": 0.1,
    "deep_momentum": 0.1,
    "adam_memory": 6e-3,
}
"""Middle of the learning rates of each optimizer."""

MODELS = {
    "transformer": 3.0,
    "deltanet": 3.0,
    "hope": 0.19,
    "hope-attention": 1.5,
}
"""Hidden width of a level, chosen for an equal number of parameters."""

_SETTINGS = {
    "model": flags.choice("transformer", MODELS, "Model."),
    "steps": flags.integer(200, "Steps."),
    "batch": flags.integer(8, "Sequences per step."),
    "length": flags.integer(256, "Tokens per sequence."),
    "layers": flags.integer(2, "Blocks."),
    "width": flags.integer(128, "Width, a multiple of 4 heads."),
}
FLAGS = {
    "optimizers": flags.words(
        # Adam as a memory computes the same as AdamW.
        [name for name in OPTIMIZERS if name != "adam_memory"],
        known=OPTIMIZERS,
    ),
    "seeds": flags.seeds([0], "Seeds."),
    "rates": flags.integer(3, "Learning rates tried for each optimizer."),
    **_SETTINGS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/optimizer_lm", "Folder."),
}


def make_config(name, rate, seed, settings):
    """Returns the configuration of one run."""
    return training.freeze(
        training.flag_config(
            model={
                "name": settings["model"],
                "d_model": settings["width"],
                "n_layers": settings["layers"],
                "cms": {"hidden": MODELS[settings["model"]]},
            },
            optimizer={
                "name": name,
                "learning_rate": rate,
                "warmup_steps": settings["steps"] // 10,
                "weight_decay": 0.0,
            },
            seed=seed,
            steps=settings["steps"],
            batch_size=settings["batch"],
            seq_len=settings["length"],
            eval_every=0,
        )
    )


def train_one(optimizer, rate, seed, *, settings):
    """Trains once and returns the results."""
    config = make_config(optimizer, rate, seed, settings)
    try:
        result = training.train(config)
    except DivergedError as error:
        print(error, flush=True)
        return {"bits_per_byte": None, "curve": [], "tokens_per_second": None}
    if result.step < config.steps:
        raise StoppedError
    lines = [line for line in result.records if "loss" in line]
    return {
        "bits_per_byte": round(result.held_out_bits_per_byte, 4),
        "curve": [round(line["bits_per_byte"], 4) for line in lines],
        "tokens_per_second": lines[-1]["tokens_per_second"],
        "compile_seconds": result.compile_seconds["train_step"],
        "parameters": count_parameters(result.variables),
        "gzip_bits_per_byte": round(result.gzip_bits_per_byte, 4),
        "text_sha256": result.text_sha256,
    }


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    settings = flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/optimizer_lm", settings)
    cells = [
        {"optimizer": name, "rate": rate, "seed": seed}
        for name in values.optimizers
        for rate in half_decades(OPTIMIZERS[name], values.rates)
        for seed in values.seeds
    ]
    sweep(
        records,
        cells,
        functools.partial(train_one, settings=settings),
        jobs=values.jobs,
        before="{optimizer}, rate {rate:g}, seed {seed}",
    )
    summarize(records.rows, settings, values.out)


def summarize(rows, settings, out):
    """Writes results at the best rate of each optimizer, and at all rates."""
    tried = tried_rates(rows)
    means = {
        name: {rate: _mean(group) for rate, group in rates.items()}
        for name, rates in tried.items()
    }
    best = best_rates(means, float)
    order = sorted(best, key=lambda name: means[name][best[name]])
    curves = {name: _curve(tried[name][best[name]]) for name in order}
    lines = table.markdown(
        ["optimizer", "rate", "held out", "last tenth", "tokens/s"],
        [
            [
                name,
                f"{best[name]:g}",
                f"{means[name][best[name]]:.3f}",
                f"{_last_tenth(curves[name]):.3f}",
                f"{_speed(tried[name].values()):,.0f}",
            ]
            for name in order
        ],
    )
    note = "Bits per byte, of held-out text and of the last batches."
    for row in rows:
        if row["bits_per_byte"] is not None:
            note += f" gzip -9, held out: {row['gzip_bits_per_byte']:.3f}."
            note += f" Parameters: {row['parameters']:,}."
            break
    lines += ["", note, "", *list_tried(means, best, "held out", float)]
    record = {
        "best": best,
        "held_out_bits_per_byte": means,
        "curves": curves,
        "settings": settings,
    }
    write(out, "optimizer_lm", lines, record, draw(curves, means, best))


def draw(curves, means, best):
    """Returns a figure: curves at the best rates, held-out bits by rate."""
    smooth, by_rate = {}, {}
    for name, curve in curves.items():
        # Means of ten batches, because single batches are too noisy.
        size = min(10, len(curve))
        ends = range(size, len(curve) + 1)
        windows = [statistics.fmean(curve[end - size : end]) for end in ends]
        smooth[f"{name}, {best[name]:g}"] = ends, windows
        points = [(r, m) for r, m in means[name].items() if m is not None]
        by_rate[name] = tuple(zip(*points, strict=True))
    y = "bits per byte, {}"
    scales = ("log", "linear")
    return plot.curves(
        plot.Panel(smooth, "step", y.format("training batches")),
        plot.Panel(
            by_rate, "learning rate", y.format("held out"), "", scales, "o-"
        ),
        size=(11, 4.5),
    )


def _mean(rows):
    """Returns the mean over seeds, or ``None`` if one of them diverged."""
    bits = [row["bits_per_byte"] for row in rows]
    return None if None in bits else statistics.fmean(bits)


def _curve(rows):
    return [
        *map(statistics.fmean, zip(*(r["curve"] for r in rows), strict=True))
    ]


def _last_tenth(curve):
    return statistics.fmean(curve[-max(len(curve) // 10, 1) :])


def _speed(groups):
    speeds = [row["tokens_per_second"] for rows in groups for row in rows]
    return statistics.median(s for s in speeds if s is not None)


REPORT = Report(
    "Optimizers of a language model",
    ("optimizer",),
    {
        "held out, bits per byte": Column("bits_per_byte", ".4f"),
        "tokens per second": Column("tokens_per_second", ",.0f"),
    },
    [Plot("bits_per_byte", "held-out bits per byte")],
    best=("rate", "bits_per_byte"),
)
