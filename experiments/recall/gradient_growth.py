r"""Does the outer gradient grow with the length of the text?

A memory that generates its own targets feeds its writes back to itself. If this
amplifies, the gradient of the slow parameters grows exponentially with the
length, and nothing trains beyond a few chunks, however well the outputs are
bounded. For each model of ``mqar.py`` at initialisation, the script prints the
norm of the gradient of the mean loss over the first ``--lengths`` random
tokens.

Command (a minute per model; the table is in ``docs/recall.md``)::

    python -m experiments.gradient_growth --runs=hope,hope-linear,deltanet

Expected: falling for ``hope``, hundreds at 1,024 tokens for ``hope-linear``.
Results go to ``--out``: JSON, a Markdown table and a plot.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.recall.task import RUNS, make_model
from experiments.shared import flags, plot, table
from experiments.shared.records import write

VOCAB = 256
FLAGS = {
    "runs": flags.words(["hope", "hope-linear"], known=RUNS),
    "lengths": flags.integers([64, 128, 256, 512, 1024], "Tokens.", 1),
    "batch": flags.integer(4, "Sequences."),
    "seed": flags.seed("Of model and tokens."),
    "out": flags.folder("runs/gradient_growth", "Folder of results."),
}


def gradient_norms(model, lengths, batch, seed):
    """Returns the norm of the gradient at initialisation for each length."""
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
    lengths, norms = values.lengths, {}
    for run in values.runs:
        model = make_model(run, VOCAB)
        norms[run] = gradient_norms(model, lengths, values.batch, values.seed)
        print(run, *(f"{norm:,.3g}" for norm in norms[run]), flush=True)
    lines = table.markdown(
        ["run", *(f"{length} tokens" for length in lengths)],
        [[run, *(f"{n:,.3g}" for n in each)] for run, each in norms.items()],
    )
    panel = plot.Panel(
        {run: (lengths, each) for run, each in norms.items()},
        "tokens",
        "norm of the gradient",
        scales=("log", "log"),
        style="o-",
    )
    record = {"norms": norms} | flags.pick(values, ("lengths", "batch", "seed"))
    write(values.out, "gradient_growth", lines, record, plot.curves(panel))
