r"""Seconds per step of optimizers, as ratios to Muon's in the same run.

The parameters are those of a transformer: ``--layers`` of four ``[d, d]``, one
``[d, 4 d]`` and one ``[4 d, d]`` matrix, and an embedding of ``--vocab`` rows
if that is not 0. Gradients are random; forward and backward passes are not
timed. Newton-Schulz takes five steps everywhere. It runs on the layers, not on
the embedding.

Commands (three minutes; ten for 135 million parameters, 14 GiB)::

    python -m experiments.benchmark_optimizers
    python -m experiments.benchmark_optimizers --width=768 --vocab=65536 \
        --rounds=1 --out=runs/benchmark_140m

The script prints the median step time of each optimizer and writes it to
``--out``, together with the time to orthogonalise all matrices: by optax, leaf
by leaf, and by nl_jax, equal shapes together. ``docs/optimizers.md`` has the
measurements.
"""

import statistics

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from experiments.optimizers.rates import named
from experiments.shared import flags, plot, table
from experiments.shared.records import write
from experiments.shared.timing import in_turn, ratio
from nl_jax import optimizers as nl
from nl_jax.nested.level_table import count_parameters


def _dims(params):
    """Matrices of layers are orthogonalised, the embedding is not."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            None if "embedding" in path[0].key else MuonDimensionNumbers()
        ),
        params,
    )


OPTIMIZERS = {
    # With AdamW for the embedding.
    "muon": lambda rate: optax.contrib.muon(
        rate, nesterov=False, muon_weight_dimension_numbers=_dims
    ),
    "m3": named("m3", dimension_numbers=_dims),
    "m3 leaf by leaf": named("m3", dimension_numbers=_dims, together=False),
    "adamw": named("adamw"),
    "momentum": named("momentum"),
    "delta momentum": named("delta_momentum"),
    "deep momentum": named("deep_momentum"),
}
"""Functions of the learning rate."""
_SETTINGS = {
    "width": flags.integer(256, "Width of the model."),
    "layers": flags.integer(12, "Layers."),
    "vocab": flags.integer(0, "Rows of the embedding.", 0),
    "rounds": flags.integer(7, "Rounds of each."),
    "calls": flags.integer(
        8, "Steps per round; a multiple of M3's period of 8."
    ),
}
FLAGS = {
    **_SETTINGS,
    "optimizers": flags.words(list(OPTIMIZERS), "Which to time.", OPTIMIZERS),
    "out": flags.folder("runs/benchmark_optimizers", "Folder."),
}


def make_params(width, layers, vocab=0):
    """Returns the matrices of a transformer, drawn at random."""
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    keys = iter(jax.random.split(jax.random.key(0), layers * len(shapes) + 1))
    params = {
        f"layer_{i}": [jax.random.normal(next(keys), s) for s in shapes]
        for i in range(layers)
    }
    if vocab:
        params["embedding"] = jax.random.normal(next(keys), (vocab, width))
    return params


def make_step(name, params):
    """Returns a function that takes one step each time it is called."""
    transformation = OPTIMIZERS[name](1e-3)
    update = jax.jit(transformation.update, donate_argnums=1)
    held = {"state": jax.jit(transformation.init)(params)}

    def step():
        updates, held["state"] = update(params, held["state"], params)
        return updates

    return step


def make_orthogonal(params):
    """Returns optax's and our orthogonalisation of all layers."""
    layers = {n: p for n, p in params.items() if n != "embedding"}
    muon = optax.contrib.scale_by_muon(
        beta=0.0, nesterov=False, weight_dimension_numbers=_dims(layers)
    )
    state = jax.jit(muon.init)(layers)
    theirs = jax.jit(lambda p: muon.update(p, state)[0])
    ours = jax.jit(
        lambda p: nl.orthogonalize([x[None] for x in jax.tree.leaves(p)])
    )
    return {
        "orthogonalisation, optax": lambda: theirs(layers),
        "orthogonalisation, ours": lambda: ours(layers),
    }


def main(values: flags.FlagValues) -> None:
    """Times everything in turn and writes the table."""
    params = make_params(values.width, values.layers, values.vocab)
    steps = make_orthogonal(params)
    orthogonal = tuple(steps)
    steps |= {name: make_step(name, params) for name in values.optimizers}
    for step in steps.values():
        jax.block_until_ready(step())
    seconds = in_turn(steps, values.rounds, values.calls)
    base = seconds.get("muon")
    medians = {
        name: 1e3 * statistics.median(each) for name, each in seconds.items()
    }
    rows = [
        [
            name,
            f"{medians[name]:.1f}",
            "" if base is None else f"{ratio(each, base):.2f}",
        ]
        for name, each in seconds.items()
    ]
    count = count_parameters(params)
    theirs, ours = (seconds[name] for name in orthogonal)
    lines = [
        *table.markdown(["what", "ms", "of Muon"], rows),
        "",
        f"optax / ours, orthogonalisation: {ratio(theirs, ours):.2f}; "
        f"{count:,} parameters",
    ]
    record = {
        "seconds": seconds,
        "parameters": count,
        "settings": flags.pick(values, _SETTINGS),
    }
    figure = plot.bars(medians, "milliseconds per step")
    write(values.out, "benchmark_optimizers", lines, record, figure)
