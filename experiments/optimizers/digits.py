r"""A small vision transformer on handwritten digits, under many optimizers.

The data is ``sklearn.datasets.load_digits``: 1,797 images of 8 x 8, cut into 16
patches. All optimizers have the same steps, schedule, decoupled weight decay
and number of learning rates, each half a decade from the next. The rate is
chosen on a validation set by the mean over seeds, and the table shows results
on the test set at that rate.

Command (half an hour)::

    python -m experiments.digits

Expected: M3's test loss near Muon's and about half of AdamW's; Algorithm 1 as
printed far behind (``docs/optimizers.md``).

Runs are stored in ``--out`` as JSON files, and the same command continues
where it stopped. At the end come a Markdown table, a record and a plot.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax

from experiments.optimizers.rates import (
    best_rates,
    list_tried,
    named,
    tried_rates,
)
from experiments.optimizers.vision import load, make_trainer
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import half_decades, sweep

OPTIMIZERS = {
    "adamw": (3e-3, named("adamw")),
    "muon": (
        1e-2,
        lambda rate, decay: optax.contrib.muon(
            rate, weight_decay=decay, adam_weight_decay=decay
        ),
    ),
    "m3": (1e-2, named("m3")),
    "m3 as printed": (
        1e-4,
        named("m3", accumulation="sum", second_moment="absolute"),
    ),
    "m3 sums": (1e-2, named("m3", accumulation="sum")),
    "m3 absolute": (3e-5, named("m3", second_moment="absolute")),
    "momentum": (0.02, named("momentum")),
    "delta momentum": (0.02, named("delta_momentum")),
    "deep momentum": (0.02, named("deep_momentum")),
    "learned preconditioner": (1e-2, named("learned_preconditioner")),
}
"""The middle of the rates, and a function of schedule and weight decay."""

_METRICS = ("test_loss", "test_accuracy", "validation_loss", "train_loss")
_SETTINGS = {
    "steps": flags.integer(400, "Steps."),
    "batch": flags.integer(64, "Images per step."),
    "layers": flags.integer(4, "Layers."),
    "width": flags.integer(64, "Width, a multiple of 4 heads.", multiple_of=4),
    "weight_decay": flags.number(0.05, "Decoupled.", 0.0),
}
FLAGS = {
    "optimizers": flags.words(list(OPTIMIZERS), known=OPTIMIZERS),
    "seeds": flags.seeds([0, 1, 2], "Seeds."),
    "rates": flags.integer(5, "Learning rates tried for each optimizer."),
    **_SETTINGS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/digits", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    settings = flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/digits", settings)
    cells = [
        {"optimizer": name, "rate": rate, "seed": seed}
        for name in values.optimizers
        for rate in half_decades(OPTIMIZERS[name][0], values.rates)
        for seed in values.seeds
    ]
    after = "{optimizer}, rate {rate:g}, seed {seed}: "
    after += "test loss {test_loss}, validation loss {validation_loss}"
    run = functools.partial(run_one, settings=settings)
    sweep(records, cells, run, after=after, jobs=values.jobs)
    summarize(settings, records.rows, values.out)


def run_one(
    optimizer: str, rate: float, seed: int, settings: dict[str, Any]
) -> dict[str, float | None]:
    """Trains once; returns losses and accuracies, ``None`` for NaN."""
    found = jax.device_get(_trainer(optimizer, **settings)(rate, seed))
    return {
        name: round(float(value), 5) if np.isfinite(value) else None
        for name, value in found.items()
    }


@functools.cache  # So that each process compiles an optimizer once.
def _trainer(optimizer, **settings):
    return make_trainer(OPTIMIZERS[optimizer][1], load(), **settings)


def summarize(settings, rows, out):
    """Writes results at the best rate of each optimizer, and at all rates."""
    means = {
        name: {rate: _means(group) for rate, group in rates.items()}
        for name, rates in tried_rates(rows).items()
    }
    best = best_rates(means, _validation)
    found = {name: means[name][rate] for name, rate in best.items()}
    lines = table.markdown(
        ["optimizer", "rate", "test loss", "+-", "test accuracy", "validation"],
        [
            [
                name,
                f"{best[name]:g}",
                f"{found[name]['test_loss']:.4f}",
                f"{found[name]['spread']:.4f}",
                f"{100 * found[name]['test_accuracy']:.1f} %",
                f"{found[name]['validation_loss']:.4f}",
            ]
            for name in sorted(found, key=lambda n: found[n]["test_loss"])
        ],
    )
    lines += ["", *list_tried(means, best, "validation loss", _validation)]
    if "m3" in found:
        ours = found["m3"]["test_loss"]
        ratios = [
            f"{ours / found[name]['test_loss']:.2f} of {name}'s"
            for name in ("adamw", "muon")
            if name in found
        ]
        lines += ["", f"M3's mean test loss: {', '.join(ratios) or '-'}"]
    points = {
        name: [(r, mean["test_loss"]) for r, mean in rates.items() if mean]
        for name, rates in means.items()
    }
    panel = plot.Panel(
        {n: tuple(zip(*xy, strict=True)) for n, xy in points.items() if xy},
        "learning rate",
        "test loss, mean over seeds",
        scales=("log", "log"),
        style="o-",
    )
    record = {"best": best, "means": means, "settings": settings}
    write(out, "digits", lines, record, plot.curves(panel, size=(7, 4.5)))


def _validation(means):
    return means["validation_loss"]


def _means(rows):
    """Returns means over seeds, or ``None`` if one of them diverged."""
    if not np.isfinite(np.array([r["test_loss"] for r in rows], float)).all():
        return None
    spread = float(np.std([row["test_loss"] for row in rows]))
    means = {k: float(np.mean([row[k] for row in rows])) for k in _METRICS}
    return means | {"spread": spread}


REPORT = Report(
    "Optimizers of a vision transformer on digits",
    ("optimizer",),
    {
        "test loss": Column("test_loss", ".3f"),
        "test accuracy, %": Column("test_accuracy", ".1f", 100),
    },
    [Plot("test_loss", "test loss")],
    best=("rate", "validation_loss"),
)
