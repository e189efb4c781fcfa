r"""A small vision transformer on handwritten digits, under many optimizers.

``sklearn.datasets.load_digits``: 1,797 images of 8 x 8, cut into 16 patches.
Every optimizer gets the same steps, schedule, decoupled weight decay and number
of learning rates, each half a decade from the next; the rate is chosen on a
validation set by the mean over seeds, and the table shows the test set there.

Command (half an hour)::

    python -m experiments.digits

Expected: M3's test loss near Muon's and about half of AdamW's; Algorithm 1 as
printed far behind (``docs/optimizers.md``).

The runs are kept in ``--out`` as lines of JSON, and the same command goes on
where it stopped; then come a Markdown table, a record and a plot.
"""

import itertools
import pathlib
import time

import jax
import numpy as np
import optax
from absl import flags

from experiments import cli, report
from experiments.digits_model import load, make_trainer
from experiments.records import Records
from nl_jax import optimizers as nl
from nl_jax.errors import InputError


def _decayed(scale_by):
    def make(rate, decay):
        return optax.chain(
            scale_by(),
            optax.add_decayed_weights(decay),
            optax.scale_by_learning_rate(rate),
        )

    return make


OPTIMIZERS = {
    "adamw": (3e-3, _decayed(optax.scale_by_adam)),
    "muon": (
        1e-2,
        lambda rate, decay: optax.contrib.muon(
            rate, weight_decay=decay, adam_weight_decay=decay
        ),
    ),
    "m3": (1e-2, _decayed(nl.scale_by_m3)),
    "m3 as printed": (
        1e-4,
        _decayed(
            lambda: nl.scale_by_m3(accumulation="sum", second_moment="absolute")
        ),
    ),
    "m3 sums": (
        1e-2,
        _decayed(lambda: nl.scale_by_m3(accumulation="sum")),
    ),
    "m3 absolute": (
        3e-5,
        _decayed(lambda: nl.scale_by_m3(second_moment="absolute")),
    ),
    "momentum": (0.02, _decayed(nl.scale_by_preconditioned_momentum)),
    "delta momentum": (
        0.02,
        _decayed(lambda: nl.scale_by_delta_momentum(0.1, normalize=True)),
    ),
    "deep momentum": (
        0.02,
        _decayed(lambda: nl.scale_by_deep_momentum(expansion=1)),
    ),
    "learned preconditioner": (
        1e-2,
        _decayed(nl.scale_by_learned_preconditioner),
    ),
}
"""The middle of the rates, and a function of schedule and weight decay."""

_SETTINGS = (
    "steps",
    "batch",
    "weight_decay",
    "layers",
    "width",
)


_METRICS = ("test_loss", "test_accuracy", "validation_loss", "train_loss")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list(
        "optimizers",
        list(OPTIMIZERS),
        f"Out of {', '.join(OPTIMIZERS)}.",
        flag_values=values,
    )
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.", flag_values=values)
    for name, default, text in (
        ("rates", 5, "Learning rates tried for each optimizer."),
        ("steps", 400, "Steps."),
        ("batch", 64, "Images per step."),
        ("layers", 4, "Layers."),
        ("width", 64, "Width, a multiple of 4 heads."),
    ):
        flags.DEFINE_integer(name, default, text, 1, flag_values=values)
    flags.DEFINE_float(
        "weight_decay", 0.05, "Decoupled.", 0.0, flag_values=values
    )
    flags.DEFINE_string("out", "runs/digits", "Folder.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Runs what has no record yet and reports everything."""
    cli.check_names("optimizers", values.optimizers, OPTIMIZERS)
    seeds = cli.integers("seeds", values.seeds, 0)
    if values.width % 4:
        raise InputError(f"--width={values.width}: must be a multiple of 4")
    settings = {name: values[name].value for name in _SETTINGS}
    out = pathlib.Path(values.out)
    records = Records(out / "digits.jsonl", settings)
    data = load()
    for name in values.optimizers:
        train = make_trainer(OPTIMIZERS[name][1], data, **settings)
        for rate, seed in itertools.product(
            cli.half_decades(OPTIMIZERS[name][0], values.rates), seeds
        ):
            key = {"optimizer": name, "rate": rate, "seed": seed}
            if records.find(**key) is not None:
                continue
            begun = time.perf_counter()
            found = jax.device_get(train(rate, seed))
            # JSON has no NaN.
            found = {
                k: round(float(v), 5) if np.isfinite(v) else None
                for k, v in found.items()
            }
            seconds = round(time.perf_counter() - begun, 2)
            records.add(key | found | {"seconds": seconds})
            print(f"{name}, rate {rate:g}, seed {seed}: {found}", flush=True)
    summarize(settings, records.rows, out)


def summarize(settings, rows, out):
    """Writes the table at each optimizer's best rate, and at all of them."""
    best, curves = {}, {}
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        by_rate = {}
        for row in rows:
            if row["optimizer"] == name:
                by_rate.setdefault(row["rate"], []).append(row)
        means = {rate: _means(group) for rate, group in sorted(by_rate.items())}
        curves[name] = means
        finite = [rate for rate, found in means.items() if found]
        if finite:
            best[name] = min(finite, key=lambda r: means[r]["validation_loss"])
    order = sorted(best, key=lambda n: curves[n][best[n]]["test_loss"])
    lines = report.table(
        ["optimizer", "rate", "test loss", "+-", "test accuracy", "validation"],
        [
            [
                name,
                f"{best[name]:g}",
                f"{found['test_loss']:.4f}",
                f"{found['spread']:.4f}",
                f"{100 * found['test_accuracy']:.1f} %",
                f"{found['validation_loss']:.4f}",
            ]
            for name in order
            for found in [curves[name][best[name]]]
        ],
    )
    lines.append("")
    for name, means in curves.items():
        tried = ", ".join(
            f"{r:g}: {m['validation_loss']:.3f}" if m else f"{r:g}: diverged"
            for r, m in means.items()
        )
        edge = best.get(name) in (min(means), max(means)) and len(means) > 1
        note = "; the best rate is at the edge" if edge else ""
        lines.append(f"- {name}, validation loss by rate: {tried}{note}")
    test = {n: curves[n][best[n]]["test_loss"] for n in best}
    if "m3" in test:
        others = [n for n in ("adamw", "muon") if n in test]
        ratios = [f"{test['m3'] / test[n]:.2f} of {n}'s" for n in others]
        lines += ["", f"M3's mean test loss: {', '.join(ratios) or '-'}"]
    record = {"best": best, "means": curves, "settings": settings}
    report.write(out, "digits", lines, record, plot(curves))


def plot(curves):
    """Returns the figure of test loss over the learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for name, means in curves.items():
        points = [(r, m["test_loss"]) for r, m in means.items() if m]
        if points:
            axes.loglog(*zip(*points, strict=True), "o-", label=name)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("test loss, mean over seeds")
    axes.legend(fontsize=7)
    return figure


def _means(rows):
    """Means over seeds, ``None`` if one of them diverged."""
    if not np.isfinite(np.array([r["test_loss"] for r in rows], float)).all():
        return None
    spread = float(np.std([row["test_loss"] for row in rows]))
    means = {k: float(np.mean([row[k] for row in rows])) for k in _METRICS}
    return means | {"spread": spread}


if __name__ == "__main__":
    cli.run(define, main)
