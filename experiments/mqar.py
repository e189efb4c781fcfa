r"""Multi-query associative recall: does a model learn to look things up?

A sequence shows pairs of a key and a value, then some of the keys again among
random tokens; the model answers each with its value. ``--length``, ``--pairs``
and ``--vocab`` set the difficulty. Every model has the same blocks, short
convolution and head, and sees the same batches.

Command (about 4 minutes a run on two cores; stops once it has learned)::

    python -m experiments.mqar --runs=hope,deltanet --seeds=0,1,2

Expected: ``hope`` and ``deltanet`` above 95 % well before step 1,500; the
comparison of parametrisations is in ``docs/recall.md``. Results go to
``--out``: one JSON line per run, a Markdown table and a plot. Finished runs are
not repeated unless a setting changes.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import cli, report
from experiments.records import Records
from nl_jax.models import build, names
from nl_jax.training import InputError

RUNS = {
    **{name: (name, {}) for name in names()},
    "hope-no-momentum": ("hope", {"titans": {"momentum": False}}),
    "hope-gd": ("hope", {"titans": {"rule": "gd"}}),
    "hope-l2": ("hope", {"titans": {"objective": "l2"}}),
    "hope-memory-gain-1": ("hope", {"titans": {"memory_gain": 1.0}}),
    "hope-linear": ("hope", {"titans": {"architecture": "linear"}}),
    "hope-shared": (
        "hope",
        {
            "titans": {
                "architecture": "linear",
                "value_norm": "input",
                "momentum": False,
            }
        },
    ),
    "hope-fixed-k-v": (
        "hope",
        {"titans": {"adaptive_k": False, "adaptive_v": False}},
    ),
    "hope-mlp": ("hope", {"titans": {"architecture": "mlp", "expansion": 2}}),
    "hope-paper": (
        "hope",
        {
            "titans": {
                "architecture": "mlp",
                "expansion": 2,
                "objective": "l2",
            }
        },
    ),
}
"""Name to registry name and overrides. ``hope-shared`` runs all memories as one
recurrence; ``hope-paper`` has the paper's memory and objective."""

_EVERY = 25  # Steps per reported accuracy.
_SETTINGS = {
    "steps": (1500, "Optimizer steps at most."),
    "length": (64, "Tokens per sequence."),
    "pairs": (8, "Pairs per sequence."),
    "vocab": (512, "Half of it keys, half of it values."),
    "batch": (64, "Sequences per step."),
}


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list(
        "runs",
        ["hope", "deltanet"],
        f"Out of {', '.join(RUNS)}.",
        flag_values=values,
    )
    flags.DEFINE_list("seeds", ["0"], "One run each.", flag_values=values)
    for name, (default, text) in _SETTINGS.items():
        flags.DEFINE_integer(name, default, text, 1, flag_values=values)
    flags.DEFINE_float(
        "learning_rate",
        3e-3,
        "Peak of warm-up and cosine.",
        0.0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "target",
        0.95,
        "Accuracy at which a run counts as done.",
        0.0,
        1.0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "out", "runs/mqar", "Folder of the results.", flag_values=values
    )


def make_model(run, vocab):
    """Returns the two blocks of width 64 of a run."""
    name, overrides = RUNS[run]
    overrides = {"cms": {"periods": (1,), "hidden": 2.0}} | overrides
    return build(
        name, vocab_size=vocab, d_model=64, n_layers=2, n_heads=2, **overrides
    )


def make_batch(rng, *, length, pairs, vocab, batch, power=0.01):
    """Draws sequences and their targets, -1 where nothing is asked.

    Keys and values are drawn without replacement, the pairs come first, and
    each key is asked once, at a gap with probability ``~ gap^(power - 1)``.

    Raises:
        InputError: if the pairs do not fit the length or the vocabulary.
    """
    slots = (length - 2 * pairs) // 2
    if slots < pairs:
        raise InputError(
            f"pairs={pairs} do not fit length={length}: at most {length // 4}"
        )
    half = vocab // 2
    if pairs > half - 1:
        raise InputError(f"pairs={pairs} need a vocab above {2 * pairs + 2}")
    order = rng.random((batch, half)).argsort(-1)
    keys = 1 + rng.random((batch, half - 1)).argsort(-1)[:, :pairs]
    values = half + order[:, :pairs]
    odds = np.arange(1.0, slots + 1) ** (power - 1)
    # Gumbel keys: the largest are a draw without replacement.
    score = np.log(odds) + rng.gumbel(size=(batch, slots))
    at = 2 * pairs + 2 * (-score).argsort(-1)[:, :pairs]
    tokens = rng.integers(0, vocab, (batch, length))
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    targets = np.full((batch, length), -1)
    np.put_along_axis(tokens, at, keys, 1)
    np.put_along_axis(targets, at, values, 1)
    return tokens.astype(np.int32), targets.astype(np.int32)


def train(run, seed, settings):
    """Trains one run and returns its record."""
    model = make_model(run, settings.vocab)
    rng = np.random.default_rng(seed)
    shape = {
        "length": settings.length,
        "pairs": settings.pairs,
        "vocab": settings.vocab,
        "batch": settings.batch,
    }
    variables = jax.jit(model.init)(
        jax.random.key(seed), jnp.zeros((1, settings.length), jnp.int32)
    )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        settings.learning_rate,
        min(100, settings.steps // 2),
        settings.steps,
        0.05 * settings.learning_rate,
    )
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.95, weight_decay=0.1),
    )

    @jax.jit
    def step(variables, opt_state, tokens, targets):
        def loss(variables):
            logits, _ = model.apply(variables, tokens)
            asked = targets >= 0
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.maximum(targets, 0)
            )
            right = (logits.argmax(-1) == targets) & asked
            count = asked.sum()
            return (losses * asked).sum() / count, right.sum() / count

        grads, accuracy = jax.grad(loss, has_aux=True)(variables)
        updates, opt_state = tx.update(grads, opt_state, variables)
        return optax.apply_updates(variables, updates), opt_state, accuracy

    opt_state, curve, window = tx.init(variables), [], []
    begun = time.perf_counter()
    for number in range(1, settings.steps + 1):
        batch = make_batch(rng, **shape)
        variables, opt_state, accuracy = step(variables, opt_state, *batch)
        window.append(accuracy)
        if number % _EVERY == 0:
            curve.append(round(float(np.mean(window)), 4))
            window = []
            print(
                f"{run} seed {seed} step {number} {curve[-1]:.3f}", flush=True
            )
            if curve[-1] > max(settings.target, 0.98):
                break
    reached = [i for i, a in enumerate(curve, 1) if a >= settings.target]
    return {
        "run": run,
        "seed": seed,
        "parameters": sum(a.size for a in jax.tree.leaves(variables)),
        "steps_to_target": reached[0] * _EVERY if reached else None,
        "accuracy": curve[-1] if curve else None,
        "curve": curve,
        "every": _EVERY,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def summarize(records, settings, out):
    """Writes the table, the record and the plot of all runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for r in records:
        steps = r["every"] * np.arange(1, len(r["curve"]) + 1)
        axes.plot(steps, r["curve"], label=f"{r['run']} ({r['seed']})")
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy at queries")
    axes.legend(fontsize=7)
    lines = report.table(
        ["run", "seed", "parameters", "steps to target", "last accuracy"],
        [
            [
                r["run"],
                r["seed"],
                f"{r['parameters']:,}",
                r["steps_to_target"] or "not reached",
                f"{100 * r['accuracy']:.1f} %",
            ]
            for r in records
        ],
    )
    record = {"runs": records, "settings": settings}
    report.write(out, "mqar", lines, record, figure)


def main(values: flags.FlagValues) -> None:
    """Runs what has no record yet and reports all runs with its settings."""
    cli.check_names("runs", values.runs, RUNS)
    seeds = cli.integers("seeds", values.seeds, 0)
    out = pathlib.Path(values.out)
    fields = (*_SETTINGS, "learning_rate", "target")
    settings = {name: values[name].value for name in fields}
    records = Records(out / "mqar.jsonl", settings)
    for seed in seeds:
        for run in values.runs:
            if records.find(run=run, seed=seed) is None:
                records.add(train(run, seed, values))
    summarize(records.rows, settings, out)


if __name__ == "__main__":
    cli.run(define, main)
