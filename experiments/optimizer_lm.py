r"""The same small language model under many optimizers.

A model of 0.46 M parameters on the text that every CPython has. Every optimizer
gets the same initial parameters, data order, steps, schedule and number of
learning rates, each half a decade from the next around a middle of its own; the
table shows bits per byte of the held-out text at the best one. Weights do not
decay: decay is in units of the learning rate, and optimizers with large rates
would pay more of it.

Command (half an hour on two cores; a run takes one to two minutes)::

    python -m experiments.optimizer_lm

Expected: Muon, then M3, then AdamW, all below gzip; momenta far above it
(``docs/optimizers.md``). ``--model=hope`` takes another model of the same size.
The runs are kept in ``--out`` as lines of JSON, and the same command goes on
where it stopped; then come a Markdown table, a record and a plot.
"""

import itertools
import pathlib
import statistics

from absl import flags

from experiments import cli, report
from experiments.records import Records
from nl_jax import training
from nl_jax.errors import DivergedError
from nl_jax.nested.describe import count_parameters

OPTIMIZERS = {
    "adamw": 6e-3,
    "muon": 0.02,
    "m3": 0.01,
    "momentum": 0.1,
    "delta_momentum": 0.1,
    "deep_momentum": 0.1,
    "adam_memory": 6e-3,
}
"""The middle of the rates."""

MODELS = {
    "transformer": 3.0,
    "deltanet": 3.0,
    "hope": 1.625,
    "hope-attention": 1.5,
}
"""Hidden width of a level, which makes models equal in parameters."""

_SETTINGS = ("model", "steps", "batch", "length", "layers", "width")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list(
        "optimizers",
        # Adam as a memory computes what AdamW does.
        [name for name in OPTIMIZERS if name != "adam_memory"],
        f"Out of {', '.join(OPTIMIZERS)}.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "model", "transformer", list(MODELS), "Model.", flag_values=values
    )
    flags.DEFINE_list("seeds", ["0"], "Seeds.", flag_values=values)
    for name, default, text in (
        ("rates", 3, "Learning rates tried for each optimizer."),
        ("steps", 200, "Steps."),
        ("batch", 8, "Sequences per step."),
        ("length", 256, "Tokens per sequence."),
        ("layers", 2, "Blocks."),
        ("width", 128, "Width, a multiple of 4 heads."),
    ):
        flags.DEFINE_integer(name, default, text, 1, flag_values=values)
    flags.DEFINE_string(
        "out", "runs/optimizer_lm", "Folder.", flag_values=values
    )


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


def run(config):
    """Trains once and returns what was found, or ``None`` if stopped."""
    try:
        result = training.train(config)
    except DivergedError as error:
        print(error, flush=True)
        return {"bits_per_byte": None, "curve": [], "tokens_per_second": None}
    if result.step < config.steps:
        return None
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
    """Runs what has no record yet and reports everything."""
    cli.check_names("optimizers", values.optimizers, OPTIMIZERS)
    seeds = cli.integers("seeds", values.seeds, 0)
    settings = {name: values[name].value for name in _SETTINGS}
    out = pathlib.Path(values.out)
    records = Records(out / "optimizer_lm.jsonl", settings)
    for name in values.optimizers:
        rates = cli.half_decades(OPTIMIZERS[name], values.rates)
        for rate, seed in itertools.product(rates, seeds):
            key = {"optimizer": name, "rate": rate, "seed": seed}
            if records.find(**key) is not None:
                continue
            print(f"{name}, rate {rate:g}, seed {seed}", flush=True)
            found = run(make_config(name, rate, seed, settings))
            if found is None:
                print("stopped; the same command goes on with this run")
                return
            records.add(key | found)
    summarize(records.rows, settings, out)


def summarize(rows, settings, out):
    """Writes the table at each optimizer's best rate, and at all of them."""
    tried = {}
    for row in rows:
        rates = tried.setdefault(row["optimizer"], {})
        rates.setdefault(row["rate"], []).append(row)
    means = {
        name: {rate: _mean(group) for rate, group in sorted(rates.items())}
        for name, rates in tried.items()
    }
    best = {
        name: min((r for r in rates if rates[r] is not None), key=rates.get)
        for name, rates in means.items()
        if any(mean is not None for mean in rates.values())
    }
    order = sorted(best, key=lambda name: means[name][best[name]])
    lines = report.table(
        ["optimizer", "rate", "held out", "last tenth", "tokens/s"],
        [
            [
                name,
                f"{best[name]:g}",
                f"{means[name][best[name]]:.3f}",
                f"{_last_tenth(tried[name][best[name]]):.3f}",
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
    lines += ["", note, ""]
    for name, rates in means.items():
        each = ", ".join(
            f"{rate:g}: {'diverged' if mean is None else f'{mean:.3f}'}"
            for rate, mean in rates.items()
        )
        edge = best.get(name) in (min(rates), max(rates)) and len(rates) > 1
        note = "; the best rate is at the edge" if edge else ""
        lines.append(f"- {name}, held out by rate: {each}{note}")
    curves = {name: _curve(tried[name][best[name]]) for name in order}
    record = {
        "best": best,
        "held_out_bits_per_byte": means,
        "curves": curves,
        "settings": settings,
    }
    report.write(out, "optimizer_lm", lines, record, plot(curves, means, best))


def plot(curves, means, best):
    """Returns curves at the best rates beside held-out bits over the rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5))
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        # The mean of ten batches: one is too noisy to be told from another.
        size = min(10, len(curve))
        smooth = [
            statistics.fmean(curve[i : i + size])
            for i in range(len(curve) - size + 1)
        ]
        at = range(size, len(curve) + 1)
        left.plot(at, smooth, label=f"{name}, {best[name]:g}")
        points = [(r, m) for r, m in means[name].items() if m is not None]
        right.semilogx(*zip(*points, strict=True), "o-", label=name)
    left.set_xlabel("step")
    left.set_ylabel("bits per byte, training batches")
    right.set_xlabel("learning rate")
    right.set_ylabel("bits per byte, held out")
    for axes in (left, right) if curves else ():
        axes.legend(fontsize=7)
    return figure


def _mean(rows):
    """Mean over seeds, ``None`` if one of them diverged."""
    bits = [row["bits_per_byte"] for row in rows]
    return None if None in bits else statistics.fmean(bits)


def _curve(rows):
    return [
        *map(statistics.fmean, zip(*(r["curve"] for r in rows), strict=True))
    ]


def _last_tenth(rows):
    curve = _curve(rows)
    return statistics.fmean(curve[-max(len(curve) // 10, 1) :])


def _speed(groups):
    speeds = [row["tokens_per_second"] for rows in groups for row in rows]
    return statistics.median(s for s in speeds if s is not None)


if __name__ == "__main__":
    cli.run(define, main)
