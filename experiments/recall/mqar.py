r"""Multi-query associative recall: does a model learn to look things up?

A sequence shows pairs of a key and a value, then the keys again among random
tokens; the model has to answer each key with its value. ``--slices`` (tokens
and pairs of a sequence) and ``--vocab`` set the difficulty. A model is trained
on all slices in turn, one step each, and tested on each. All models have the
same blocks, short convolution and head, and see the same batches. Steps whose
gradient is not finite are skipped and counted.

Commands (about 4 minutes a run on two cores; a run stops once it has learned)::

    python -m experiments.mqar --runs=hope,deltanet --seeds=0,1,2
    python -m experiments.mqar --slices=64:4,128:8,256:16,512:64 --vocab=192 \
        --tokens=2048 --steps=400 --learning_rate=0.01

Expected: ``hope`` and ``deltanet`` above 95 % well before step 1,500 of the
first command. ``docs/recall.md`` compares parametrisations, and all models on
the slices of the second. Results go to ``--out``: one JSON file per run, a
Markdown table and a plot. Finished runs are not repeated unless a setting
changes.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.recall.task import RUNS, make_batch, make_model, parse_slices
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import grid, sweep
from experiments.shared.training import asked_loss
from nl_jax.nested.level_table import count_parameters

_EVERY = 25  # Steps of each slice per reported accuracy.
_TEST_SEED = (0, 1)  # Differs from every integer seed below 2^32.

_SETTINGS = {
    "steps": flags.integer(1500, "Optimizer steps at most."),
    "vocab": flags.integer(512, "Half of it keys, half of it values."),
    "tokens": flags.integer(4096, "Per step, as many sequences as they hold."),
    "tests": flags.integer(
        128, "Sequences of each slice to test on, in whole batches."
    ),
    "slices": flags.words(["64:8"], "LENGTH:PAIRS of sequences."),
    "learning_rate": flags.number(3e-3, "Peak of warm-up and cosine.", 0.0),
    "target": flags.number(
        0.95, "Accuracy on all slices at which a run counts as done.", 0.0, 1.0
    ),
}
FLAGS = {
    "runs": flags.words(["hope", "deltanet"], known=RUNS),
    "seeds": flags.seeds([0]),
    **_SETTINGS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/mqar", "Folder of the results."),
}


def train(run, seed, slices, settings):
    """Trains one run on all slices in turn and returns its record."""
    model = make_model(run, settings.vocab)
    rng = np.random.default_rng(seed)
    variables = jax.jit(model.init)(
        jax.random.key(seed), jnp.zeros((1, slices[0].length), jnp.int32)
    )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        min(100, settings.steps // 2),
        settings.steps,
        0.05 * settings.learning_rate,
    )
    tx = optax.apply_if_finite(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, b2=0.95, weight_decay=0.1),
        ),
        max_consecutive_errors=settings.steps,
    )

    @jax.jit
    def gradients(variables, tokens, targets):
        def loss(variables):
            logits, _ = model.apply(variables, tokens)
            return asked_loss(logits, targets), _share(logits, targets)

        return jax.grad(loss, has_aux=True)(variables)

    @jax.jit  # Separate, so that it compiles once and not for each slice.
    def update(grads, opt_state, variables):
        updates, opt_state = tx.update(grads, opt_state, variables)
        return optax.apply_updates(variables, updates), opt_state

    opt_state, curve, number = tx.init(variables), [], 0
    every = _EVERY * len(slices)
    window = {each: [] for each in slices}
    while number < settings.steps:
        each = slices[number % len(slices)]
        batch = _draw(rng, each, settings)
        grads, accuracy = gradients(variables, *batch)
        variables, opt_state = update(grads, opt_state, variables)
        window[each].append(accuracy)
        number += 1
        if number % every == 0:
            curve.append([_mean(shares) for shares in window.values()])
            window = {each: [] for each in slices}
            _progress(run, seed, f"step {number}", curve[-1])
            if min(curve[-1]) > max(settings.target, 0.98):
                break
    reached = [i for i, a in enumerate(curve, 1) if min(a) >= settings.target]
    accuracy = test(gradients, variables, slices, settings)
    _progress(run, seed, "tested", accuracy)
    return {
        "parameters": count_parameters(variables),
        "steps": number,
        "steps_to_target": reached[0] * every if reached else None,
        "accuracy": accuracy,
        "skipped": int(opt_state.total_notfinite),
        "curve": curve,
        "every": every,
    }


def test(gradients, variables, slices, settings):
    """Returns the accuracy on each slice, on the same sequences in all runs."""
    accuracy = []
    for each in slices:
        rng = np.random.default_rng(_TEST_SEED)
        batches = -(-settings.tests // (settings.tokens // each.length))
        drawn = (_draw(rng, each, settings) for _ in range(batches))
        # Computing gradients too is cheaper than compiling another program.
        accuracy.append(
            _mean([gradients(variables, *batch)[1] for batch in drawn])
        )
    return accuracy


def _draw(rng, each, settings):
    return make_batch(
        rng,
        length=each.length,
        pairs=each.pairs,
        vocab=settings.vocab,
        batch=settings.tokens // each.length,
    )


def _share(logits, targets):
    asked = targets >= 0
    return ((logits.argmax(-1) == targets) & asked).sum() / asked.sum()


def _mean(shares):
    return round(float(np.mean(shares)), 4)


def _progress(run, seed, when, accuracy):
    shares = " ".join(f"{share:.3f}" for share in accuracy)
    print(f"{run} seed {seed} {when} {shares}", flush=True)


def summarize(rows, slices, settings, out):
    """Writes the table, the record and the plot of all runs."""
    panels = [
        plot.Panel(
            {
                f"{row['run']} ({row['seed']})": (
                    row["every"] * np.arange(1, len(row["curve"]) + 1),
                    [accuracy[i] for accuracy in row["curve"]],
                )
                for row in rows
            },
            "step",
            "accuracy at queries" if i == 0 else "",
            f"{each.length} tokens, {each.pairs} pairs",
        )
        for i, each in enumerate(slices)
    ]
    size = (4 * len(slices) + 3, 4)
    figure = plot.curves(*panels, size=size, legend=None, sharey=True)
    head = ["run", "seed", "parameters", "steps", "steps to target"]
    lines = table.markdown(
        [*head, *(f"{each} %" for each in slices)],
        [
            [
                row["run"],
                row["seed"],
                f"{row['parameters']:,}",
                row["steps"],
                row["steps_to_target"] or "not reached",
                *(f"{100 * share:.1f}" for share in row["accuracy"]),
            ]
            for row in rows
        ],
    )
    write(out, "mqar", lines, {"runs": rows, "settings": settings}, figure)


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record; reports all runs with its settings."""
    slices = parse_slices(
        values.slices, vocab=values.vocab, tokens=values.tokens
    )
    settings = flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/mqar", settings)
    sweep(
        records,
        grid(seed=values.seeds, run=values.runs),
        functools.partial(
            train, slices=slices, settings=types.SimpleNamespace(**settings)
        ),
        jobs=values.jobs,
    )
    summarize(records.rows, slices, settings, values.out)


def _slice(number):
    """Returns the accuracy at a slice, ``None`` where there is none."""
    return lambda row: dict(enumerate(row["accuracy"])).get(number)


REPORT = Report(
    "Multi-query associative recall",
    ("run",),
    {
        **{
            f"{part} slice, %": Column(_slice(n), ".1f", 100)
            for n, part in enumerate(("1st", "2nd", "3rd", "4th"))
        },
        "steps": Column("steps", ",.0f"),
        "parameters": Column("parameters", ",.0f"),
    },
    [
        Plot(
            "accuracy",
            "accuracy at queries, %",
            lambda row: [int(each.split(":")[0]) for each in row["slices"]],
            "tokens",
            scales=("log", "linear"),
            scale=100,
        )
    ],
    note="Slices are tokens:pairs, in the order of the configuration.",
)
