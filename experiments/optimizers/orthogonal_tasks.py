r"""Forgetting on orthogonal tasks: momentum, delta momentum, M3 (eq. 45).

Momentum averages recent gradients and loses those of earlier tasks; the slow
momentum of M3 still holds them (arXiv 2512.24695). One network learns several
regressions one after another, with one optimizer state. Inputs of different
tasks are in randomly rotated orthogonal subspaces, so the gradients of the
first layer are orthogonal for any weights. The tasks share the last layer, and
there they interfere. ``--hidden=0`` leaves one layer, where gradient descent
forgets nothing.

Each task ends at the first step at which its loss has fallen by the share
``--progress`` of its value before all training. Up to one step, all optimizers
therefore make the same progress, on the last task too. Forgetting is the rise
of the loss of earlier tasks since their own end, in units of that first loss;
it is negative if they went on improving. Every optimizer tries the same
learning rates and takes the one with the least forgetting on
``--tuning_seeds``, however many steps it takes. The tables show other seeds.

Command (three minutes on two cores)::

    python -m experiments.orthogonal_tasks

Expected, in percent of the first loss: M3 forgets 4 to 7 less than momentum
after 30, 50 and 70 % of progress and 2 or 3 more after 90 %, in up to three
times the steps. Gradients of a finished task that are still in its memory have
full size again after orthogonalisation, and help only while that task has
something left to learn. The slow momentum contributes at most 3 of the
difference. Muon is as good as M3, and AdamW is better from 50 % on. Delta
momentum is like momentum, and longer momentum is worse than M3 from 50 % on.
With ``--hidden=0`` M3 forgets more than momentum from 50 % on, by 10 to 14.

Results go to ``--out``: a record with all losses, a Markdown table and a plot.
Finished optimizers are not repeated.
"""

import functools
import itertools

import jax
import numpy as np
import optax

from experiments.optimizers.rates import named
from experiments.optimizers.task_sequence import forgotten, learn, make_data
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.sweep import grid, sweep
from nl_jax.errors import InputError

OPTIMIZERS = {
    "momentum": named("momentum"),
    "momentum 0.99": named("momentum", retention=0.99),
    "delta momentum": named("delta_momentum"),
    "m3": named("m3"),
    "m3 without slow": named("m3", slow_weight=0.0),
    "muon": optax.contrib.muon,  # Steps scaled by the shapes of matrices.
    "adamw": named("adamw"),
}
"""Functions of the learning rate; other options keep their defaults."""

_SETTINGS = {
    "tasks": flags.integer(6, "Tasks.", 2),
    "dim": flags.integer(8, "Input dimensions of each."),
    "hidden": flags.integer(
        32, "Units between the two layers; 0 for one layer.", 0
    ),
    "steps": flags.integer(400, "Steps per task at most."),
    "rates": flags.integer(11, "Learning rates tried, from 1e-5 to 1."),
    "progress": flags.numbers(
        [0.3, 0.5, 0.7, 0.9],
        "Shares of its first loss that each task is to lose.",
        lambda share: 0 < share < 1,
        "must be between 0 and 1",
    ),
    "seeds": flags.seeds([0, 1, 2, 3, 4], "Reported."),
    "tuning_seeds": flags.seeds([100, 101, 102], "On which rates are chosen."),
}
FLAGS = {
    "optimizers": flags.words(list(OPTIMIZERS), known=OPTIMIZERS),
    **_SETTINGS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/orthogonal_tasks", "Folder."),
}


def learn_all(name, rates, seeds, settings):
    """Learns at rates ``[P, R]``, one row for each progress, and every seed.

    Returns:
        losses ``[P, R, S, K, K]`` and steps ``[P, R, S]``, NaN if a task did
        not make its progress.
    """
    # Drawn outside the compiled function, because it is equal for all lanes.
    drawn = [
        make_data(seed, *(settings[x] for x in ("tasks", "dim", "hidden")))
        for seed in seeds
    ]
    data = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    lanes = np.broadcast_arrays(
        np.float32(settings["progress"])[:, None, None],
        np.float32(rates)[:, :, None],
        np.arange(len(seeds)),
    )

    def one(progress, rate, i, seeds, data):
        own = jax.tree.map(lambda leaf: leaf[i], data)
        make, steps = OPTIMIZERS[name], settings["steps"]
        return learn(make, progress, rate, seeds[i], own, steps)

    run = jax.jit(jax.vmap(one, (0, 0, 0, None, None)))
    losses, steps, made = jax.device_get(
        run(*(lane.ravel() for lane in lanes), np.asarray(seeds), data)
    )
    losses = np.where(made[:, None, None], losses, np.nan)
    steps = np.where(made, steps, np.nan)
    shape = lanes[0].shape
    return losses.reshape(*shape, *losses.shape[1:]), steps.reshape(shape)


def compare(optimizer, settings):
    """Returns the record of an optimizer: all rates, and runs at the best."""
    tried = np.logspace(-5, 0, settings["rates"])
    everywhere = np.tile(tried, (len(settings["progress"]), 1))
    losses, _ = learn_all(
        optimizer, everywhere, settings["tuning_seeds"], settings
    )
    tuning = forgotten(losses).mean(-1)
    best = tried[np.where(np.isnan(tuning), np.inf, tuning).argmin(1)]
    losses, steps = learn_all(
        optimizer, best[:, None], settings["seeds"], settings
    )
    arrays = {
        "tried": tried,
        "tuning": tuning,
        "rates": best,
        "losses": losses[:, 0],
        "forgotten": forgotten(losses[:, 0]),
        "last task": 1 - losses[:, 0, :, -1, -1],
        "steps": steps[:, 0],
    }
    # JSON has no NaN.
    return {
        key: np.where(np.isnan(array), None, array).tolist()
        for key, array in arrays.items()
    }


def main(values: flags.FlagValues) -> None:
    """Runs all optimizers without a record and reports all results."""
    if set(values.seeds) & set(values.tuning_seeds):
        raise InputError("--tuning_seeds: must not be among --seeds")
    settings = flags.pick(values, _SETTINGS)
    rows = sweep(
        Records(f"{values.out}/orthogonal_tasks", settings),
        grid(optimizer=values.optimizers),
        functools.partial(compare, settings=settings),
        jobs=values.jobs,
        after="{optimizer}: {seconds} s",
    )
    summarize(values.out, settings, rows)


def summarize(out, settings, rows):
    """Writes forgetting, its differences between optimizers, and the steps."""
    lost, ends, steps = (
        {row["optimizer"]: np.array(row[key], float) for row in rows}
        for key in ("forgotten", "last task", "steps")
    )
    less = {
        f"{one} than {other}": lost[other] - lost[one]
        for one, other in itertools.permutations(lost, 2)
        if one == "m3" or (one, other) == ("delta momentum", "momentum")
    }
    lines, progress = [], settings["progress"]
    for title, cells, unit in (
        ("forgotten, %", lost, 0.01),
        ("forgets less by, %", less, 0.01),
        ("progress on the last task, %", ends, 0.01),
        ("steps, all tasks", steps, 1.0),
    ):
        head = [title, *(f"after {x:.0%}" for x in progress)]
        body = [
            [name, *(_cell(x / unit) for x in found)]
            for name, found in cells.items()
        ]
        lines += [*table.markdown(head, body), ""]
    record = {"rows": rows, "settings": settings}
    figure = draw(progress, lost)
    write(out, "orthogonal_tasks", lines[:-1], record, figure)


def _cell(found):
    """Returns mean and spread over the seeds that made the progress."""
    made = np.isfinite(found)
    if not made.any():
        return "not reached"
    note = "" if made.all() else f" ({made.sum()} of {len(made)})"
    return table.spread(found[made]) + note


def draw(progress, lost):
    """Returns the figure of forgetting over progress."""
    curves = {}
    for name, shares in lost.items():
        shares = 100 * np.ma.masked_invalid(shares)
        curves[name] = progress, shares.mean(1), shares.std(1)
    x, y = "progress on every task", "forgotten, % of the first loss"
    figure = plot.curves(plot.Panel(curves, x, y), size=(6, 4))
    figure.axes[0].axhline(0, color="grey", lw=0.5)
    return figure
