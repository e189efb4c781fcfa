r"""Momentum and delta momentum in a curved valley (eq. 53).

The loss is :math:`\psi(r, \theta) = r^2 + k (r - \theta + a \sin \omega r)^2`
with start :math:`(-3.5, 2)` and minimum 0 at the origin. For every pair
:math:`(k, \omega)` each optimizer tries the same learning rates. The result is
the number of steps until :math:`\psi` is below ``--threshold``, at its best
rate.

Command (a minute)::

    python -m experiments.landscape

Results go to ``--out``: JSON, a Markdown table of the whole grid, including the
pairs where delta momentum loses, and a plot of trajectories.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared import flags, plot, table
from experiments.shared.records import write
from nl_jax.optimizers import NAMED

START = (-3.5, 2.0)
_SETTINGS = {
    "a": flags.number(1.0, "Width of the waves.", 0.0),
    "retention": flags.number(0.9, "Of both memories.", 0.0),
    "rho": flags.number(0.1, "Strength of the delta term.", 0.0),
    "threshold": flags.number(1e-3, "Loss at which a run counts as done.", 0.0),
    "steps": flags.integer(5000, "At most."),
}
FLAGS = {
    "k": flags.numbers([1, 3, 10, 30, 100], "Steepness of the valley."),
    "omega": flags.numbers([0.5, 1, 2, 3, 5], "Waves of the valley."),
    **_SETTINGS,
    "rates": flags.integer(13, "Learning rates tried, from 1e-4 to 1e-1."),
    "out": flags.folder("runs/landscape", "Folder of results."),
}


def make_loss(k, omega, a):
    """Returns the loss as a function of a point ``[2]``."""

    def loss(point):
        r, theta = point
        return r**2 + k * (r - theta + a * jnp.sin(omega * r)) ** 2

    return loss


def descend(transformation, k, omega, a, rate, steps):
    """Returns the trajectory ``[steps + 1, 2]`` and its losses."""
    loss = make_loss(k, omega, a)

    def step(carry, _):
        point, state = carry
        updates, state = transformation.update(jax.grad(loss)(point), state)
        return (point - rate * updates, state), point

    start = jnp.array(START)
    (end, _), points = jax.lax.scan(
        step, (start, transformation.init(start)), length=steps
    )
    points = jnp.concatenate([points, end[None]])
    return points, jax.vmap(loss)(points)


def main(values: flags.FlagValues) -> None:
    """Runs the grid and reports all results."""
    rates = np.logspace(-4, -1, values.rates)
    optimizers = {
        "momentum": NAMED["momentum"].build(retention=values.retention),
        "delta momentum": NAMED["delta_momentum"].build(
            rho=values.rho, retention=values.retention
        ),
    }
    grid = [(k, omega) for k in values.k for omega in values.omega]
    runs = jnp.asarray([(*pair, rate) for pair in grid for rate in rates])
    found = {}
    for name, transformation in optimizers.items():

        def steps_needed(run, transformation=transformation):
            k, omega, rate = run
            _, losses = descend(
                transformation, k, omega, values.a, rate, values.steps
            )
            below = losses < values.threshold
            return jnp.where(below.any(), below.argmax(), values.steps + 1)

        needed = jax.jit(jax.vmap(steps_needed))(runs)
        found[name] = np.asarray(needed).reshape(len(grid), -1)
    summarize(values, grid, rates, optimizers, found)


def summarize(values, grid, rates, optimizers, found):
    """Writes the table, the record and the plot."""
    rows, body, wins = [], [], 0
    for index, (k, omega) in enumerate(grid):
        best = {name: int(steps[index].min()) for name, steps in found.items()}
        at = {
            name: float(rates[steps[index].argmin()])
            for name, steps in found.items()
        }
        wins += best["delta momentum"] < best["momentum"]
        rows.append({"k": k, "omega": omega, "steps": best, "rates": at})
        cells = [
            n if n <= values.steps else "not reached" for n in best.values()
        ]
        tried = ", ".join(f"{rate:.2g}" for rate in at.values())
        body.append([f"{k:g}", f"{omega:g}", *cells, tried])
    lines = table.markdown(["k", "omega", *found, "rates"], body)
    lines += ["", f"delta momentum is first in {wins} of {len(grid)}"]
    settings = flags.pick(values, _SETTINGS)
    record = {"rows": rows, "wins": wins, "settings": settings}
    figure = draw(values, rows[len(rows) // 2], optimizers)
    write(values.out, "landscape", lines, record, figure)


def draw(values, row, optimizers):
    """Returns a figure of both trajectories at one pair of the grid."""
    figure, (axes,) = plot.axes((6, 5))
    r, theta = np.meshgrid(np.linspace(-4.5, 2, 200), np.linspace(-5, 4, 200))
    loss = make_loss(row["k"], row["omega"], values.a)
    axes.contour(
        r, theta, np.log1p(loss(jnp.stack([r, theta]))), 20, cmap="Greys"
    )
    for name, transformation in optimizers.items():
        points, _ = descend(
            transformation,
            row["k"],
            row["omega"],
            values.a,
            row["rates"][name],
            min(row["steps"][name], values.steps),
        )
        axes.plot(*np.asarray(points).T, marker=".", ms=2, lw=0.8, label=name)
    axes.set(
        title=f"k = {row['k']:g}, omega = {row['omega']:g}",
        xlabel="r",
        ylabel="theta",
        xlim=(-4.5, 2),
        ylim=(-5, 4),
    )
    axes.legend()
    return figure
