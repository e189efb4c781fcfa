r"""Does the outer gradient grow with the length of what is read?

A memory that generates its own targets feeds on its own writes. Where that
amplifies, the slow parameters' gradient grows exponentially with the length and
nothing trains beyond a few chunks, however well the outputs are bounded. For
each model of ``experiments/mqar.py``, as initialised, this prints the norm of
the gradient of the mean loss over the first ``--lengths`` tokens, random ones.

Command (a minute a model; the table is in ``docs/recall.md``)::

    python -m experiments.gradient_growth --runs=hope,hope-linear,deltanet

Expected: falling for ``hope``, hundreds at 1,024 tokens for ``hope-linear``.
Results go to ``--out``: JSON, a Markdown table and a plot.
"""

import jax
import jax.numpy as jnp
import optax
from absl import flags

from experiments import cli, mqar, report

VOCAB = 256


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_list(
        "runs",
        ["hope", "hope-linear"],
        f"Out of {', '.join(mqar.RUNS)}.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "lengths",
        ["64", "128", "256", "512", "1024"],
        "Tokens.",
        flag_values=values,
    )
    flags.DEFINE_integer("batch", 4, "Sequences.", 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of model and tokens.", flag_values=values)
    flags.DEFINE_string(
        "out", "runs/gradient_growth", "Folder of results.", flag_values=values
    )


def gradient_norms(model, lengths, batch, seed):
    """Returns the gradient's norm at initialisation for each length."""
    init, draw = jax.random.split(jax.random.key(seed))
    shape = (batch, max(lengths) + 1)
    tokens = jax.random.randint(draw, shape, 0, VOCAB)
    variables = jax.jit(model.init)(init, tokens[:1, :1])

    @jax.jit
    def norm(variables, length):
        def loss(variables):
            logits, _ = model.apply(variables, tokens[:, :-1])
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, tokens[:, 1:]
            )
            # A mask, so that all lengths share one compilation.
            read = jnp.arange(losses.shape[1]) < length
            return (losses.mean(0) * read).sum() / length

        return optax.tree.norm(jax.grad(loss)(variables))

    return [float(norm(variables, length)) for length in lengths]


def main(values: flags.FlagValues) -> None:
    """Measures all runs and writes the results."""
    cli.check_names("runs", values.runs, mqar.RUNS)
    lengths = cli.integers("lengths", values.lengths, 1)
    norms = {}
    for run in values.runs:
        model = mqar.make_model(run, VOCAB)
        norms[run] = gradient_norms(model, lengths, values.batch, values.seed)
        print(run, *(f"{norm:,.3g}" for norm in norms[run]), flush=True)
    lines = report.table(
        ["run", *(f"{length} tokens" for length in lengths)],
        [[run, *(f"{n:,.3g}" for n in each)] for run, each in norms.items()],
    )
    record = {
        "lengths": lengths,
        "norms": norms,
        "batch": values.batch,
        "seed": values.seed,
    }
    figure = plot(lengths, norms)
    report.write(values.out, "gradient_growth", lines, record, figure)


def plot(lengths, norms):
    """Returns a figure of every run's norm over the length, logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for run, values in norms.items():
        axes.loglog(lengths, values, marker="o", label=run)
    axes.set_xlabel("tokens")
    axes.set_ylabel("norm of the gradient")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    cli.run(define, main)
