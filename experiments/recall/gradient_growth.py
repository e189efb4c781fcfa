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

With ``--workdir`` it is the model of a run of ``train_lm`` instead, as trained,
on the beginning of its held-out text; and ``--changes`` measures the same
weights under other choices, one at a time, to find the one that amplifies::

    python -m experiments.gradient_growth --workdir=runs/paper \
        --lengths=64,256 --changes=titans.objective=dot_product,titans.rule=gd

Results go to ``--out``: JSON, a Markdown table and a plot.
"""

import json
import math

import jax
import jax.numpy as jnp
import optax

from experiments.language.held_out import held_out
from experiments.recall.task import RUNS, make_model
from experiments.shared import flags, plot, table
from experiments.shared.records import write
from nl_jax import training
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel, configure

VOCAB = 256
FLAGS = {
    "runs": flags.words(["hope", "hope-linear"], known=RUNS),
    "workdir": flags.string(None, "Folder of a training run, for runs."),
    "step": flags.integer(None, "Which checkpoint of it; default newest."),
    "changes": flags.words(
        [], "Of its model, one at a time: fields that no weight depends on."
    ),
    "lengths": flags.integers([64, 128, 256, 512, 1024], "Tokens.", 1),
    "batch": flags.integer(4, "Sequences."),
    "seed": flags.seed("Of model and tokens."),
    "out": flags.folder("runs/gradient_growth", "Folder of results."),
}


def gradient_norms(model, variables, tokens, lengths):
    """Returns the norm of the gradient over each number of tokens."""

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


def initial(values, shape):
    """Yields each run's name, model, first parameters and random tokens."""
    init, draw = jax.random.split(jax.random.key(values.seed))
    tokens = jax.random.randint(draw, shape, 0, VOCAB)
    for run in values.runs:
        model = make_model(run, VOCAB)
        yield run, model, jax.jit(model.init)(init, tokens[:1, :1]), tokens


def trained(values, shape):
    """Yields the same of a trained model, as it is and with each change."""
    loaded = training.load_model(values.workdir, values.step)
    models = {"as trained": loaded.model} | {
        change: changed(loaded.model, change) for change in values.changes
    }
    (text,) = held_out(loaded, joined=True)
    count, there = math.prod(shape), len(text.tokens)
    if there < count:
        raise InputError(
            f"--batch={values.batch} times {shape[1]} tokens are more than "
            f"the {there} that are held out"
        )
    tokens = jnp.asarray(text.tokens[:count].reshape(shape))
    for name, model in models.items():
        yield name, model, loaded.variables, tokens


def changed(model, change):
    """Returns a model with one field changed.

    Args:
        model: a ``LanguageModel``.
        change: ``FIELD=VALUE``, with dots for nested fields, where the value is
            JSON or a word.

    Raises:
        InputError: for no such field or value, or one that weights depend on.

    Example:
        >>> from nl_jax.models import build
        >>> changed(build("hope"), "titans.eta_max=0.5").config.titans.eta_max
        0.5
    """
    field, given, text = change.partition("=")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    for name in reversed(field.split(".")):
        value = {name: value}
    try:
        if not given:
            raise InputError("must be FIELD=VALUE")
        new = LanguageModel(configure(model.config, **value))
        if new.parameter_shapes() != model.parameter_shapes():
            raise InputError("has parameters of other shapes than the run's")
    except (InputError, TypeError) as error:
        raise InputError(f"--changes={change}: {error}") from error
    return new


def main(values: flags.FlagValues) -> None:
    """Measures all runs and writes the results."""
    if values.changes and not values.workdir:
        raise InputError(
            "--changes goes with --workdir, whose model it changes"
        )
    lengths, norms = values.lengths, {}
    cases = trained if values.workdir else initial
    shape = (values.batch, max(lengths) + 1)
    for run, *case in cases(values, shape):
        norms[run] = gradient_norms(*case, lengths)
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
    names = ("workdir", "step", "lengths", "batch", "seed")
    record = {"norms": norms} | flags.pick(values, names)
    write(values.out, "gradient_growth", lines, record, plot.curves(panel))
