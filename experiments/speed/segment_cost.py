"""Cost of segment ids: a training step with documents in its rows.

Rows hold one to four documents of random lengths. The loss and its gradient are
computed with their segment ids and without, in turn; times are processor time,
the median of the rounds::

    python -m experiments.segment_cost --models=transformer,hope,hope/local

``NAME/OBJECTIVE`` stands for a model whose continuum memory learns in context.
Results go to ``--out``: a JSON file per case, a record, a
Markdown table and a plot.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.sweep import grid, sweep
from experiments.shared.timing import in_turn
from nl_jax import training
from nl_jax.errors import InputError
from nl_jax.models import build

_SETTINGS = {
    "width": flags.integer(
        128, "Of the model, a multiple of 8.", multiple_of=8
    ),
    "layers": flags.integer(1, "Blocks."),
    "batch": flags.integer(8, "Rows."),
    "rounds": flags.integer(5, "Steps of each kind; their median counts."),
}
FLAGS = {
    "models": flags.words(
        ["transformer", "gated-deltanet", "mamba", "titans", "hope"],
        "Names of models, or NAME/OBJECTIVE.",
    ),
    "lengths": flags.integers([256, 1024], "Tokens per row.", 64),
    **_SETTINGS,
    "out": flags.folder("runs/segment_cost", "Folder of results."),
}


def main(values: flags.FlagValues) -> None:
    """Measures all cases without a record and writes the results."""
    settings = flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/segment_cost", settings)
    models = {name: _model(name, values) for name in values.models}
    rows = sweep(
        records,
        grid(model=list(models), length=values.lengths),
        lambda model, length: measure(
            models[model], values.batch, length, values.rounds
        ),
        after="{model} at {length} tokens after {seconds} s",
    )
    head = ("model", "tokens", "time", "compilation", "temporaries")
    kinds = ("seconds", "compile_seconds", "bytes")
    body = [
        (
            row["model"],
            f"{row['length']:,}",
            *(round(row[f"packed_{k}"] / row[f"plain_{k}"], 2) for k in kinds),
        )
        for row in rows
    ]
    record = {"settings": settings, "rows": rows}
    panel = plot.Panel(
        {
            name: [
                [row["length"] for row in rows if row["model"] == name],
                [row[2] for row in body if row[0] == name],
            ]
            for name in models
        },
        "tokens",
        "time of a step with segment ids, relative",
        style="o-",
    )
    lines = table.markdown(head, body)
    write(values.out, "segment_cost", lines, record, plot.curves(panel))


def measure(model, batch: int, length: int, rounds: int) -> dict:
    """Returns times and bytes of a step with segment ids, and without."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 256, (batch, length)))
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    ids = np.ones((batch, length), np.int32)
    for row in range(batch):
        cuts = rng.choice(np.arange(8, length - 8), row % 4, replace=False)
        ids[row] += np.searchsorted(np.sort(cuts), np.arange(length), "right")

    def loss(variables, tokens, ids):
        logits, _ = model.apply(variables, tokens, segment_ids=ids)
        return training.token_losses(logits[:, :-1], tokens[:, 1:]).mean()

    found, steps = {}, {}
    for kind, given in (("plain", None), ("packed", jnp.asarray(ids))):
        began = time.process_time()
        step = jax.jit(jax.value_and_grad(loss))
        program = step.lower(variables, tokens, given).compile()
        found[f"{kind}_compile_seconds"] = time.process_time() - began
        memory = program.memory_analysis()
        found[f"{kind}_bytes"] = memory.temp_size_in_bytes
        steps[kind] = functools.partial(program, variables, tokens, given)
        jax.block_until_ready(steps[kind]())
    seconds = in_turn(steps, rounds, clock=time.process_time)
    for kind, each in seconds.items():
        found[f"{kind}_seconds"] = statistics.median(each)
    return found


def _model(name, values):
    base, _, objective = name.partition("/")
    cms = {"objective": objective, "token_periods": (16, 64)}
    try:
        return build(
            base,
            d_model=values.width,
            n_heads=4,
            n_layers=values.layers,
            **{"cms": cms} if objective else {},
        )
    except ValueError as error:
        raise InputError(f"--models={name}: {error}") from error
