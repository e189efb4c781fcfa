r"""Seconds per step of optimizers, as ratios to Muon's in the same run.

The parameters are those of a transformer, ``--layers`` of four ``[d, d]``, one
``[d, 4 d]`` and one ``[4 d, d]`` matrix; gradients are random, forward and
backward passes are not timed. Newton-Schulz takes five steps everywhere.

Command (minutes)::

    python -m experiments.benchmark_optimizers

Prints, and writes to ``--out``, the median of each optimizer's step, and that
of orthogonalising all matrices: optax's, leaf by leaf, and ours, equal shapes
together. Measured on two CPU cores at width 256: M3 0.73 times Muon (0.59 leaf
by leaf), orthogonalisation 1.49 times as fast as optax's.
"""

import pathlib
import statistics
import time

import jax
import optax
from absl import flags

from experiments import cli
from nl_jax import optimizers as nl
from nl_jax.training import git_revision, versions, write_json

OPTIMIZERS = {
    "muon": lambda: optax.contrib.muon(1e-3, nesterov=False),
    "m3": lambda: nl.m3(1e-3),
    "m3, leaf by leaf": lambda: nl.m3(1e-3, together=False),
    "adamw": lambda: optax.adamw(1e-3),
    "delta momentum": lambda: nl.delta_momentum(1e-3, 0.1, normalize=True),
    "deep momentum": lambda: nl.deep_momentum(1e-3, expansion=1),
}


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    for name, default, text in (
        ("width", 256, "Width of the model."),
        ("layers", 12, "Layers."),
        ("rounds", 7, "Rounds of each."),
        ("calls", 8, "Steps per round; a multiple of M3's period of 8."),
    ):
        flags.DEFINE_integer(name, default, text, 1, flag_values=values)
    flags.DEFINE_list(
        "optimizers", list(OPTIMIZERS), "Which to time.", flag_values=values
    )
    flags.DEFINE_string(
        "out", "runs/benchmark_optimizers", "Folder.", flag_values=values
    )


def make_params(width, layers):
    """Returns the matrices of a transformer, drawn at random."""
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    keys = iter(jax.random.split(jax.random.key(0), layers * len(shapes)))
    return [
        [jax.random.normal(next(keys), shape) for shape in shapes]
        for _ in range(layers)
    ]


def make_step(name, params):
    """Returns a function that takes one step each time it is called."""
    transformation = OPTIMIZERS[name]()
    update = jax.jit(transformation.update, donate_argnums=1)
    held = {"state": jax.jit(transformation.init)(params)}

    def step():
        updates, held["state"] = update(params, held["state"], params)
        return updates

    return step


def make_orthogonal(params):
    """Returns optax's and our orthogonalisation of all leaves."""
    muon = optax.contrib.scale_by_muon(
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=jax.tree.map(
            lambda _: optax.contrib.MuonDimensionNumbers(), params
        ),
    )
    state = muon.init(params)
    theirs = jax.jit(lambda p: muon.update(p, state)[0])
    ours = jax.jit(
        lambda p: nl.orthogonalize([x[None] for x in jax.tree.leaves(p)])
    )
    return {
        "orthogonalisation, optax": lambda: theirs(params),
        "orthogonalisation, ours": lambda: ours(params),
    }


def main(values: flags.FlagValues) -> None:
    """Times everything in turn and writes the table."""
    cli.check_names("optimizers", values.optimizers, OPTIMIZERS)
    params = make_params(values.width, values.layers)
    steps = {name: make_step(name, params) for name in values.optimizers}
    orthogonal = make_orthogonal(params)
    steps |= orthogonal
    for step in steps.values():
        jax.block_until_ready(step())
    seconds = {name: [] for name in steps}
    for _ in range(values.rounds):
        for name, step in steps.items():
            begun = time.perf_counter()
            for _ in range(values.calls):
                out = step()
            jax.block_until_ready(out)
            seconds[name].append((time.perf_counter() - begun) / values.calls)
    base = seconds.get("muon")
    lines = ["| what | ms | of muon |", "|---|---:|---:|"]
    for name, each in seconds.items():
        ratio = "" if base is None else f"{_ratio(each, base):.2f}"
        lines.append(
            f"| {name} | {1e3 * statistics.median(each):.1f} | {ratio} |"
        )
    theirs, ours = (seconds[n] for n in orthogonal)
    lines.append(
        f"\noptax / ours, orthogonalisation: {_ratio(theirs, ours):.2f}"
    )
    print("\n".join(lines))
    out = pathlib.Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark_optimizers.md").write_text("\n".join(lines) + "\n")
    write_json(
        out / "benchmark_optimizers.json",
        {
            "seconds": seconds,
            "width": values.width,
            "layers": values.layers,
            "parameters": sum(a.size for a in jax.tree.leaves(params)),
            "versions": versions(),
            "git_revision": git_revision(),
        },
    )


def _ratio(a, b):
    """Median of the ratios of rounds, which share what disturbs them."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    cli.run(define, main)
