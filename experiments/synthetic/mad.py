r"""The synthetic tasks of MAD (Table 4): recall, compression, copying.

============== ================================================================
recall         the value of a key that was shown before, of eight
noisy recall   the same among noise
fuzzy recall   keys and values are motifs of one to three tokens
memorization   the values of 127 keys, which are the same in all sequences
compression    all symbols, from the last hidden vector and a position
copying        16 symbols in order, from among blanks
============== ================================================================

All models have two blocks, the same short convolution, MLP and head, and see
the same sequences. The tasks have a vocabulary of 16 (noisy recall 32,
memorization 256). ``--width=128 --length=256 --steps=20000`` is the size of the
paper; ``--length`` is a bound, since the tasks have lengths of their own.

Command (8 to 25 minutes a run on one core, half with ``--batch=64``)::

    python -m experiments.mad --runs=hope,deltanet --seeds=0,1,2

Results: ``docs/synthetic.md``. They go to ``--out``: runs as JSON files, a
Markdown table, a record and a plot. Finished runs are not repeated.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.recall.task import RUNS, make_model
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Paper, Plot, Report
from experiments.shared.sweep import grid, grouped, sweep
from experiments.shared.training import asked_loss, clipped_adamw, make_step
from experiments.synthetic.mad_tasks import TASKS, accuracies
from nl_jax.models import LanguageModel
from nl_jax.nested.level_table import count_parameters

_TEST_SEED = (0, 1)  # Differs from every integer seed.
_SETTINGS = {
    "width": flags.integer(64, "Of the models.", multiple_of=2),
    "length": flags.integer(64, "Tokens at most.", 34, multiple_of=2),
    "batch": flags.integer(128, "Sequences per step."),
    "steps": flags.integer(
        None, "Steps; by default 600, and 1,000 of selective copying."
    ),
    "examples": flags.integer(12_800, "To train on; memorization has 256."),
    "tests": flags.integer(1280, "Sequences to test on."),
    "learning_rate": flags.number(3e-3, "Peak of warm-up and cosine.", 0.0),
    "weight_decay": flags.number(0.1, "Of AdamW.", 0.0),
}
FLAGS = {
    "tasks": flags.words(list(TASKS), "Tasks.", TASKS),
    "runs": flags.words(["hope", "deltanet"], known=RUNS),
    "seeds": flags.seeds([0]),
    **_SETTINGS,
    "every": flags.integer(100, "Steps between tests."),
    "jobs": flags.jobs(),
    "out": flags.folder("runs/mad", "Folder of the results."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    settings = flags.pick(values, _SETTINGS)
    rows = sweep(
        Records(f"{values.out}/mad", settings),
        grid(seed=values.seeds, task=values.tasks, run=values.runs),
        functools.partial(train, settings=settings, every=values.every),
        after="{task}, {run}, seed {seed}: {macro:.1f} % after {seconds} s",
        jobs=values.jobs,
    )
    summarize(rows, settings, values.out)


class SymbolDecoder(nn.Module):
    """Predicts all symbols of a sequence from one vector, ``[B, D]``."""

    length: int
    vocab: int

    @nn.compact
    def __call__(self, hidden):
        """Returns logits, ``[B, T, V]``."""
        width = hidden.shape[-1]
        rates = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
        angles = jnp.arange(self.length)[:, None] * rates
        at = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        x = hidden[:, None] + at
        for _ in range(2):
            x = nn.gelu(nn.Dense(width)(nn.RMSNorm()(x)))
        return nn.Dense(self.vocab)(nn.RMSNorm()(x))


class Compressor:
    """A model whose last output a :class:`SymbolDecoder` reads.

    The head of the model gives as many numbers as the model is wide, a linear
    map of its last hidden vector.
    """

    def __init__(self, model: LanguageModel, length: int, vocab: int):
        self._model, self._decoder = model, SymbolDecoder(length, vocab)

    def init(self, rng, tokens):
        """Draws the parameters of both."""
        hidden = jnp.zeros((1, self._model.config.vocab_size))
        return {
            "model": self._model.init(rng, tokens),
            "decoder": self._decoder.init(jax.random.fold_in(rng, 1), hidden),
        }

    def apply(self, variables, tokens):
        """Returns logits of all symbols, and the model's state."""
        hidden, state = self._model.apply(variables["model"], tokens)
        return self._decoder.apply(variables["decoder"], hidden[:, -1]), state


def model_for(run, task, width, length):
    """Returns the model of a run, with a decoder for compression."""
    vocab = TASKS[task].vocab
    if task != "compression":
        return make_model(run, vocab, d_model=width)
    model = make_model(
        run, max(vocab, width), d_model=width, tie_embeddings=False
    )
    return Compressor(model, length, vocab)


def train(run, task, seed, settings, every):
    """Trains once, testing on the way, and returns the record."""
    own = TASKS[task]
    length = min(settings["length"], own.length)
    steps = settings["steps"] or own.steps
    model = model_for(run, task, settings["width"], length)
    rng = np.random.default_rng(seed)
    examples = min(settings["examples"], own.examples)
    tokens, targets = own.draw(rng, examples, length, True)
    tests = own.draw(
        np.random.default_rng(_TEST_SEED), settings["tests"], length, False
    )
    variables = jax.jit(model.init)(jax.random.key(seed), tokens[:1])
    tx = clipped_adamw(
        settings["learning_rate"], steps, settings["weight_decay"]
    )

    def loss(variables, tokens, targets):
        return asked_loss(model.apply(variables, tokens)[0], targets)

    step = make_step(loss, tx)

    @jax.jit
    def predict(variables, tokens):
        return model.apply(variables, tokens)[0].argmax(-1)

    def test():
        batches = range(0, settings["tests"], settings["batch"])
        found = [
            predict(variables, tests[0][at : at + settings["batch"]])
            for at in batches
        ]
        shares = accuracies(np.concatenate(found), tests[1])
        return [round(100 * share, 2) for share in shares]

    state, curve, order = tx.init(variables), [], []
    for number in range(1, steps + 1):
        if len(order) < settings["batch"]:
            order = [*order, *rng.permutation(len(tokens))]
        rows, order = order[: settings["batch"]], order[settings["batch"] :]
        variables, state, value = step(
            variables, state, tokens[rows], targets[rows]
        )
        if number % every == 0 or number == steps:
            curve.append([number, round(float(value), 4), *test()])
            print(
                f"{task} {run} seed {seed} step {number} loss {value:.4f} "
                f"macro {curve[-1][2]:.1f} % token {curve[-1][3]:.1f} %",
                flush=True,
            )
    return {
        "macro": curve[-1][2],
        "token": curve[-1][3],
        "steps": steps,
        "tokens": length,
        "curve": curve,
        "parameters": count_parameters(variables),
    }


def summarize(rows, settings, out):
    """Writes a table of tasks and runs, the record and a plot."""
    cells = [
        [
            task,
            run,
            own[0]["tokens"],
            own[0]["steps"],
            f"{own[0]['parameters']:,}",
            table.mean_error([row["macro"] for row in own], ".1f"),
            table.mean_error([row["token"] for row in own], ".1f"),
        ]
        for (task, run), own in grouped(rows, "task", "run").items()
    ]
    head = [
        "task",
        "run",
        "tokens",
        "steps",
        "parameters",
        "macro %",
        "token %",
    ]
    lines = table.markdown(head, cells)
    lines += ["", "Mean ± standard error over seeds."]
    by_task = grouped(rows, "task")
    panels = [
        plot.Panel(
            {
                run: (
                    [point[0] for point in own[0]["curve"]],
                    np.mean([[p[2] for p in row["curve"]] for row in own], 0),
                )
                for run, own in grouped(of_task, "run").items()
            },
            "step",
            "macro accuracy, %" if i == 0 else "",
            task,
        )
        for i, (task, of_task) in enumerate(by_task.items())
    ]
    figure = plot.curves(*panels, size=(3 * len(panels) + 2, 3), legend=None)
    write(out, "mad", lines, {"settings": settings, "rows": rows}, figure)


def _paper(**scores):
    """Returns what Table 4 has, by task and run, for the report."""
    tasks = (
        "compression",
        "recall",
        "fuzzy-recall",
        "selective-copying",
        "memorization",
    )
    return {
        (task, run): {"macro accuracy, %": score}
        for run, own in scores.items()
        for task, score in zip(tasks, own, strict=True)
    }


REPORT = Report(
    "MAD: recall, compression, copying",
    ("task", "run"),
    {
        "macro accuracy, %": Column("macro", ".1f"),
        "tokens right, %": Column("token", ".1f"),
        "steps": Column("steps", ",.0f"),
        "tokens": Column("tokens", ",.0f"),
        "parameters": Column("parameters", ",.0f"),
    },
    [
        Plot(
            lambda row: [point[2] for point in row["curve"]],
            "macro accuracy, %",
            lambda row: [point[0] for point in row["curve"]],
            "step",
        )
    ],
    Paper(
        "the paper's Table 4",
        {
            "width": 128,
            "length": 256,
            "batch": 128,
            "examples": 12_800,
            "tests": 1280,
            "steps": 20_000,
        },
        _paper(
            transformer=(49.4, 100, 47.9, 96.2, 83.7),
            titans=(49.8, 100, 50.0, 99.4, 83.4),
            hope=(51.2, 100, 52.1, 99.7, 85.2),
        ),
    ),
)
